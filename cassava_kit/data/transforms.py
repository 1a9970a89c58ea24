"""Training augmentation by name, and normalisation. Entry points: `train_transform`, `normalize`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from cassava_kit.errors import UserError

if TYPE_CHECKING:
    import torch

    from cassava_kit.data.augment import TrainTransform

AUGMENTATIONS = ("none", "light", "strong")


def train_transform(name: str, size: tuple[int, int]) -> TrainTransform:
    """Return the augmentation `none`, `light` or `strong`, ending at `size` (height, width); `none` resizes alone."""
    if name not in AUGMENTATIONS:
        raise UserError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    from cassava_kit.data.augment import TrainTransform

    return TrainTransform(name, size)


def normalize(batch: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Return (x/255 - mean) / std of a uint8 batch, (B, 3, H, W) float32 on its device; mean, std of RGB in 0..1."""
    import torch

    if batch.is_contiguous():
        scale, shift = _constants(tuple(mean), tuple(std), batch.device, 1)
        return batch.to(torch.float32).mul_(scale.view(1, -1, 1, 1)).add_(shift.view(1, -1, 1, 1))
    # Channels-last: a whole image row at a time; with an innermost loop of length 3 torch is several times slower.
    n, channels, height, width = batch.shape
    scale, shift = _constants(tuple(mean), tuple(std), batch.device, width)
    rows = batch.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(torch.float32)
    return rows.mul_(scale).add_(shift).view(n, height, width, channels).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return numbers (n,) float32 on a device; kept, because a copy to a GPU waits for all its work."""
    import torch

    with torch.inference_mode(False):  # those made in a prediction may be wanted in training
        return torch.tensor(values).to(device)


@lru_cache(maxsize=32)
def _constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, repeats: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand of `normalize`, (3 * repeats,) each; kept as `constant` keeps."""
    import torch

    with torch.inference_mode(False):
        scale = 1 / (255 * torch.tensor(std))
        shift = -torch.tensor(mean) / torch.tensor(std)
        return scale.repeat(repeats).to(device), shift.repeat(repeats).to(device)
