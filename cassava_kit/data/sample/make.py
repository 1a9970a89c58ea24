"""Make the sample competition: Kaggle's layout, drawn leaves, known label errors. Entry point: `ensure_sample`."""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.data.progress import track
from cassava_kit.errors import UserError
from cassava_kit.files import cache_dir, csv_text, read_json, write_json, write_text

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_NAME = "sample-v1"
TRUTH_CSV = "truth.csv"
MARKER = "sample.json"
DUPLICATE_SHARE, UNLISTED_SHARE = 0.02, 0.005
N_TFRECORDS = 4


@dataclass(frozen=True)
class Photo:
    """One file to make: `picture` is what is drawn, `row` its number; where they differ it is a near-duplicate."""

    path: Path
    true_label: int
    picture: int
    row: int


def own_sample(competition: Competition) -> Path:
    """Return the sample competition's folder, made if missing; UserError for another competition than the sample's."""
    if competition != CASSAVA:
        raise UserError(f"the embedded sample is of {CASSAVA.slug}; give --data DIR, the folder of {competition.slug}")
    return ensure_sample()


def ensure_sample(folder: Path | None = None) -> Path:
    """Return the sample competition's folder, made if missing; default: `sample-v1` in the kit's cache.

    A sample that has lost files is made again.

    Raises:
        UserError: The folder holds anything else.
    """
    folder = cache_dir() / SAMPLE_NAME if folder is None else Path(folder)
    if _is_whole(folder):
        return folder
    if folder.exists() and not (folder / MARKER).is_file():
        _check_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = make_sample(Path(scratch) / "made")
        if folder.exists() and not _is_whole(folder):
            _check_own(folder, {path.name for path in made.iterdir()})
            folder.replace(Path(scratch) / "broken")
        try:
            made.replace(folder)
        except OSError:
            if not _is_whole(folder):  # whole: another process was faster
                raise
    return folder


def make_sample(folder: Path, *, n_train: int = 1200, n_test: int = 120, noise: float = 0.1, seed: int = 0) -> Path:
    """Make a sample competition in `folder`: the same bytes for the same arguments, machine and libraries.

    `noise` is the share of rows of `train.csv` with a wrong label; `truth.csv`, which no other module reads, has the
    true labels (`image_id,true_label,duplicate_of`, train and test). 2 % of the rows are near-duplicates of another
    row, and a few training images have no row.
    """
    folder = Path(folder)
    plan = _plan(n_train, n_test, noise=noise, seed=seed)
    _check_empty(folder)
    photos = _photos(folder, plan)
    _write_photos(photos, seed)
    _write_tables(folder, plan)
    made_with = {"n_train": n_train, "n_test": n_test, "noise": noise, "seed": seed}
    write_json(folder / MARKER, {**made_with, "n_photos": len(photos)})
    return folder


def _is_whole(folder: Path) -> bool:
    """Return whether `folder` is a sample competition with all its photographs and tables."""
    if not (folder / MARKER).is_file():
        return False
    names = (CASSAVA.train_csv, CASSAVA.sample_submission, CASSAVA.label_map, TRUTH_CSV)
    photos = [path for name in (CASSAVA.train_images, CASSAVA.test_images) for path in (folder / name).glob("*.jpg")]
    records = list((folder / CASSAVA.train_tfrecords).glob("*.tfrec"))
    whole = all((folder / name).is_file() for name in names) and len(records) == N_TFRECORDS
    return whole and len(photos) >= read_json(folder / MARKER)["n_photos"]


def _check_own(folder: Path, names: set[str]) -> None:
    """Raise UserError where a sample that is to be made again holds foreign files."""
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in names):
        raise UserError(
            f"{folder} has lost files of the sample, and {foreign[0]} is not part of it; move it or name another folder"
        )


def _check_empty(folder: Path) -> None:
    """Raise UserError where `folder` holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} must be a new or empty folder, or a sample competition made before; name another")


# --- the plan ------------------------------------------------------------------------------------------------------


def _plan(n_train: int, n_test: int, *, noise: float, seed: int) -> pd.DataFrame:
    """Return one row per photograph: image_id, split, label (given), true_label, picture (row of its drawing)."""
    import pandas as pd

    if n_train < 50 or n_test < 1:
        raise UserError(f"n_train must be at least 50 and n_test at least 1, got {n_train} and {n_test}")
    if not 0 <= noise <= 0.3:
        raise UserError(f"noise must be in 0..0.3 (swaps need rows of other classes), got {noise}")
    rng = np.random.default_rng([seed, 0])
    n_unlisted = max(1, round(UNLISTED_SHARE * n_train))
    true = np.concatenate([_labels(n_train, rng), _labels(n_test, rng), rng.integers(0, CASSAVA.n_classes, n_unlisted)])
    given, picture = true.copy(), np.arange(len(true))
    given[:n_train] = _swap_labels(true[:n_train], round(noise * n_train / 2), rng)
    picture[:n_train] = _repeat_pictures(true[:n_train], round(DUPLICATE_SHARE * n_train), rng)
    split = np.repeat(["train", "test", "unlisted"], [n_train, n_test, n_unlisted])
    ids = [f"{number}{CASSAVA.image_suffix}" for number in _numbers(len(true), rng)]
    return pd.DataFrame({"image_id": ids, "split": split, "label": given, "true_label": true, "picture": picture})


def _labels(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return `n` shuffled labels in the competition's shares, to within one row."""
    edges = np.round(np.cumsum((0, *CASSAVA.class_shares)) * n).astype(int)
    return rng.permutation(np.repeat(np.arange(CASSAVA.n_classes), np.diff(edges)))


def _swap_labels(labels: np.ndarray, n_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Exchange the labels of `n_pairs` random pairs of different classes; class shares are unchanged."""
    given, free = labels.copy(), rng.permutation(len(labels))
    for _ in range(n_pairs):
        first, others = free[0], free[1:]
        second = rng.choice(others[labels[others] != labels[first]])
        given[first], given[second] = labels[second], labels[first]
        free = others[others != second]
    return given


def _repeat_pictures(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return each row's picture as a row number: for `n` rows another row of the class, else the row itself."""
    picture = np.arange(len(labels))
    copies = rng.choice(len(labels), n, replace=False)
    originals = np.setdiff1d(picture, copies)
    for copy in copies:
        same = originals[labels[originals] == labels[copy]]
        picture[copy] = rng.choice(same)
    return picture


def _numbers(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return `n` different numbers like those in the competition's image names."""
    numbers = np.unique(rng.integers(10**6, 2**32, 2 * n))
    return rng.permutation(numbers)[:n]


# --- the files -----------------------------------------------------------------------------------------------------


def _photos(folder: Path, plan: pd.DataFrame) -> list[Photo]:
    """Return the files to make, one for each row of the plan."""
    folders = {"train": CASSAVA.train_images, "unlisted": CASSAVA.train_images, "test": CASSAVA.test_images}
    columns = (plan[name].tolist() for name in ("image_id", "split", "true_label", "picture"))
    return [
        Photo(folder / folders[split] / image_id, label, picture, row)
        for row, (image_id, split, label, picture) in enumerate(zip(*columns, strict=True))
    ]


def _write_photos(photos: list[Photo], seed: int) -> None:
    """Draw and write all photographs on all cores, with a progress bar on standard error."""
    for folder in {photo.path.parent for photo in photos}:
        folder.mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(partial(_write_photo, seed=seed), photos)
        deque(track(written, "Drawing the sample competition", total=len(photos)), maxlen=0)


def _write_photo(photo: Photo, seed: int) -> None:
    """Draw and write one photograph."""
    photo.path.write_bytes(_jpeg(photo, seed))


def _jpeg(photo: Photo, seed: int) -> bytes:
    """Return the photograph's file content."""
    import cv2

    from cassava_kit.data.sample.leaves import draw_photo

    image = draw_photo(photo.true_label, np.random.default_rng([seed, 1, photo.picture]))
    rng = np.random.default_rng([seed, 2, photo.row])
    if photo.picture != photo.row:
        image = _near_copy(image, rng)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(82, 96))]
    done, content = cv2.imencode(".jpg", image[..., ::-1], quality)
    assert done
    return content.tobytes()


def _near_copy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the picture slightly cropped and slightly brighter or darker."""
    import cv2

    height, width = image.shape[:2]
    top, left, bottom, right = rng.integers(0, 3, 4)
    cropped = image[top : height - bottom, left : width - right]
    resized = cv2.resize(cropped, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(resized * rng.uniform(0.93, 1.07) + 0.5, 0, 255).astype(np.uint8)


def _write_tables(folder: Path, plan: pd.DataFrame) -> None:
    """Write the CSV files, the label map and the TFRecords."""
    from cassava_kit.data.tfrecords.records import write_tfrecords

    by_id = plan.sort_values("image_id", kind="stable")
    train, test = by_id[by_id["split"] == "train"], by_id[by_id["split"] == "test"]
    listed = by_id[by_id["split"] != "unlisted"]
    original = plan["image_id"].to_numpy()[listed["picture"]]
    truth = listed[["image_id", "true_label"]].assign(
        duplicate_of=np.where(original == listed["image_id"], "", original)
    )
    write_text(folder / CASSAVA.train_csv, csv_text(train[["image_id", "label"]]))
    write_text(folder / CASSAVA.sample_submission, csv_text(test[["image_id"]].assign(label=4)))
    write_text(folder / CASSAVA.label_map, json.dumps({str(k): name for k, name in enumerate(CASSAVA.classes)}))
    write_text(folder / TRUTH_CSV, csv_text(truth))
    write_tfrecords(
        folder / CASSAVA.train_tfrecords, train, image_dir=folder / CASSAVA.train_images, n_files=N_TFRECORDS
    )
