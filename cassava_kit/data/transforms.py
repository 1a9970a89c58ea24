"""Training augmentation by name, and normalisation on the batch's own device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cassava_kit.data.augment import TrainTransform

AUGMENTATIONS = ("none", "light", "strong")


def train_transform(name: str, size: tuple[int, int]) -> TrainTransform:
    """The augmentation `none`, `light` or `strong`, ending at `size` (height, width); `none` is the plain resize."""
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would look for a newer version on the network
    from cassava_kit.data.augment import TrainTransform

    return TrainTransform(name, size)


def normalize(batch: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> float32 (x/255 - mean) / std, on the batch's device; mean and std are of RGB in 0..1."""
    import torch

    scale = 1 / (255 * torch.tensor(std, device=batch.device))
    shift = -torch.tensor(mean, device=batch.device) / torch.tensor(std, device=batch.device)
    if batch.is_contiguous():
        return batch.to(torch.float32).mul_(scale.view(1, -1, 1, 1)).add_(shift.view(1, -1, 1, 1))
    # Channels-last: a whole image row at a time, for torch is several times slower where the innermost loop is 3 long.
    n, channels, height, width = batch.shape
    rows = batch.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(torch.float32)
    rows.mul_(scale.repeat(width)).add_(shift.repeat(width))
    return rows.view(n, height, width, channels).permute(0, 3, 1, 2)
