"""Views of an image at test time as ttach transforms; their predictions are averaged as probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from ttach.base import BaseTransform, Compose, ImageOnlyTransform
from ttach.transforms import HorizontalFlip, VerticalFlip

from cassava_kit.inference.options import VIEWS, check_choice

ZOOM = 0.8
SHORT_NAMES = {"HorizontalFlip": "hflip", "VerticalFlip": "vflip", "Rotate90": "rotate"}


class Transpose(ImageOnlyTransform):
    """Swap rows and columns of a batch of images (B, C, H, W)."""

    identity_param = False

    def __init__(self) -> None:
        super().__init__("apply", [False, True])

    def apply_aug_image(self, image: torch.Tensor, apply: bool = False, **kwargs: object) -> torch.Tensor:
        return image.transpose(2, 3) if apply else image


@dataclass(frozen=True)
class View:
    """One way to look at a batch (B, C, H, W): its name and the transform."""

    name: str
    transform: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.transform(images)


def make_views(views: str | Compose, *, size: tuple[int, int] | None = None) -> tuple[View, ...]:
    """The views of a preset, or of any ttach `Compose`; the plain view comes first.

    Presets: `none`, `flips` (4), `d4` (the 8 symmetries of the square) and `d4+zoom` (9). With a `size` (height,
    width) that is not square, the views that would turn it on its side are left out.
    """
    zoomed = views == "d4+zoom"
    composed = _compose("d4" if zoomed else views) if isinstance(views, str) else views
    found = [View(_name(composed, i), chain.augment_image) for i, chain in enumerate(composed)]
    if zoomed:
        found.append(View("zoom", zoom))
    others = [view for view in found if view.name != "plain"]
    if size is not None and size[0] != size[1]:
        others = [view for view in others if not _turns(view, size)]
    return (View("plain", _plain), *others)


def _compose(name: str) -> Compose:
    presets = {"none": [], "flips": [HorizontalFlip(), VerticalFlip()]}
    presets["d4"] = [*presets["flips"], Transpose()]
    return Compose(presets[check_choice("views", name, VIEWS)])


def _name(composed: Compose, index: int) -> str:
    """`plain` where every transform of the chain stands still, else what each one does, e.g. `hflip+transpose`."""
    values = composed.aug_transform_parameters[index]
    moved = [
        _shown(t) if value is True else f"{_shown(t)}({_shown(value)})"
        for t, value in zip(composed.aug_transforms, values, strict=True)
        if t.identity_param is None or value != t.identity_param
    ]
    return "+".join(moved) or "plain"


def _shown(value: object) -> str:
    """A transform's short name, or a parameter's value (ttach gives crops as partial functions)."""
    if isinstance(value, BaseTransform):
        name = type(value).__name__
        return SHORT_NAMES.get(name, name.lower())
    return str(getattr(getattr(value, "func", None), "__name__", value))


def _plain(images: torch.Tensor) -> torch.Tensor:
    return images


def zoom(images: torch.Tensor) -> torch.Tensor:
    """Cut out the middle (`ZOOM` of each side) and enlarge it to the images' own size."""
    height, width = images.shape[2:]
    h, w = max(1, round(height * ZOOM)), max(1, round(width * ZOOM))
    top, left = (height - h) // 2, (width - w) // 2
    crop = images[:, :, top : top + h, left : left + w]
    return F.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False)


def _turns(view: View, size: tuple[int, int]) -> bool:
    return view(torch.empty(1, 3, *size)).shape[2:] != size
