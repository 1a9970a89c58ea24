"""Albumentations pipelines, imported late by `transforms.train_transform`. Entry point: `TrainTransform`."""

from __future__ import annotations

import random
from typing import Any

import albumentations as A
import cv2
import numpy as np

from cassava_kit.data.images import resize

SYMMETRIES = ("e", "r90", "r180", "r270", "v", "h", "t", "hvt")


class TrainTransform:
    """A callable from a decoded (H, W, 3) uint8 image to an augmented (height, width, 3) uint8 picture.

    With `seed` the picture depends on image and seed alone; the dataset derives one from (run seed, epoch, index).
    Without, pictures depend on albumentations' own random state.
    """

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        self.name, self.size = name, size
        self.transforms = pipeline(name, size)

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        if seed is not None:
            # One state for all: A.Compose's seed would give every transform the same draws.
            state = np.random.default_rng(seed), random.Random(seed)
            for transform in self.transforms:
                transform.set_random_state(*state)
        # Not A.Compose: its checks of masks, boxes and shapes cost a third of a small picture's time.
        for transform in self.transforms:
            image = transform(image=image)["image"]
        return np.ascontiguousarray(image) if self.transforms else resize(image, self.size)


class CropResize(A.RandomResizedCrop):
    """RandomResizedCrop that resizes by `resize_crop`."""

    def apply(self, img: np.ndarray, crop_coords: tuple[int, int, int, int], **params: Any) -> np.ndarray:
        left, top, right, bottom = crop_coords
        return resize_crop(img[top:bottom, left:right], self.size)


class Symmetry(A.D4):
    """A random one of a square's eight symmetries, by OpenCV in a tenth of the library's time."""

    def get_params(self) -> dict[str, str]:
        return {"group_element": self.py_random.choice(SYMMETRIES)}

    def apply(self, img: np.ndarray, group_element: str, **params: Any) -> np.ndarray:
        return symmetry(img, group_element)


def resize_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a training crop: sides at least twice too long are halved by averaging, the rest is bilinear.

    Bilinear alone skips pixels when it shrinks by more than two (29 dB from the evaluation pixels); area averaging does
    not, but costs eight times as much. This stays above 33 dB at little more than the cost of bilinear.
    """
    height, width = size
    while True:
        down, right = (2 if have >= 2 * want else 1 for have, want in zip(image.shape[:2], size, strict=True))
        if down == right == 1:
            return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        half = (image.shape[1] // right, image.shape[0] // down)
        image = cv2.resize(image[: half[1] * down, : half[0] * right], half, interpolation=cv2.INTER_AREA)


def symmetry(image: np.ndarray, element: str) -> np.ndarray:
    """Return an image in one of a square's eight positions, by albumentations' names (`SYMMETRIES`)."""
    if element in ("t", "hvt", "r90", "r270"):
        image = cv2.transpose(image)
    code = {"v": 0, "h": 1, "r180": -1, "r90": 0, "r270": 1, "hvt": -1}.get(element)
    return image if code is None else cv2.flip(image, code)


def make_transform(transform: type, **kwargs: Any) -> Any:
    """Return an albumentations transform.

    Raises:
        ValueError: An argument is one that albumentations would ignore with a warning.
    """
    try:
        return transform(**kwargs, strict=True)
    except ValueError as error:
        raise ValueError(f"albumentations' {transform.__name__}: {error}") from None


def pipeline(name: str, size: tuple[int, int]) -> list[A.BasicTransform]:
    """Return the transforms of the augmentation `none`, `light` or `strong`, in order."""
    if name == "none":
        return []
    return light_transforms(size) if name == "light" else [*light_transforms(size), *strong_transforms()]


def light_transforms(size: tuple[int, int]) -> list[A.BasicTransform]:
    """Return a random crop and one of a square's eight symmetries; colours are not changed."""
    crop = make_transform(CropResize, size=size, scale=(0.4, 1.0), ratio=(0.75, 4 / 3))
    # Symmetries of the small picture are cheaper, but would exchange the sides of a rectangle.
    square = size[0] == size[1]
    return [crop, make_transform(Symmetry, p=1.0)] if square else [make_transform(Symmetry, p=1.0), crop]


def strong_transforms() -> list[A.BasicTransform]:
    """Return what the best teams of the competition added: small shifts and rotations, light and colour, holes."""
    return [
        make_transform(
            A.Affine,
            translate_percent=(-0.0625, 0.0625),
            scale=(0.9, 1.1),
            rotate=(-45, 45),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.5,
        ),
        make_transform(A.HueSaturationValue, hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20, p=0.5),
        make_transform(A.RandomBrightnessContrast, brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        make_transform(
            A.CoarseDropout,
            num_holes_range=(1, 8),
            hole_height_range=(0.05, 0.12),
            hole_width_range=(0.05, 0.12),
            p=0.5,
        ),
    ]
