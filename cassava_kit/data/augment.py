"""Training augmentation in one warp and few passes of colour, imported late by `transforms`. Entry: `TrainTransform`.

The draws are those of albumentations' transforms. One by one, these read and write the picture up to eight times.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import cv2
import numpy as np

from cassava_kit.data.images import resize

# A crop's share of the image's area, and its width by its height.
CROP_AREA, CROP_ASPECT = (0.4, 1.0), (0.75, 4 / 3)
# What the best teams of the competition added; each with probability `P`.
P = 0.5
SHIFT, STRETCH, TURN = 0.0625, (0.9, 1.1), 45  # share of the side, factor of each side, degrees
HUE, SATURATION, VALUE = 20, 30, 20  # most that is added or taken away; hues are 0 to 180
CONTRAST, BRIGHTNESS = 0.2, 0.2  # most that the factor differs from 1, and that is added, as a share of 255
HOLES, HOLE_SIDE = (1, 8), (0.05, 0.12)  # how many, and their sides as shares of the picture's
# Albumentations' name -> whether the picture is transposed, and then flipped left to right and upside down.
SYMMETRIES = {
    "e": (False, False, False),
    "r90": (True, False, True),
    "r180": (False, True, True),
    "r270": (True, True, False),
    "v": (False, False, True),
    "h": (False, True, False),
    "t": (True, False, False),
    "hvt": (True, True, True),
}

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Draw(NamedTuple):
    """What happens to one picture, in this order: one of `SYMMETRIES`, crop and resize, warp, colour, light, holes."""

    symmetry: str
    crop: Box
    warp: np.ndarray | None = None  # (2, 3), from a pixel (x, y, 1) of the resized crop to its place in the picture
    colour: tuple[float, float, float] | None = None  # added to hue, saturation and value
    light: tuple[float, float] | None = None  # factor and summand of all values
    holes: tuple[Box, ...] = ()


class TrainTransform:
    """A callable from a decoded (H, W, 3) uint8 image to an augmented (height, width, 3) uint8 picture.

    With `seed` the picture depends on image and seed alone; the dataset derives one from (run seed, epoch, index).
    Without, each call draws anew.
    """

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        self.name, self.size = name, size

    def __call__(self, image: np.ndarray, seed: int | None = None) -> np.ndarray:
        if self.name == "none":
            return resize(image, self.size)
        return apply_draw(image, self.draw(image.shape[:2], seed), self.size)

    def draw(self, shape: tuple[int, int], seed: int | None = None) -> Draw:
        """Draw what happens to an image of `shape` (height, width) by the augmentation `light` or `strong`."""
        rng = Random(seed)
        symmetry = rng.choice(list(SYMMETRIES))
        crop = draw_crop(rng, shape[::-1] if SYMMETRIES[symmetry][0] else shape)
        if self.name == "light":
            return Draw(symmetry, crop)
        return Draw(
            symmetry,
            crop,
            draw_warp(rng, self.size) if rng.random() < P else None,
            draw_colour(rng) if rng.random() < P else None,
            draw_light(rng) if rng.random() < P else None,
            draw_holes(rng, self.size) if rng.random() < P else (),
        )


def draw_crop(rng: Random, shape: tuple[int, int]) -> Box:
    """Draw a crop of an image of `shape` (height, width), as RandomResizedCrop does."""
    height, width = shape
    for _ in range(10):
        area = rng.uniform(*CROP_AREA) * height * width
        aspect = math.exp(rng.uniform(*map(math.log, CROP_ASPECT)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int((height - h + 1) * rng.random()), int((width - w + 1) * rng.random())
            return left, top, left + w, top + h
    w, h = min(width, round(height * CROP_ASPECT[1])), min(height, round(width / CROP_ASPECT[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def draw_warp(rng: Random, size: tuple[int, int]) -> np.ndarray:
    """Draw shift, scale and rotation about the centre of a picture of `size`, (2, 3), as Affine does."""
    height, width = size
    right, down = int(rng.uniform(-SHIFT, SHIFT) * width), int(rng.uniform(-SHIFT, SHIFT) * height)
    wider, higher = rng.uniform(*STRETCH), rng.uniform(*STRETCH)
    turn = math.radians(rng.uniform(-TURN, TURN))
    cos, sin = math.cos(turn), math.sin(turn)
    x, y = width / 2 - 0.5, height / 2 - 0.5
    a, b, c, d = cos * wider, sin * higher, -sin * wider, cos * higher
    return np.array([[a, b, x + right - a * x - b * y], [c, d, y + down - c * x - d * y]])


def draw_colour(rng: Random) -> tuple[float, float, float]:
    """Draw what is added to hue, saturation and value, as HueSaturationValue does."""
    return rng.uniform(-HUE, HUE), rng.uniform(-SATURATION, SATURATION), rng.uniform(-VALUE, VALUE)


def draw_light(rng: Random) -> tuple[float, float]:
    """Draw factor and summand of all values, as RandomBrightnessContrast does."""
    return 1 + rng.uniform(-CONTRAST, CONTRAST), 255 * rng.uniform(-BRIGHTNESS, BRIGHTNESS)


def draw_holes(rng: Random, size: tuple[int, int]) -> tuple[Box, ...]:
    """Draw holes in a picture of `size`, as CoarseDropout does."""
    height, width = size
    holes = []
    for _ in range(rng.randint(*HOLES)):
        h, w = int(height * rng.uniform(*HOLE_SIDE)), int(width * rng.uniform(*HOLE_SIDE))
        top, left = rng.randint(0, height - h), rng.randint(0, width - w)
        holes.append((left, top, left + w, top + h))
    return tuple(holes)


def apply_draw(image: np.ndarray, draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """Return the picture (height, width, 3) uint8 of `size` that a draw makes of an image (H, W, 3) uint8."""
    picture = crop_and_warp(image, draw, size)
    if draw.colour is not None:
        picture = shift_colour(picture, *draw.colour)
    if draw.light is not None:
        picture = change_light(picture, *draw.light)
    for left, top, right, bottom in draw.holes:
        picture[top:bottom, left:right] = 0
    return picture


def crop_and_warp(image: np.ndarray, draw: Draw, size: tuple[int, int]) -> np.ndarray:
    """Apply symmetry, crop, resize and warp, reading the crop's pixels once; beyond its edges it is mirrored."""
    transposed = SYMMETRIES[draw.symmetry][0]
    whole, cropped = (image.shape[1::-1], size[::-1]) if transposed else (image.shape[:2], size)
    # The crop is cut out where it lay before the symmetry, which comes last, on the small picture.
    ends = np.array([[draw.crop[0], draw.crop[2] - 1], [draw.crop[1], draw.crop[3] - 1], [1, 1]])
    (x0, x1), (y0, y1) = (symmetry_matrix(draw.symmetry, whole) @ ends).tolist()[:2]
    crop = image[min(y0, y1) : max(y0, y1) + 1, min(x0, x1) : max(x0, x1) + 1]
    if draw.warp is None:
        return symmetric(resize_crop(crop, cropped), draw.symmetry)
    crop = halve(crop, cropped)
    place = resize_matrix(cropped, crop.shape[:2]) @ symmetry_matrix(draw.symmetry, size)
    place = place[:2] @ np.array([*cv2.invertAffineTransform(draw.warp), [0, 0, 1]])
    return cv2.warpAffine(
        crop,
        place,
        size[::-1],
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT_101,
    )


def resize_crop(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a training crop: sides at least twice too long are halved by averaging, the rest is bilinear.

    Bilinear alone skips pixels when it shrinks by more than two (29 dB from the evaluation pixels); area averaging does
    not, but costs eight times as much. This stays above 33 dB at little more than the cost of bilinear.
    """
    return cv2.resize(halve(image, size), size[::-1], interpolation=cv2.INTER_LINEAR)


def halve(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return an image whose sides are halved by averaging while they are at least twice those of `size`."""
    while True:
        down, right = (2 if have >= 2 * want else 1 for have, want in zip(image.shape[:2], size, strict=True))
        if down == right == 1:
            return image
        half = (image.shape[1] // right, image.shape[0] // down)
        image = cv2.resize(image[: half[1] * down, : half[0] * right], half, interpolation=cv2.INTER_AREA)


def resize_matrix(size: tuple[int, int], source: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) matrix from a pixel of a picture of `size` to its place in the `source` it was resized from."""
    down, right = source[0] / size[0], source[1] / size[1]
    return np.array([[right, 0, right / 2 - 0.5], [0, down, down / 2 - 0.5], [0, 0, 1]])  # centres lie at halves


def symmetric(image: np.ndarray, symmetry: str) -> np.ndarray:
    """Return an image in one of a square's eight positions, by albumentations' names (`SYMMETRIES`)."""
    transposed, mirrored, upside_down = SYMMETRIES[symmetry]
    image = cv2.transpose(image) if transposed else image
    code = {(True, False): 1, (False, True): 0, (True, True): -1}.get((mirrored, upside_down))
    return image if code is None else cv2.flip(image, code)


def symmetry_matrix(symmetry: str, size: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) matrix from a pixel of `symmetric`'s result, which has `size`, to its place in the argument."""
    transposed, mirrored, upside_down = SYMMETRIES[symmetry]
    x = [-1, 0, size[1] - 1] if mirrored else [1, 0, 0]
    y = [0, -1, size[0] - 1] if upside_down else [0, 1, 0]
    return np.array([y, x, [0, 0, 1]] if transposed else [x, y, [0, 0, 1]])


def shift_colour(image: np.ndarray, hue: float, saturation: float, value: float) -> np.ndarray:
    """Add to hue (0 to 180), saturation and value of an RGB image; pixels without colour stay without.

    One pass between two conversions: OpenCV takes hues above 180, and for a shift down red and blue change places.
    """
    to_hsv, to_rgb = (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if hue >= 0 else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
    hsv = cv2.cvtColor(image, to_hsv)
    steps = abs(math.floor(hue)), int(saturation), int(value)  # rounded as the library rounds
    rows = [[1, 0, 0, steps[0]], [0, 1, 0, steps[1]], [0, 0, 1, steps[2]]]
    shifted = cv2.transform(hsv, np.array(rows, np.float32))
    if steps[1] > 0:
        colourless = cv2.compare(cv2.extractChannel(hsv, 1), 0, cv2.CMP_EQ)
        if cv2.countNonZero(colourless):
            cv2.insertChannel(cv2.subtract(cv2.extractChannel(shifted, 1), colourless), shifted, 1)
    return cv2.cvtColor(shifted, to_rgb)


def change_light(image: np.ndarray, factor: float, summand: float) -> np.ndarray:
    """Return factor * values + summand within 0..255, fractions cut off; takes half the time of a table look-up."""
    last = summand - 0.5  # OpenCV rounds
    rows = [[factor, 0, 0, last], [0, factor, 0, last], [0, 0, factor, last]]
    return cv2.transform(image, np.array(rows, np.float32))
