"""Half precision: networks it spoils (`half_is_wrong`), logits in a precision (`logits_in`), and what it costs them.

`compare_precisions` says whether two precisions of one network answer alike, `judge_half` what a checkpoint's header
says of a network in float16.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # late in the functions: a header is read, and a recipe checked, without torch
    import torch
    from torch import nn

# `fp16` has its weights in float16 too; `fp16-autocast` and `bf16` keep them in float32 and round inside autocast.
Precision = Literal["fp16", "fp16-autocast", "bf16", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)  # the fastest first
HalfVerdict = Literal["safe", "autocast only", "no"]

WRONG = "dinov3"
RISKY = "convnextv2"

# Float16 rounds to 5e-4 of a number. Through a network that becomes .001 to .03 of the logits and less than .03 of a
# probability (six untrained timm networks, batch norm with statistics): what lies beyond these bounds is no rounding.
MOST_OF_LOGITS = 0.1
MOST_OF_PROBABILITY = 0.05


def half_is_wrong(model: str) -> bool:
    """Return whether a timm model gives wrong features in float16, without an error: DINOv3 of any size.

    Example:
        >>> half_is_wrong("vit_small_patch16_dinov3.lvd1689m"), half_is_wrong("vit_small_patch14_dinov2.lvd142m")
        (True, False)
    """
    return WRONG in model


def half_is_risky(model: str) -> bool:
    """Return whether a timm model may overflow in float16: ConvNeXt V2, whose norm sums squares over the image."""
    return model.startswith(RISKY)


def logits_in(model: nn.Module, images: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return logits (B, K) float32 of normalised images (B, 3, H, W), computed in a precision.

    The model's weights are float16 for `fp16`, float32 for the others.
    """
    import torch

    images = images.to(torch.float16 if precision == "fp16" else torch.float32, memory_format=torch.channels_last)
    if precision in ("fp32", "fp16"):
        return model(images).float()
    inner = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast(images.device.type, dtype=inner):
        return model(images).float()


def supports_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself: GPUs before Ampere, as the T4, only imitate it."""
    import torch

    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


@dataclass(frozen=True)
class Agreement:
    """Two precisions compared on `n` images: the share of equal labels, and the largest differences.

    `probability` is the largest difference of two probabilities; `logits` the largest distance of an image's logits,
    each less its mean, as a share of their usual length. `non_finite` counts images that are a number in the reference
    alone.
    """

    n: int
    equal_labels: float
    probability: float
    logits: float
    non_finite: int

    @property
    def agrees(self) -> bool:
        """Whether the differences are those of rounding. Labels of nearly tied classes may differ."""
        return not self.non_finite and self.probability <= MOST_OF_PROBABILITY and self.logits <= MOST_OF_LOGITS

    def __str__(self) -> str:
        if self.non_finite:
            return f"{self.non_finite} of {self.n} images are not finite"
        return (
            f"probabilities differ by up to {self.probability:.2g}, logits by {self.logits:.2g} of their length, "
            f"{self.equal_labels:.0%} of {self.n} labels are equal"
        )


def compare_precisions(logits: torch.Tensor, reference: torch.Tensor) -> Agreement:
    """Compare logits (B, K) of one network with those of the same images in single precision.

    Softmax does not change when a number is added to all logits of an image, so the distance is between logits less
    their mean over the classes. An image whose reference is not finite says nothing of the precision and is left out.
    """
    usable = reference.isfinite().all(dim=1)
    logits, reference = logits[usable].double(), reference[usable].double()
    finite = logits.isfinite().all(dim=1)
    n, lost = len(reference), int((~finite).sum())
    logits, reference = logits[finite], reference[finite]
    if not len(reference):
        return Agreement(n, 0.0 if lost else 1.0, 0.0, 0.0, lost)
    equal = float((logits.argmax(dim=1) == reference.argmax(dim=1)).double().mean())
    probability = float((logits.softmax(dim=1) - reference.softmax(dim=1)).abs().max())
    centred = reference - reference.mean(dim=1, keepdim=True)
    distance = (logits - logits.mean(dim=1, keepdim=True) - centred).norm(dim=1)
    length = float(centred.square().sum(dim=1).mean().sqrt())
    largest = float(distance.max())
    return Agreement(n, equal, probability, largest / length if length else float(largest > 0), lost)


def judge_half(model: nn.Module, images: torch.Tensor) -> tuple[HalfVerdict, dict[Precision, Agreement]]:
    """Return what float16 does to a network with float32 weights on normalised images, and the comparisons.

    `safe`: its weights and its numbers may be float16. `autocast only`: weights and sensitive layers stay float32.
    """
    import torch

    with torch.inference_mode():
        images = images.to(next(model.parameters()).device)
        reference = logits_in(model, images, "fp32").cpu()
        half = logits_in(copy.deepcopy(model).half(), images, "fp16").cpu()
        mixed = logits_in(model, images, "fp16-autocast").cpu()
    found: dict[Precision, Agreement] = {
        "fp16": compare_precisions(half, reference),
        "fp16-autocast": compare_precisions(mixed, reference),
    }
    if found["fp16"].agrees:
        return "safe", found
    return "autocast only" if found["fp16-autocast"].agrees else "no", found


def precisions_to_try(verdict: HalfVerdict | None, model: str, device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions in which a network may run on a device, the fastest first; the last is always `fp32`.

    Without a verdict only the model's name excludes float16. A CPU computes in single precision.
    """
    if device.type != "cuda":
        return ("fp32",)
    wide: tuple[Precision, ...] = ("bf16", "fp32") if supports_bfloat16(device) else ("fp32",)
    if verdict == "no" or (verdict is None and half_is_wrong(model)):
        return wide
    return ("fp16-autocast", *wide) if verdict == "autocast only" else ("fp16", "fp16-autocast", *wide)
