"""Make a competition folder of any size up to the real one's from few photographs. Entry point: `competition_folder`.

Each photograph blends, by a smooth random mask, a crop of a real one, mirrored or transposed, with a crop of another.
The duplicate search finds two of them no more alike than two real ones, whereas it would find crops of one photograph.
They are saved at the quality at which their files are as large as the real ones. Ids and labels are the competition's;
labels do not depend on the pictures. Every hundredth training photograph is a near-duplicate of one of the 98 before
it.

Each file depends on the seed and its row alone: a folder of n has the first n rows of the largest. An interrupted run
is resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cassava_kit.competition import CASSAVA
from cassava_kit.data.images import in_threads, read_image
from cassava_kit.data.table import list_images
from cassava_kit.files import atomic_path, read_json, sha256_file, write_json, write_text

N_TEST = 15_000
SIZE = (800, 600)  # width, height of the competition's photographs
TRAIN, TEST, TEST_IDS = 0, 1, 2  # streams of random numbers
COPY_EVERY, COPY_REACH = 100, 98
LEAST_CROP = 0.7
COPY_CROP = 0.96
MASK = (4, 5)  # cells of the smooth mask, rows and columns
SHARPNESS = 4.0  # how soon one photograph gives way to the other
BRIGHTNESS = 0.25
SAMPLE = 40  # photographs by which the JPEG quality is chosen
FACTS = "photographs.json"


@dataclass(frozen=True)
class Originals:
    """The real photographs, the mean size of their files in bytes, and a hash of them all."""

    images: tuple[np.ndarray, ...]
    mean_bytes: float
    sha256: str


@dataclass(frozen=True)
class Photographs:
    """Originals and seed, from which every file is drawn; `quality` is the JPEG quality."""

    originals: Originals
    seed: int = 0

    def train(self, row: int, size: tuple[int, int] = SIZE) -> np.ndarray:
        """Return the training photograph of a row at (width, height): BGR (H, W, 3) uint8."""
        source = copied_row(row, self.seed)
        if source is None:
            return compose(self.originals.images, self._rng(TRAIN, row), size)
        return near_duplicate(self.train(source, size), self._rng(TRAIN, row))

    def test(self, row: int, size: tuple[int, int] = SIZE) -> np.ndarray:
        """Return the test photograph of a row."""
        return compose(self.originals.images, self._rng(TEST, row), size)

    @cached_property
    def quality(self) -> int:
        """The JPEG quality, found by bisection, at which a sample's files are on average as large as the originals'."""
        sample = [self.train(row) for row in range(SAMPLE)]
        low, high = 40, 98
        while low < high:
            quality = (low + high) // 2
            if np.mean([len(encode(image, quality)) for image in sample]) < self.originals.mean_bytes:
                low = quality + 1
            else:
                high = quality
        return low

    def _rng(self, stream: int, row: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, row))


def read_originals(folder: Path) -> Originals:
    """Read all photographs of a folder, BGR."""
    paths = [folder / name for name in list_images(folder)]
    if len(paths) < 2:
        raise ValueError(f"expected at least two photographs in {folder}, got {len(paths)}")
    images = tuple(np.ascontiguousarray(read_image(path)[:, :, ::-1]) for path in paths)
    digest = hashlib.sha256("".join(map(sha256_file, paths)).encode()).hexdigest()
    return Originals(images, float(np.mean([path.stat().st_size for path in paths])), digest)


def copied_row(row: int, seed: int) -> int | None:
    """Return the row of which a training row is a near-duplicate, or None."""
    if row % COPY_EVERY != COPY_EVERY - 1:
        return None
    return row - 1 - int(np.random.default_rng((seed, row)).integers(COPY_REACH))


def compose(originals: Sequence[np.ndarray], rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return a blend of crops of two originals, brighter or darker: BGR at (width, height)."""
    a, b = rng.choice(len(originals), 2, replace=False)
    first, second = (crop(originals[k], rng, size, least=LEAST_CROP) for k in (a, b))
    field = cv2.resize(rng.normal(size=MASK).astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    mask = 1 / (1 + cv2.exp(-SHARPNESS * field))
    return brighter(cv2.blendLinear(first, second, mask, 1 - mask), rng, BRIGHTNESS)


def near_duplicate(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the photograph slightly cropped, perhaps mirrored, slightly brighter or darker."""
    height, width = image.shape[:2]
    return brighter(crop(image, rng, (width, height), least=COPY_CROP, transposes=False), rng, BRIGHTNESS / 2)


def crop(
    image: np.ndarray, rng: np.random.Generator, size: tuple[int, int], *, least: float, transposes: bool = True
) -> np.ndarray:
    """Return a crop of at least `least` of the largest one's sides, in a random position of a rectangle, at `size`."""
    transposed = transposes and bool(rng.integers(2))
    aspect = size[1] / size[0] if transposed else size[0] / size[1]
    height, width = image.shape[:2]
    share = rng.uniform(least, 1)
    w, h = round(share * min(width, height * aspect)), round(share * min(height, width / aspect))
    left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
    part = image[top : top + h, left : left + w]
    part = part.transpose(1, 0, 2) if transposed else part
    part = part[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    smaller = size[0] < part.shape[1]
    return cv2.resize(np.ascontiguousarray(part), size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def brighter(image: np.ndarray, rng: np.random.Generator, most: float) -> np.ndarray:
    """Return the photograph, brighter or darker by at most the share `most`."""
    return cv2.convertScaleAbs(image, alpha=1 + rng.uniform(-most, most))


def encode(image: np.ndarray, quality: int) -> bytes:
    """Return the photograph as a JPEG."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def names_of_test(n: int, taken: set[str], *, seed: int) -> list[str]:
    """Return names of the first n test photographs, ten digits as the competition's, none of them in `taken`."""
    numbers = np.random.default_rng((seed, TEST_IDS)).permutation(np.arange(10**9, 4 * 10**9, 99_991))
    return [name for k in numbers if (name := f"{k}.jpg") not in taken][:n]


def competition_folder(cache: Path, real: Path, n_train: int, *, n_test: int, seed: int = 0) -> Path:
    """Return a competition folder of the first rows in Kaggle's layout under `cache`, made or resumed where needed.

    `real` holds originals/ (photographs) and tables/oof_rank14.csv (the ids and labels of all training rows). Folders
    of other sizes share the files by hard links.

    Raises:
        ValueError: The cache was made of other photographs or with another seed.
    """
    rows = pd.read_csv(real / "tables" / "oof_rank14.csv", dtype={"image_id": str})[["image_id", "label"]]
    if n_train > len(rows) or n_test > N_TEST:
        raise ValueError(
            f"at most {len(rows)} training and {N_TEST} test images can be made, got {n_train} and {n_test}"
        )
    train_names = rows["image_id"].tolist()[:n_train]
    test_names = names_of_test(n_test, set(rows["image_id"]), seed=seed)
    photographs = Photographs(read_originals(real / "originals"), seed)
    pool = cache / "photographs"
    quality = _settle(pool / FACTS, photographs)
    folder = cache / f"train{n_train}-test{n_test}"
    for sub, names, draw in (
        (CASSAVA.train_images, train_names, photographs.train),
        (CASSAVA.test_images, test_names, photographs.test),
    ):
        fill(pool / sub, names, partial(_file, draw, quality))
        link(pool / sub, names, folder / sub)
    write_text(folder / CASSAVA.train_csv, rows[:n_train].to_csv(index=False))
    sample = pd.DataFrame({"image_id": test_names, "label": CASSAVA.majority})
    write_text(folder / CASSAVA.sample_submission, sample.to_csv(index=False))
    write_json(folder / CASSAVA.label_map, {str(k): name for k, name in enumerate(CASSAVA.classes)})
    return folder


def _file(draw: Callable[[int], np.ndarray], quality: int, row: int) -> bytes:
    return encode(draw(row), quality)


def _settle(file: Path, photographs: Photographs) -> int:
    """Return the JPEG quality of the files in a pool; ValueError where they were made of other photographs."""
    facts = {"layout": 1, "seed": photographs.seed, "originals": photographs.originals.sha256}
    if not file.is_file():
        write_json(file, {**facts, "quality": photographs.quality})
    found = read_json(file)
    quality = int(found.pop("quality"))
    if found != facts:
        raise ValueError(f"{file.parent} has photographs of other originals or of another seed; give another --cache")
    return quality


def fill(folder: Path, names: Sequence[str], content: Callable[[int], bytes]) -> None:
    """Write the files that are missing, each atomically; `content` returns a row's bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in folder.iterdir()}
    missing = [row for row, name in enumerate(names) if name not in present]

    def write(row: int) -> None:
        with atomic_path(folder / names[row]) as temporary:
            temporary.write_bytes(content(row))

    for _ in in_threads(write, missing, title=f"Making {folder.name}", progress=bool(missing)):
        pass


def link(pool: Path, names: Sequence[str], folder: Path) -> None:
    """Make hard links in `folder` to exactly these files of the pool."""
    folder.mkdir(parents=True, exist_ok=True)
    present = {path.name for path in folder.iterdir()}
    for name in present.difference(names):
        (folder / name).unlink()
    for name in names:
        if name not in present:
            (folder / name).hardlink_to(pool / name)
