"""Settings of the kit's methods, each with its paper's values, without their networks: `METHOD_SETTINGS`."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from cassava_kit.training.ssl.config import MomentumConfig, PretrainConfig
from cassava_kit.training.ssl.view import ViewConfig

_MOCO_COLOURS: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
_BYOL_COLOURS: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
N_FULL = 2  # full views of SwAV


class SimCLRConfig(PretrainConfig):
    """SimCLR's settings; the defaults are Chen et al. 2020's, who train in batches of 4,096."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2),),
        "optimizer": "lars",
        "base_lr": 0.3,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
        "hidden_dim": 2048,
        "output_dim": 128,
    }
    remedies = "lower base_lr, warm up longer, or raise the temperature"

    method: Literal["simclr"] = Field(default="simclr", description="Name of the method.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the softmax.")

    def accumulation_warning(self) -> str:
        """Negatives come from one batch."""
        return (
            f"accumulate={self.accumulate} does not make a larger batch for simclr: its negatives come from batches of "
            f"{self.batch_size} all the same; use method moco, whose queue holds negatives"
        )


class MoCoConfig(MomentumConfig):
    """MoCo v2's settings; the defaults are Chen et al. 2020's, queue and momentum those of He et al. 2019."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2, scale=(0.2, 1.0), **_MOCO_COLOURS),),
        "optimizer": "sgd",
        "base_lr": 0.03,
        "weight_decay": 1e-4,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
        "head_norm": "none",
        "momentum": 0.999,
        "momentum_end": 0.999,
    }
    remedies = "lower base_lr, raise momentum, or use a smaller queue_size"
    sync_batchnorm = False  # its keys are shuffled over devices whose statistics must differ

    method: Literal["moco"] = Field(default="moco", description="Name of the method.")
    temperature: float = Field(default=0.2, gt=0, description="Temperature of the softmax.")
    queue_size: int = Field(default=65536, ge=1, description="Keys kept from earlier batches as negatives.")
    bn_groups: int = Field(
        default=8,
        ge=1,
        description="Groups of a batch with their own BatchNorm statistics, shuffled for the keys.",
    )
    symmetric: bool = Field(
        default=False, description="Each view is query once and key once, not only the first query."
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> MoCoConfig:
        if self.batch_size % self.bn_groups:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of bn_groups ({self.bn_groups})")
        if self.batch_size // self.bn_groups < 2:
            raise ValueError(f"bn_groups={self.bn_groups} leaves fewer than two images a group; use fewer")
        return self

    def one_small_epoch(self, batch_size: int) -> dict[str, Any]:
        """Leave two images to each group of BatchNorm statistics."""
        return super().one_small_epoch(max(batch_size, 2 * self.bn_groups))

    def passes(self) -> tuple[float, float]:
        """Return (1, 1), or (2, 2) where both views are queries and keys."""
        return (2.0, 2.0) if self.symmetric else (1.0, 1.0)


class BYOLConfig(MomentumConfig):
    """BYOL's settings; the defaults are Grill et al. 2020's: table 6 for the two views, 10 epochs of warm-up."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (
            ViewConfig(blur_prob=1.0, **_BYOL_COLOURS),
            ViewConfig(blur_prob=0.1, solarize_prob=0.2, **_BYOL_COLOURS),
        ),
        "optimizer": "lars",
        "base_lr": 0.2,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10,
        "hidden_dim": 4096,
        "output_dim": 256,
        "momentum": 0.996,
        "momentum_end": 1.0,
    }
    remedies = "lower base_lr, warm up longer, or raise momentum"

    method: Literal["byol"] = Field(default="byol", description="Name of the method.")
    predictor_dim: int = Field(default=4096, ge=1, description="Width of the prediction head's hidden layer.")


class SwAVConfig(PretrainConfig):
    """SwAV's settings; the defaults are Caron et al. 2020's, with the authors' values for batches of 256."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2, scale=(0.14, 1.0)), ViewConfig(size=96, count=6, scale=(0.05, 0.14))),
        "optimizer": "lars",
        "base_lr": 0.6,
        "weight_decay": 1e-6,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
    }
    remedies = "set sinkhorn_eps=0.03, freeze prototypes longer, soften the crops, or use a smaller or later queue"

    method: Literal["swav"] = Field(default="swav", description="Name of the method.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the softmax.")
    queue_size: int = Field(default=3840, ge=0, description="Projections kept from earlier batches, 0 for none.")
    queue_from_epoch: int = Field(default=15, ge=0, description="First epoch that uses the queue.")
    prototypes: int = Field(default=3000, ge=2, description="Number of prototypes.")
    prototypes_frozen_epochs: int = Field(
        default=1, ge=0, description="First epochs in which the prototypes are not updated."
    )
    sinkhorn_eps: float = Field(default=0.05, gt=0, description="Smoothness of the assignments.")
    sinkhorn_iterations: int = Field(default=3, ge=1, description="Steps of Sinkhorn-Knopp.")

    def check_views(self) -> None:
        """Check that there are two full views and at most one kind of small crop.

        Raises:
            ValueError: There are not. Pydantic collects the message, and the user sees a UserError.
        """
        if self.views[0].count != N_FULL or len(self.views) > 2:
            raise ValueError("swav takes two full views (count 2) and at most one kind of small crop")

    @model_validator(mode="after")
    def _queue_fits(self) -> SwAVConfig:
        if self.queue_size and self.queue_from_epoch >= self.epochs:
            raise ValueError(
                f"queue_from_epoch={self.queue_from_epoch} is never reached in {self.epochs} epochs; set queue_size=0"
            )
        if not self.queue_size and self.queue_from_epoch:
            raise ValueError("queue_from_epoch needs a queue_size; set it to 0")
        return self

    def one_small_epoch(self, batch_size: int) -> dict[str, Any]:
        """Use the queue, if there is one, in the only epoch."""
        return {**super().one_small_epoch(batch_size), "queue_from_epoch": 0}

    def accumulation_warning(self) -> str:
        """Assignments are balanced within one batch."""
        return (
            f"accumulate={self.accumulate} does not make a larger batch for swav: its balanced assignments come from "
            f"batches of {self.batch_size} all the same; use a queue (queue_size=3840)"
        )


METHOD_SETTINGS: dict[str, type[PretrainConfig]] = {
    "simclr": SimCLRConfig,
    "moco": MoCoConfig,
    "byol": BYOLConfig,
    "swav": SwAVConfig,
}
