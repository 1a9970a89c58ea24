"""The configuration of one pretraining run: a method without further fields is its paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cassava_kit.config import one_line, parse_setting

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


class View(BaseModel):
    """How one view of an image (or `count` alike) is drawn; strengths are torchvision's ColorJitter arguments."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=224, ge=8, le=1024, description="Side of the square crop in pixels.")
    count: int = Field(default=1, ge=1, le=16, description="How many views are drawn this way.")
    scale: tuple[float, float] = Field(
        default=(0.08, 1.0), description="Smallest and largest share of the image's area in a crop."
    )
    spread: float = Field(
        default=1.0, ge=0, le=1, description="Share of the way to the rim that a crop may leave the image's middle."
    )
    background_swap_prob: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability that all but a disc about the image's middle comes from another image of the batch.",
    )
    brightness: float = Field(default=0.8, ge=0, le=1, description="Brightness is multiplied by 1 - b .. 1 + b.")
    contrast: float = Field(default=0.8, ge=0, le=1, description="Likewise contrast.")
    saturation: float = Field(default=0.8, ge=0, le=1, description="Likewise saturation.")
    hue: float = Field(default=0.2, ge=0, le=0.5, description="Hue is turned by -h .. h of a full circle.")
    channel_gain: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Each colour channel is multiplied by a factor of its own in 1 - g .. 1 + g.",
    )
    jitter_prob: float = Field(default=0.8, ge=0, le=1, description="Probability of the colour jitter.")
    grayscale_prob: float = Field(default=0.2, ge=0, le=1, description="Probability of dropping the colour.")
    blur_prob: float = Field(default=0.5, ge=0, le=1, description="Probability of a Gaussian blur.")
    blur_sigma: tuple[float, float] = Field(
        default=(0.1, 2.0), description="Smallest and largest standard deviation of the blur in pixels."
    )
    solarize_prob: float = Field(
        default=0.0, ge=0, le=1, description="Probability of inverting what is brighter than one half."
    )
    hflip_prob: float = Field(default=0.5, ge=0, le=1, description="Probability of mirroring left and right.")
    vflip_prob: float = Field(default=0.0, ge=0, le=1, description="Probability of mirroring top and bottom.")

    @model_validator(mode="after")
    def _ranges(self) -> View:
        for name, (low, high), top in (("scale", self.scale, 1.0), ("blur_sigma", self.blur_sigma, 16.0)):
            if not 0 < low <= high <= top:
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high <= {top:g}, got ({low}, {high})")
        return self


class PretrainConfig(BaseModel):
    """All that decides what a pretraining run learns; fields that are not given are those of the method's paper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    seed: int = Field(default=42, ge=0, description="Seed of initialisation, order and views.")

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

    def with_settings(self, settings: Sequence[str]) -> PretrainConfig:
        """This configuration with `name=value` settings applied; values are JSON, or plain strings."""
        changed = dict(parse_setting(setting) for setting in settings)
        for name in changed:
            if name not in type(self).model_fields:
                raise ValueError(f"no setting {name!r}; settings are {', '.join(type(self).model_fields)}")
        return replace(self, **changed)


def configure(method: str, **settings: Any) -> PretrainConfig:
    """The method's paper with some settings of one's own; errors are one line."""
    try:
        return PretrainConfig.model_validate({"method": method, **settings})
    except ValidationError as error:
        raise ValueError(one_line(error)) from None


def replace(config: PretrainConfig, **changes: Any) -> PretrainConfig:
    """The configuration with some fields changed, checked again; its errors are one line."""
    return configure(**{**config.model_dump(), **changes})


def paper(method: str) -> dict[str, Any]:
    """The settings of a method's paper that differ from the fields' defaults."""
    if method == "simclr":  # Chen et al. 2020, arXiv:2002.05709: batch 4096, lr .3 x B/256, temperature .1
        return {
            "views": (View(count=2),),
            "optimizer": "lars",
            "base_lr": 0.3,
            "weight_decay": 1e-6,
            "warmup_epochs": 10,
            "hidden_dim": 2048,
            "output_dim": 128,
            "temperature": 0.1,
        }
    if method == "moco":  # MoCo v2: Chen et al. 2020, arXiv:2003.04297; queue and momentum from arXiv:1911.05722
        soft: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
        return {
            "views": (View(count=2, scale=(0.2, 1.0), **soft),),
            "optimizer": "sgd",
            "base_lr": 0.03,
            "weight_decay": 1e-4,
            "warmup_epochs": 0,
            "hidden_dim": 2048,
            "output_dim": 128,
            "head_norm": "none",
            "temperature": 0.2,
            "momentum": 0.999,
            "momentum_end": 0.999,
            "queue_size": 65536,
            "bn_groups": 8,
            "symmetric": False,
        }
    if method == "byol":  # Grill et al. 2020, arXiv:2006.07733: table 6 for the two views, 10 warm-up epochs
        soft = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
        return {
            "views": (View(blur_prob=1.0, **soft), View(blur_prob=0.1, solarize_prob=0.2, **soft)),
            "optimizer": "lars",
            "base_lr": 0.2,
            "weight_decay": 1.5e-6,
            "warmup_epochs": 10,
            "hidden_dim": 4096,
            "output_dim": 256,
            "momentum": 0.996,
            "momentum_end": 1.0,
            "predictor_dim": 4096,
        }
    return {  # Caron et al. 2020, arXiv:2006.09882, with the authors' settings for batches of 256
        "views": (View(count=2, scale=(0.14, 1.0)), View(size=96, count=6, scale=(0.05, 0.14))),
        "optimizer": "lars",
        "base_lr": 0.6,
        "weight_decay": 1e-6,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
        "temperature": 0.1,
        "queue_size": 3840,
        "queue_from_epoch": 15,
        "prototypes": 3000,
        "prototypes_frozen_epochs": 1,
        "sinkhorn_eps": 0.05,
        "sinkhorn_iterations": 3,
    }
