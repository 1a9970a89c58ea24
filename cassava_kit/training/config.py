"""Configurations of a supervised run (`RunConfig`) and of a linear probe (`ProbeConfig`): frozen, checked, JSON."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from cassava_kit.models.precision import half_is_wrong
from cassava_kit.settings import LARGEST_SEED, Settings

NAMES = ("recipe", "about", "name")  # fields that name a run and change nothing of it


class NamedNetwork(Settings):
    """A network by timm's name, and the name of what is made of it."""

    recipe: str = Field(description="Name of the recipe or probe.", pattern=r"^[A-Za-z0-9_.-]+$")
    about: str = Field("", description="One line on what it is.")
    name: str | None = Field(
        None,
        description="Name of the run and of its folder; default: `recipe`, with the settings changed.",
        pattern=r"^[A-Za-z0-9_.-]{1,80}$",
    )
    model: str = Field(description="timm model name.")
    model_args: dict[str, Any] = Field({}, description="Further keyword arguments of timm.create_model.")


class RunConfig(NamedNetwork):
    """Settings of a supervised run, checked as they are made."""

    head: Literal["linear", "dense"] = Field(
        "linear", description="Linear classifier, or three dense layers with dropout."
    )
    freeze_backbone: bool = Field(False, description="Train the head alone; BatchNorm statistics stay frozen too.")
    image_size: int = Field(224, ge=8, le=2048, description="Side of the square input in pixels.")

    epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    batch_size: int = Field(32, ge=1, description="Images in a step, on each device.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients are summed before a step.")
    optimizer: Literal["adam", "adamw", "adadelta", "sgd"] = Field("adamw", description="Optimiser.")
    lr: float = Field(1e-3, gt=0, description="Highest learning rate.")
    backbone_lr_scale: float = Field(1.0, gt=0, le=1, description="Backbone's share of the head's learning rate.")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each of the backbone's stages learns at this share of the rate of the one above."
    )
    layer_decay_by: Literal["stage", "block"] = Field(
        "stage", description="What layer_decay counts: stages, or timm's finest layers (blocks). A ViT's are the same."
    )
    keep_stages: int | None = Field(
        None,
        ge=0,
        description="Train the head and this number of top stages alone; the others stay frozen in evaluation mode.",
    )
    unfreeze_every: int = Field(
        0,
        ge=0,
        description="Epochs of the head alone, and of each further unfrozen stage before the next. 0: all at once.",
    )
    weight_decay: float = Field(1e-2, ge=0, description="Weight decay; biases and norms have none.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of SGD.")
    clip_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    schedule: Literal["cosine", "onecycle", "plateau", "constant"] = Field(
        "cosine", description="Learning-rate schedule."
    )
    warmup_epochs: float = Field(0.0, ge=0, description="Epochs of linear warm-up before cosine or constant.")
    early_stopping: int | None = Field(
        None, ge=1, description="Stop after this number of epochs without a better validation loss."
    )
    select: Literal["last", "best"] = Field(
        "last",
        description="Weights kept: the last epoch's, or the best validation loss's (which flatters OOF a little).",
    )

    loss: str = Field("ce", description="Loss: ce, bitempered, taylor, symmetric or focal (`losses.LOSSES`).")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="Share of the target that is spread over all classes.")
    loss_args: dict[str, float] = Field({}, description="Parameters of the loss, e.g. t1 and t2 of bitempered.")
    mixup: float = Field(0.0, ge=0, description="Beta parameter of mixup; 0 is off.")
    cutmix: float = Field(0.0, ge=0, description="Beta parameter of cutmix; 0 is off.")
    plain_epochs: int = Field(0, ge=0, description="Last epochs without mixup and cutmix.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an exponential moving average of the weights.")

    swa_epochs: int = Field(0, ge=0, description="Last epochs whose weights are averaged at their ends; 0 is off.")
    swa_lr_scale: float = Field(0.1, gt=0, le=1, description="Share of the highest rate while weights are averaged.")
    ousm: int = Field(0, ge=0, description="Largest losses of a batch that are left out (OUSM); 0 is off.")
    ousm_after: int = Field(1, ge=0, description="Epochs before losses are left out.")

    train_pixels: tuple[int, int] | None = Field(
        None, description="(height, width) to which training images are brought before augmentation; none: as they are."
    )
    augmentation: Literal["none", "light", "strong"] = Field("light", description="Augmentation of training images.")
    augment_on: Literal["cpu", "device"] = Field(
        "cpu", description="Augment in the loader, or by kornia on the device (needs train_pixels)."
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = Field(
        "32-true", description="Numbers that a step computes with."
    )
    seed: int = Field(42, ge=0, le=LARGEST_SEED, description="Seed of initialisation, order and augmentation.")

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        self._check_epochs()
        if self.warmup_epochs and self.schedule in ("onecycle", "plateau"):
            raise ValueError(f"warmup_epochs goes with the schedules cosine and constant, not with {self.schedule}")
        if self.warmup_epochs >= self.epochs - self.swa_epochs:
            left = f"epochs ({self.epochs}){f' less swa_epochs ({self.swa_epochs})' if self.swa_epochs else ''}"
            raise ValueError(f"warmup_epochs must be less than {left}, got {self.warmup_epochs}")
        if self.plain_epochs and not (self.mixup or self.cutmix):
            raise ValueError("plain_epochs needs mixup or cutmix; there is nothing to switch off")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise ValueError(f"mixup and cutmix take images in pairs: make batch_size even, not {self.batch_size}")
        for name, plain in (("backbone_lr_scale", 1), ("layer_decay", 1), ("unfreeze_every", 0), ("keep_stages", None)):
            if getattr(self, name) != plain and self.freeze_backbone:
                raise ValueError(f"{name} has no effect on a frozen backbone; drop one of the two")
        if self.layer_decay_by != "stage" and self.layer_decay == 1:
            raise ValueError(
                "layer_decay_by has no effect without layer_decay; leave it out, or set e.g. layer_decay=0.8"
            )
        if self.keep_stages is not None and self.unfreeze_every:
            raise ValueError("keep_stages stays as it is, unfreeze_every frees more; drop one of the two")
        refuse_half(self.model, self.precision)
        if self.momentum != 0.9 and self.optimizer != "sgd":
            raise ValueError(f"momentum is SGD's, and has no effect on {self.optimizer}; leave it out")
        self._check_averages()
        if self.ousm >= self.batch_size:
            raise ValueError(f"ousm must be less than batch_size ({self.batch_size}), got {self.ousm}")
        if self.augment_on == "device" and self.train_pixels is None:
            raise ValueError("augment_on=device needs images of one size: set e.g. train_pixels=[384,512]")
        return self

    def _check_epochs(self) -> None:
        for name, on, never in (
            ("swa_epochs", self.swa_epochs, "there would be no epoch before the averaging"),
            ("plain_epochs", self.mixup or self.cutmix, "mixup and cutmix would never be on"),
            ("ousm_after", self.ousm, "no loss would ever be left out"),
            ("unfreeze_every", self.unfreeze_every, "no stage would ever be freed"),
        ):
            if on and getattr(self, name) >= self.epochs:
                raise ValueError(f"{name} must be less than epochs ({self.epochs}), got {getattr(self, name)}: {never}")

    def _check_averages(self) -> None:
        if self.swa_lr_scale != 0.1 and not (self.swa_epochs and self.schedule == "cosine"):
            raise ValueError("swa_lr_scale goes with swa_epochs on a cosine schedule; elsewhere it has no effect")
        if not self.swa_epochs:
            return
        for clash, what in (
            (self.ema is not None, "ema"),
            (self.select == "best", "select=best"),
            (self.early_stopping is not None, "early_stopping"),
            (self.schedule not in ("cosine", "constant"), f"schedule={self.schedule}"),
        ):
            if clash:
                raise ValueError(f"swa_epochs goes with whole runs on a cosine or constant schedule, not with {what}")


def refuse_half(model: str, precision: str) -> None:
    """Refuse half precision for a network that it spoils without an error.

    Raises:
        ValueError: The model is one of these; the message names it.
    """
    if precision == "16-mixed" and half_is_wrong(model):
        raise ValueError(
            f"{model} is wrong in half precision, without an error: DINOv3's activations leave float16's range; set "
            "precision=32-true (or bf16-mixed, where the GPU has it; a T4 has not)"
        )


class NetworkSettings(Protocol):
    """What a checkpoint's header and the checks of weights ask of a configuration."""

    @property
    def model(self) -> str: ...
    @property
    def model_args(self) -> dict[str, Any]: ...
    @property
    def head(self) -> str: ...
    @property
    def image_size(self) -> int: ...


class ProbeConfig(NamedNetwork):
    """Settings of a linear probe: a frozen network's features, and a logistic regression in the place of its head."""

    head: Literal["linear"] = Field("linear", description="The classifier is one layer.")
    image_size: int = Field(224, ge=8, le=2048, description="Side of the square input in pixels.")
    views: Literal["none", "hflip", "flips", "d4", "d4+zoom"] = Field(
        "hflip", description="Views of each training image; each is a row that the regression learns from."
    )
