"""Describe the training images of a competition folder: classes, sizes, statistics, copies; entry point `explore`.

Broken files are named and counted; the other images are described all the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.data.duplicates import group_duplicates
from cassava_kit.data.fingerprints import FINGERPRINT_CACHE, Fingerprints, fingerprint
from cassava_kit.data.images import ImageError, decode_small, in_threads, read_bytes
from cassava_kit.data.table import list_training_images, read_labels
from cassava_kit.errors import UserError
from cassava_kit.files import cache_dir

SIDE = 64  # shorter side at which statistics are taken: an eighth of 800x600, decoded so by the JPEG library itself
QUANTITIES = {
    "brightness": "mean of luma, 0..255",
    "contrast": "standard deviation of luma, 0..127",
    "saturation": "mean of HSV saturation, 0..255",
    "sharpness": "mean step between neighbouring pixels of the small picture, in levels",
    "red": "mean of red, 0..255",
    "green": "mean of green, 0..255",
    "blue": "mean of blue, 0..255",
    "kilobytes": "size of the file",
}


class ImageStatistics(NamedTuple):
    """Statistics of one image, or the reason why it could not be read."""

    reason: str = ""
    width: int = 0
    height: int = 0
    values: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Group:
    """Images that are copies of one another; `exact` where all files are the same bytes.

    `labels` has each image's given label, None for an image that no row names.
    """

    names: tuple[str, ...]
    labels: tuple[int | None, ...]
    exact: bool

    @property
    def conflicting(self) -> bool:
        """Return whether two of the images have different labels."""
        return len({label for label in self.labels if label is not None}) > 1


@dataclass(frozen=True)
class Eda:
    """Everything that the page shows of a folder.

    `frame` has every row of the table whose image can be read, with `width`, `height` and the columns of `QUANTITIES`;
    `counts` (K,) are of all rows. `mean` and `std` (3,) are over all pixels, 0..1, RGB.
    """

    folder: Path
    image_dir: Path
    competition: Competition
    counts: np.ndarray
    frame: pd.DataFrame
    missing: tuple[str, ...]
    unreadable: dict[str, str]
    unlisted: tuple[str, ...]
    groups: tuple[Group, ...]
    mean: np.ndarray
    std: np.ndarray


def explore(
    data: Path, *, competition: Competition | None = None, cache: Path | None = None, progress: bool = True
) -> Eda:
    """Measure every training image once, small, on all cores, and compare all for copies.

    `cache` keeps the fingerprints that copies are found by (default: the kit's cache folder).

    Raises:
        FileNotFoundError: The folder has no table or no image folder.
        UserError: The table cannot be read, or no image can.
    """
    competition = competition or current()
    table = read_labels(data, competition)
    image_dir = data / competition.train_images
    present = list_training_images(data, competition)
    present |= {name for name in table["image_id"] if name not in present and _is_file(image_dir / name)}
    listed = [name for name in table["image_id"] if name in present]
    unlisted = tuple(sorted(present.difference(listed)))
    names = [*listed, *unlisted]
    paths = [image_dir / name for name in names]
    measured = dict(zip(names, in_threads(measure_image, paths, title="Looking", progress=progress), strict=True))
    readable = [name for name in names if not measured[name].reason]
    if not readable:
        raise UserError(f"no readable image in {image_dir} ({len(names)} files); check the download")
    label_of = dict(zip(table["image_id"], table["label"].tolist(), strict=True))
    prints = fingerprint(
        [image_dir / name for name in readable], cache=cache or cache_dir() / FINGERPRINT_CACHE, progress=progress
    )
    mean, std = pixel_statistics([measured[name] for name in readable])
    return Eda(
        folder=data,
        image_dir=image_dir,
        competition=competition,
        counts=np.bincount(table["label"], minlength=competition.n_classes),
        frame=_statistics(table, measured),
        missing=tuple(name for name in table["image_id"] if name not in present),
        unreadable={name: measured[name].reason for name in names if measured[name].reason},
        unlisted=unlisted,
        groups=copy_groups(readable, label_of, prints, progress=progress),
        mean=mean,
        std=std,
    )


def measure_image(path: Path) -> ImageStatistics:
    """Return one image's size and statistics, from a decode at an eighth of its size or more."""
    try:
        content = read_bytes(path)
        image = decode_small(content, SIDE)
        width, height = stored_size(content)
    except ImageError as error:
        return ImageStatistics(str(error))
    rgb = image.reshape(-1, 3).astype(np.float32)
    luma = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    highest, lowest = image.max(axis=2).astype(np.float32), image.min(axis=2)
    saturation = 255 * (1 - lowest / np.maximum(highest, 1))
    steps = [np.abs(np.diff(luma, axis=axis)).mean() if luma.shape[axis] > 1 else 0.0 for axis in (0, 1)]
    values = (luma.mean(), luma.std(), saturation.mean(), np.mean(steps), *rgb.mean(axis=0), len(content) / 1000)
    squares = tuple((rgb.astype(np.float64) ** 2).mean(axis=0).tolist())
    return ImageStatistics("", width, height, tuple(float(value) for value in values), squares)


def stored_size(content: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the file's header, before any EXIF rotation."""
    import warnings

    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                return image.size
    except Exception as error:
        raise ImageError(f"its size cannot be read ({type(error).__name__})") from None


def pixel_statistics(measured: Sequence[ImageStatistics]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of R, G and B (0..1), each image with the same weight."""
    mean = np.array([one.values[4:7] for one in measured]).mean(axis=0)
    square = np.array([one.squares for one in measured]).mean(axis=0)
    return mean / 255, np.sqrt(np.maximum(square - mean**2, 0)) / 255


def _statistics(table: pd.DataFrame, measured: dict[str, ImageStatistics]) -> pd.DataFrame:
    """Return the rows whose image can be read, with their statistics."""
    kept = table[[name in measured and not measured[name].reason for name in table["image_id"]]].reset_index(drop=True)
    mine = [measured[name] for name in kept["image_id"]]
    columns = dict(zip(QUANTITIES, np.array([one.values for one in mine]).reshape(-1, len(QUANTITIES)).T, strict=True))
    return kept.assign(width=[one.width for one in mine], height=[one.height for one in mine], **columns)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def copy_groups(
    names: Sequence[str], label_of: dict[str, int], prints: Fingerprints, *, progress: bool = False
) -> tuple[Group, ...]:
    """Return groups of two or more images: conflicting labels first, then exact copies, then by size."""
    group_of = group_duplicates(prints, progress=progress)
    members: dict[int, list[int]] = {}
    for n, group in enumerate(group_of.tolist()):
        members.setdefault(group, []).append(n)
    groups = [
        Group(
            tuple(names[n] for n in rows),
            tuple(label_of.get(names[n]) for n in rows),
            exact=bool((prints.digests[rows] == prints.digests[rows[0]]).all()),
        )
        for rows in members.values()
        if len(rows) > 1
    ]
    return tuple(sorted(groups, key=lambda g: (not g.conflicting, not g.exact, -len(g.names), g.names)))


def between_classes(values: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of a quantity's variance that lies between the classes (eta squared), 0..1."""
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0:
        return 0.0
    means = {k: values[labels == k].mean() for k in np.unique(labels)}
    between = sum((labels == k).sum() * (mean - values.mean()) ** 2 for k, mean in means.items())
    return float(between) / total


def sizes(frame: pd.DataFrame) -> pd.Series:
    """Return the number of images of each size, `width x height`, the most frequent first."""
    return (frame["width"].astype(str) + " × " + frame["height"].astype(str)).value_counts()
