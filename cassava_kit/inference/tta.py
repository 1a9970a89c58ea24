"""Views of an image at test time: `make_views` gives them, `predict_views` averages a model's probabilities over them.

A new view is one entry of `PRESETS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.nn import functional as F
from ttach.base import BaseTransform, Compose, ImageOnlyTransform
from ttach.transforms import HorizontalFlip, VerticalFlip

from cassava_kit.errors import UserError

ZOOM = 0.8


@dataclass(frozen=True)
class View:
    """One way to look at images: a name, and the transform of a batch (N, C, H, W)."""

    name: str
    transform: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the batch (N, C, H, W) as this view shows it."""
        return self.transform(images)


class Transpose(ImageOnlyTransform):
    """Swap rows and columns of a batch of images (N, C, H, W)."""

    identity_param = False

    def __init__(self) -> None:
        super().__init__("apply", [False, True])

    def apply_aug_image(self, image: torch.Tensor, apply: bool = False, **kwargs: object) -> torch.Tensor:
        """Return the batch, transposed where `apply` says so."""
        return image.transpose(2, 3) if apply else image


class Zoom(ImageOnlyTransform):
    """Enlarge the middle (`ZOOM` of each side) of a batch of images (N, C, H, W) to the images' own size."""

    identity_param = False

    def __init__(self) -> None:
        super().__init__("apply", [False, True])

    def apply_aug_image(self, image: torch.Tensor, apply: bool = False, **kwargs: object) -> torch.Tensor:
        """Return the batch, enlarged where `apply` says so."""
        if not apply:
            return image
        height, width = image.shape[2:]
        h, w = max(1, round(height * ZOOM)), max(1, round(width * ZOOM))
        top, left = (height - h) // 2, (width - w) // 2
        crop = image[:, :, top : top + h, left : left + w]
        return F.interpolate(crop, size=(height, width), mode="bilinear", align_corners=False)


FLIPS: tuple[BaseTransform, ...] = (HorizontalFlip(), VerticalFlip())
# Every chain of a Compose is a view; a preset's Composes follow one another, without repeating the plain view.
PRESETS: dict[str, tuple[Compose, ...]] = {
    "none": (Compose([]),),
    "hflip": (Compose([HorizontalFlip()]),),
    "flips": (Compose([*FLIPS]),),
    "d4": (Compose([*FLIPS, Transpose()]),),
    "d4+zoom": (Compose([*FLIPS, Transpose()]), Compose([Zoom()])),
}
SHORT_NAMES = {"HorizontalFlip": "hflip", "VerticalFlip": "vflip", "Rotate90": "rotate"}


def make_views(views: str | Compose = "flips", *, size: tuple[int, int] | None = None) -> tuple[View, ...]:
    """Return the views of a preset, or of a ttach `Compose`; the plain view comes first.

    Presets: `none` (1), `hflip` (2), `flips` (4), `d4` (the 8 symmetries of the square) and `d4+zoom` (9). With a
    `size` (height, width) that is not square, the views that would turn it on its side are left out.

    Raises:
        UserError: no preset has this name.

    Example:
        >>> import torch
        >>> views = make_views("flips")
        >>> [view.name for view in views]
        ['plain', 'vflip', 'hflip', 'hflip+vflip']
        >>> images = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> views[2](images).flatten().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    if not isinstance(views, Compose) and (not isinstance(views, str) or views not in PRESETS):
        raise UserError(f"views must be one of {', '.join(PRESETS)}, or a ttach Compose, got {views!r}")
    composes = PRESETS[views] if isinstance(views, str) else (views,)
    found = {"plain": View("plain", _plain)}
    for composed in composes:
        for i, chain in enumerate(composed):
            name = _name(composed, i)
            found.setdefault(name, View(name, chain.augment_image))
    if size is not None and size[0] != size[1]:
        return tuple(view for view in found.values() if view.name == "plain" or not _turns(view, size))
    return tuple(found.values())


def predict_views(model: nn.Module, images: torch.Tensor | ArrayLike, views: str | Compose = "flips") -> np.ndarray:
    """Return the mean over views of a model's softmax probabilities.

    Args:
        model: any module that gives logits (N, K) for a batch; it is called in evaluation mode and left in its own.
        images: normalised batch (N, C, H, W), a tensor on any device or an array; it is moved to the model's device.
        views: what `make_views` takes.

    Returns:
        Probabilities (N, K), float32; rows sum to 1.

    Raises:
        UserError: the images are not four-dimensional, no preset has this name, or the answers are no logits (N, K).

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
        >>> predict_views(model, torch.rand(4, 3, 2, 2), "d4").shape
        (4, 3)
    """
    try:
        batch = torch.as_tensor(images)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"images must be a tensor or array (N, C, H, W), got {type(images).__name__} ({error})"
        ) from None
    if batch.ndim != 4 or not len(batch):
        raise UserError(f"images must be a batch (N, C, H, W), got shape {tuple(batch.shape)}; add the missing axis")
    height, width = batch.shape[2:]
    seen = make_views(views, size=(height, width))
    training, place = model.training, next(model.parameters(), batch)
    model.eval()
    try:
        with torch.inference_mode():
            batch = batch.to(place.device, place.dtype if place.is_floating_point() else batch.dtype)
            answers = [model(view(batch)) for view in seen]
    finally:
        model.train(training)
    shapes = {tuple(answer.shape) for answer in answers}
    if len(shapes) != 1 or answers[0].ndim != 2 or len(answers[0]) != len(batch):
        raise UserError(f"the model must give logits of shape ({len(batch)}, K) for each view, got {sorted(shapes)}")
    return torch.stack([answer.float().softmax(dim=1) for answer in answers]).mean(dim=0).cpu().numpy()


def _name(composed: Compose, index: int) -> str:
    """`plain` where every transform of the chain stands still, else what each one does, e.g. `hflip+transpose`."""
    values = composed.aug_transform_parameters[index]
    moved = [
        _short_name(t) if value is True else f"{_short_name(t)}({_short_name(value)})"
        for t, value in zip(composed.aug_transforms, values, strict=True)
        if t.identity_param is None or value != t.identity_param
    ]
    return "+".join(moved) or "plain"


def _short_name(value: object) -> str:
    """A transform's short name, or a parameter's value (ttach gives crops as partial functions)."""
    if isinstance(value, BaseTransform):
        name = type(value).__name__
        return SHORT_NAMES.get(name, name.lower())
    return str(getattr(getattr(value, "func", None), "__name__", value))


def _plain(images: torch.Tensor) -> torch.Tensor:
    return images


def _turns(view: View, size: tuple[int, int]) -> bool:
    """Whether a view gives another height and width than the image's."""
    return view(torch.empty(1, 3, *size)).shape[2:] != size
