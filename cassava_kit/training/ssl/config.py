"""The configuration of one pretraining run: a method without further fields is its paper."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cassava_kit.settings import LARGEST_SEED, Settings
from cassava_kit.training.ssl.papers import paper
from cassava_kit.training.ssl.view import View

Method = Literal["simclr", "moco", "byol", "swav"]
METHODS: tuple[Method, ...] = ("simclr", "moco", "byol", "swav")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Fields that only some methods have: the others must leave them empty, so that no setting is ever ignored.
METHOD_FIELDS: dict[str, frozenset[str]] = {
    "simclr": frozenset({"temperature"}),
    "moco": frozenset({"temperature", "momentum", "momentum_end", "queue_size", "bn_groups", "symmetric"}),
    "byol": frozenset({"momentum", "momentum_end", "predictor_dim"}),
    "swav": frozenset(
        {
            "temperature",
            "queue_size",
            "queue_from_epoch",
            "prototypes",
            "prototypes_frozen_epochs",
            "sinkhorn_eps",
            "sinkhorn_iterations",
        }
    ),
}

# Fields that change no weight: with others a run is still the same run.
WITHOUT_EFFECT = frozenset({"on_collapse", "min_std", "min_rank", "knn_every", "accelerator", "num_workers"})
WITHOUT_EFFECT |= {"watch_every", "watch_after", "watch_patience"}


class PretrainConfig(Settings):
    """All that decides what a pretraining run learns; fields that are not given are those of the method's paper."""

    name: str = Field(default="ssl", description="Name of the run, e.g. of its recipe.", pattern=r"^[A-Za-z0-9_.-]+$")
    method: Method = Field(description="What is learnt.")
    backbone: str = Field(default="resnet50", description="timm model name.")
    model_args: dict[str, Any] = Field(default={}, description="Further keyword arguments of timm.create_model.")
    image_size: int = Field(
        default=224, ge=8, le=1024, description="Side in pixels at which the backbone is probed and exported."
    )
    views: tuple[View, ...] = Field(
        min_length=1, description="The views of an image; the first size is the methods' full view."
    )
    store_size: tuple[int, int] | None = Field(
        default=None,
        description="(height, width) at which all images are kept decoded, views being cut from them in whole batches; "
        "none: every view is cut from the file by lightly's transforms, as the papers do.",
    )
    mean: tuple[float, float, float] = Field(
        default=IMAGENET_MEAN, description="RGB mean (0..1) subtracted from a view."
    )
    std: tuple[float, float, float] = Field(
        default=IMAGENET_STD, description="RGB standard deviation (0..1) that divides it."
    )

    epochs: int = Field(default=200, ge=1, description="Passes over the images.")
    batch_size: int = Field(default=256, ge=2, description="Images in a batch, on each device.")
    accumulate: int = Field(default=1, ge=1, description="Batches whose gradients are summed before a step.")
    optimizer: Literal["lars", "sgd", "adamw"] = Field(description="Optimiser.")
    base_lr: float = Field(
        gt=0, description="Highest learning rate for 256 images a step; scaled with the images in a step."
    )
    weight_decay: float = Field(ge=0, description="Weight decay; biases and norms have none.")
    sgd_momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of LARS and SGD.")
    warmup_epochs: float = Field(ge=0, description="Epochs of linear warm-up before the cosine.")
    clip_norm: float | None = Field(default=None, gt=0, description="Gradients are scaled down to this norm.")

    hidden_dim: int = Field(ge=1, description="Width of the projection head's hidden layer.")
    output_dim: int = Field(ge=2, description="Width of the projection head's output.")
    head_norm: Literal["batch", "layer", "none"] = Field(
        default="batch",
        description="Norm in the heads where the paper has BatchNorm; layer and none do not depend on the batch.",
    )
    temperature: float | None = Field(
        default=None, gt=0, description="Temperature of the softmax (SimCLR, MoCo, SwAV)."
    )
    momentum: float | None = Field(
        default=None, ge=0, le=1, description="Share that the momentum network keeps at the first step (MoCo, BYOL)."
    )
    momentum_end: float | None = Field(
        default=None, ge=0, le=1, description="The same at the last step; a cosine lies between."
    )
    predictor_dim: int | None = Field(
        default=None, ge=1, description="Width of the prediction head's hidden layer (BYOL)."
    )
    queue_size: int | None = Field(
        default=None, ge=0, description="Embeddings kept from earlier batches, 0 for none (MoCo, SwAV)."
    )
    queue_from_epoch: int | None = Field(default=None, ge=0, description="First epoch that uses the queue (SwAV).")
    bn_groups: int | None = Field(
        default=None,
        ge=1,
        description="Groups of a batch with their own BatchNorm statistics, shuffled for the keys (MoCo).",
    )
    symmetric: bool | None = Field(
        default=None, description="Each view is query once and key once, not only the first query (MoCo)."
    )
    prototypes: int | None = Field(default=None, ge=2, description="Number of prototypes (SwAV).")
    prototypes_frozen_epochs: int | None = Field(
        default=None, ge=0, description="First epochs in which prototypes stand still (SwAV)."
    )
    sinkhorn_eps: float | None = Field(default=None, gt=0, description="Smoothness of the assignments (SwAV).")
    sinkhorn_iterations: int | None = Field(default=None, ge=1, description="Steps of Sinkhorn-Knopp (SwAV).")

    on_collapse: Literal["stop", "warn"] = Field(
        default="stop", description="What follows when the embeddings have collapsed."
    )
    watch_every: int = Field(default=10, ge=1, description="Steps between two looks at the head's output.")
    watch_after: int = Field(
        default=100,
        ge=0,
        description="First steps without an alarm; five times as many while the embeddings were never healthy.",
    )
    watch_patience: int = Field(default=3, ge=1, description="Looks in a row that must be bad for an alarm.")
    min_std: float = Field(
        default=0.15, ge=0, lt=1, description="Alarm below this sqrt(d) x standard deviation of unit embeddings."
    )
    min_rank: float = Field(
        default=1.5, ge=1, description="Alarm below this effective rank (RankMe) of the embeddings."
    )
    knn_every: int = Field(default=5, ge=1, description="Epochs between two kNN probes, where labels are given.")

    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        default="32-true", description="Numbers that a step computes with."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="Kind of device.")
    devices: int = Field(default=1, ge=1, description="Devices; more than one is DDP with gathered negatives.")
    num_workers: int = Field(default=0, ge=0, description="Processes that decode and cut views from files.")
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED, description="Seed of initialisation, order and views.")

    @model_validator(mode="before")
    @classmethod
    def _paper_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("method") not in METHODS:
            return values
        return {**paper(values["method"]), **values}

    @model_validator(mode="after")
    def _method_fields(self) -> PretrainConfig:
        own = METHOD_FIELDS[self.method]
        for name in sorted(frozenset().union(*METHOD_FIELDS.values())):
            if name in own and getattr(self, name) is None:
                raise ValueError(f"{self.method} needs {name}")
            if name not in own and getattr(self, name) is not None:
                raise ValueError(f"{self.method} has no {name}; leave it out")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainConfig:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.optimizer == "lars" and self.weight_decay == 0:
            raise ValueError("lars adapts only what has weight decay: give it a small one (1e-6), or use sgd")
        if self.optimizer == "adamw" and self.sgd_momentum != 0.9:
            raise ValueError("sgd_momentum belongs to lars and sgd, not to adamw; leave it out")
        full = self.views[0]
        if self.method == "swav" and (full.count != 2 or len(self.views) > 2):
            raise ValueError("swav takes two full views (count 2) and at most one kind of small crop")
        if self.method != "swav" and sum(view.count for view in self.views) != 2:
            raise ValueError(f"{self.method} takes exactly two views, got {sum(view.count for view in self.views)}")
        if self.method != "swav" and len({view.size for view in self.views}) != 1:
            raise ValueError(f"{self.method} takes views of one size")
        if self.bn_groups and self.batch_size % self.bn_groups:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of bn_groups ({self.bn_groups})")
        if self.bn_groups and self.batch_size // self.bn_groups < 2:
            raise ValueError(f"bn_groups={self.bn_groups} leaves fewer than two images a group; use fewer")
        if self.method == "moco" and not self.queue_size:
            raise ValueError("moco needs a queue_size of at least 1; its negatives come from nowhere else")
        if self.queue_size and (self.queue_from_epoch or 0) >= self.epochs:
            raise ValueError(
                f"queue_from_epoch={self.queue_from_epoch} is never reached in {self.epochs} epochs; set queue_size=0"
            )
        if self.method == "swav" and not self.queue_size and self.queue_from_epoch:
            raise ValueError("queue_from_epoch needs a queue_size; set it to 0")
        if self.store_size and min(self.store_size) < 8:
            raise ValueError(f"store_size must be at least 8 x 8 pixels, got {self.store_size}")
        return self

    @property
    def step_images(self) -> int:
        """Images behind one optimizer step."""
        return self.batch_size * self.accumulate * self.devices

    @property
    def lr(self) -> float:
        """Highest learning rate: base_lr x images a step / 256."""
        return self.base_lr * self.step_images / 256


def configure(method: str, **settings: Any) -> PretrainConfig:
    """The method's paper with some settings of one's own; errors are one line."""
    return PretrainConfig.from_values({"method": method, **settings})
