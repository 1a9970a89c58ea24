"""Settings of a pretraining run: `PretrainConfig`, the part that all methods share; each method adds its own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from cassava_kit.settings import LARGEST_SEED, Settings
from cassava_kit.training.config import refuse_half
from cassava_kit.training.ssl.view import ViewConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Fields that change no weight: with others a run is still the same run.
WITHOUT_EFFECT = frozenset({"on_collapse", "min_std", "min_rank", "knn_every", "accelerator", "num_workers"})
WITHOUT_EFFECT |= {"watch_every", "watch_after", "watch_patience"}


class PretrainConfig(Settings):
    """Everything that decides what a pretraining run learns.

    Base class: a method's own class has its further fields, and in `paper` what its paper sets of the shared ones.
    """

    paper: ClassVar[dict[str, Any]] = {}
    remedies: ClassVar[str] = "lower base_lr, or warm up longer"  # said when embeddings have collapsed
    sync_batchnorm: ClassVar[bool] = True  # BatchNorm statistics are shared between GPUs

    name: str = Field(default="ssl", description="Name of the run, e.g. of its recipe.", pattern=r"^[A-Za-z0-9_.-]+$")
    method: str = Field(description="Name of the method.")
    backbone: str = Field(default="resnet50", description="timm model name.")
    model_args: dict[str, Any] = Field(default={}, description="Further keyword arguments of timm.create_model.")
    image_size: int = Field(
        default=224, ge=8, le=1024, description="Side in pixels at which the backbone is probed and exported."
    )
    views: tuple[ViewConfig, ...] = Field(min_length=1, description="How the views of an image are drawn.")
    store_size: tuple[int, int] | None = Field(
        default=None,
        description="(height, width) at which all images are kept decoded, views being cut from them in whole batches; "
        "null: every view is cut from the file by lightly's transforms, as the papers do.",
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

    on_collapse: Literal["stop", "warn"] = Field(
        default="stop", description="What happens when the embeddings have collapsed."
    )
    watch_every: int = Field(default=10, ge=1, description="Steps between two measurements of the head's output.")
    watch_after: int = Field(
        default=100,
        ge=0,
        description="First steps without an alarm; five times as many until the first healthy measurement.",
    )
    watch_patience: int = Field(default=3, ge=1, description="Bad measurements in a row that raise the alarm.")
    min_std: float = Field(
        default=0.15, ge=0, lt=1, description="Alarm below this sqrt(d) x standard deviation of unit embeddings."
    )
    min_rank: float = Field(
        default=1.5, ge=1, description="Alarm below this effective rank (RankMe) of the embeddings."
    )
    knn_every: int = Field(default=5, ge=1, description="Epochs between two kNN probes, where labels are given.")

    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        default="32-true", description="Number format of a step; a CPU computes 16-mixed in 32-true."
    )
    accelerator: Literal["auto", "cpu", "gpu"] = Field(default="auto", description="Kind of device.")
    devices: int = Field(default=1, ge=1, description="Devices; more than one is DDP with gathered negatives.")
    num_workers: int = Field(default=0, ge=0, description="Processes that decode and cut views from files.")
    seed: int = Field(default=42, ge=0, le=LARGEST_SEED, description="Seed of initialisation, order and views.")

    @model_validator(mode="before")
    @classmethod
    def _fill_from_paper(cls, values: Any) -> Any:
        return {**cls.paper, **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be less than epochs ({self.epochs}), got {self.warmup_epochs}")
        if self.optimizer == "lars" and self.weight_decay == 0:
            raise ValueError("lars adapts only what has weight decay: give it a small one (1e-6), or use sgd")
        if self.optimizer == "adamw" and self.sgd_momentum != 0.9:
            raise ValueError("sgd_momentum belongs to lars and sgd, not to adamw; leave it out")
        if self.store_size and min(self.store_size) < 8:
            raise ValueError(f"store_size must be at least 8 x 8 pixels, got {self.store_size}")
        refuse_half(self.backbone, self.precision)
        self.check_views()
        return self

    def check_views(self) -> None:
        """Check that the method can use these views; by default it takes two of one size.

        Raises:
            ValueError: It cannot. Pydantic collects the message, and the user sees a UserError.
        """
        count = sum(view.count for view in self.views)
        if count != 2:
            raise ValueError(f"{self.method} takes exactly two views, got {count}")
        if len({view.size for view in self.views}) != 1:
            raise ValueError(f"{self.method} takes views of one size")

    def accumulation_warning(self) -> str | None:
        """Return what summing gradients over batches does not do for this method, or None where it is exact."""
        return None

    def passes(self) -> tuple[float, float]:
        """Return how many views of an image, in areas of the first view, are learnt from and seen forward alone."""
        area = self.views[0].size ** 2
        return sum(view.count * view.size**2 / area for view in self.views), 0.0

    def one_small_epoch(self, batch_size: int) -> dict[str, Any]:
        """Return the changes that make this a run of one epoch in batches of about this size, e.g. for a rehearsal."""
        changes = {"epochs": 1, "warmup_epochs": 0, "accumulate": 1, "num_workers": 0, "precision": "32-true"}
        return {**changes, "batch_size": min(self.batch_size, batch_size)}

    @property
    def step_images(self) -> int:
        """Number of images behind one optimizer step."""
        return self.batch_size * self.accumulate * self.devices

    @property
    def lr(self) -> float:
        """Highest learning rate: base_lr x images a step / 256."""
        return self.base_lr * self.step_images / 256


class MomentumConfig(PretrainConfig):
    """Settings of a method with a momentum network."""

    momentum: float = Field(ge=0, le=1, description="Share that the momentum network keeps at the first step.")
    momentum_end: float = Field(ge=0, le=1, description="The same at the last step; a cosine lies between.")

    def accumulation_warning(self) -> str | None:
        """BatchNorm alone depends on the batch."""
        if self.head_norm != "batch":
            return None
        return (
            f"accumulate={self.accumulate}: BatchNorm still sees batches of {self.batch_size}; it is exact "
            "with head_norm=layer and a backbone without BatchNorm"
        )

    def passes(self) -> tuple[float, float]:
        """Both views are learnt from, and both are seen by the momentum network."""
        return super().passes()[0], 2.0
