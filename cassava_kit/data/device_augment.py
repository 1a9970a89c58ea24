"""Training augmentation by kornia on the training device. Entry point: `DeviceAugment` (import it late: it is slow)."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from cassava_kit.errors import UserError


class DeviceAugment(nn.Module):
    """A module from (B, 3, H, W) uint8 pictures to augmented (B, 3, *size) uint8 pictures on the same device.

    `light` and `strong` are those of `augment`, change by change; each picture has its own draws from torch's
    random state. `none` resizes alone.
    """

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        super().__init__()
        layers = {"none": [], "light": light_layers(size), "strong": [*light_layers(size), *strong_layers()]}
        if name not in layers:
            raise UserError(f"augmentation must be one of {', '.join(layers)}, got {name!r}")
        self.size = size
        self.transforms = K.AugmentationSequential(*layers[name], data_keys=["input"]) if layers[name] else None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Augment a batch, in single precision even where training mixes precisions: half is coarse for positions."""
        pixels = images.float() / 255
        with torch.autocast(images.device.type, enabled=False):
            if self.transforms is None:  # as `images.resize`; kornia's own blurs more
                pixels = nn.functional.interpolate(pixels, self.size, mode="bilinear", antialias=True)
            else:
                pixels = self.transforms(pixels)
        return pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


def light_layers(size: tuple[int, int]) -> list[nn.Module]:
    """Return a random crop and one of a square's eight symmetries."""
    crop = K.RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(0.75, 4 / 3))
    flips: list[nn.Module] = [K.RandomHorizontalFlip(p=0.5), K.RandomVerticalFlip(p=0.5)]
    # A picture rotated by a quarter turn keeps its shape only if it is square.
    return [crop, *flips, K.RandomRotation90((1, 1), p=0.5)] if size[0] == size[1] else [crop, *flips]


def strong_layers() -> list[nn.Module]:
    """Return small shifts and rotations, light and colour, and holes."""
    side = 0.085**2  # the mean hole of `augment.draw_holes`, as a share of the area
    return [
        K.RandomAffine(45, translate=(0.0625, 0.0625), scale=(0.9, 1.1), padding_mode="reflection", p=0.5),
        K.ColorJiggle(brightness=0.2, contrast=0.2, saturation=0.3, hue=20 / 180, p=0.5),
        *(K.RandomErasing(scale=(0.5 * side, 2 * side), ratio=(0.5, 2.0), p=0.25) for _ in range(4)),
    ]
