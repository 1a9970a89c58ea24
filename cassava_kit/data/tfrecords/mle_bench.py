"""The split of the competition that MLE-bench uses (Chan et al. 2024); entry point `prepare_mle_bench`.

The training records' files, sorted, are divided by scikit-learn's `train_test_split(test_size=.1, random_state=0)`.
Rows whose image lies in one of the test files become the test set.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cassava_kit.competition import CASSAVA
from cassava_kit.data.progress import track
from cassava_kit.data.tfrecords.example import parse_example
from cassava_kit.data.tfrecords.records import IMAGE_NAME, read_records
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path, find_file, find_folder, read_csv

if TYPE_CHECKING:
    import pandas as pd

PUBLIC, PRIVATE = "public", "private"
ANSWERS, SAMPLE_SUBMISSION = "test.csv", "sample_submission.csv"
PLACEHOLDER_LABEL = 4  # every row of the sample submission has it
REMEDY = "give the folder of the downloaded competition"
CLASS_NAMES = "label_num_to_disease_map.json"
# MLE-bench's checksums of what it makes of the whole competition (mlebench/competitions/…/checksums.yaml).
COMPETITION_ROWS = 21397
# In two halves each: 32 digits in one are the shape of an access token, which no packed file may hold.
MD5_SUMS = {
    f"{PUBLIC}/{SAMPLE_SUBMISSION}": "b27270a483141fa2" + "17d990d55b4b3d49",
    f"{PUBLIC}/train.csv": "fede2927f0d41259" + "0f195abfbd07b578",
    f"{PRIVATE}/{ANSWERS}": "34b2b412be39aba1" + "edac9c04990e4fb8",
}


@dataclass(frozen=True)
class PreparedBenchmark:
    """What was made: rows of both parts, the test set's record files, and for each file whether its md5 sum is right.

    `md5_right` is empty where the table is not the whole competition's.
    """

    out: Path
    train_rows: int
    test_rows: int
    test_files: tuple[str, ...]
    md5_right: dict[str, bool]

    @property
    def ok(self) -> bool:
        """Whether no md5 sum differs from MLE-bench's."""
        return all(self.md5_right.values())

    def __str__(self) -> str:
        lines = [
            f"{self.out / PUBLIC}: {self.train_rows:,} training rows, {self.test_rows:,} test images "
            f"(the images of {' and '.join(self.test_files)})",
            f"{self.out / PRIVATE / ANSWERS}: the test images' labels",
        ]
        if not self.md5_right:
            rows = self.train_rows + self.test_rows
            lines.append(f"md5 sums not compared: they are of {COMPETITION_ROWS:,} rows, this table has {rows:,}")
        for name, right in self.md5_right.items():
            lines.append(f"{name}: md5 {MD5_SUMS[name]} {'as in MLE-bench' if right else 'expected, got another'}")
        return "\n".join(lines)


def prepare_mle_bench(data: Path, out: Path) -> PreparedBenchmark:
    """Make MLE-bench's `public/` and `private/` of a downloaded competition, with hard links where the disk allows.

    Args:
        data: the competition's folder: `train.csv`, `train_images/`, `train_tfrecords/`, the map of class names.
        out: a folder that is new or empty.

    Raises:
        UserError: something of `data` is missing, the records do not fit the table, or `out` holds files.
    """
    files, table = _find_records(data), data / CASSAVA.train_csv
    for needed in (table, data / CLASS_NAMES):
        find_file(needed, "file", REMEDY)
    find_folder(data / CASSAVA.train_images, REMEDY)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} holds files already; give a new folder")
    rows = read_csv(table)
    if list(rows.columns) != ["image_id", "label"]:
        raise UserError(f"{table} must have the columns image_id,label as the competition's, got {list(rows.columns)}")
    missing = [name for name in rows["image_id"] if not (data / CASSAVA.train_images / str(name)).is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images of {table} are missing, the first is {missing[0]}; {REMEDY}")
    train_files, test_files = split_records(files)
    of_test = rows["image_id"].isin(_image_names(test_files))
    if not of_test.any() or of_test.all():
        raise UserError(
            f"{int(of_test.sum())} of {len(rows)} rows of {table} are in the test records; give the records and the "
            "table of one competition"
        )
    train, test = rows[~of_test], rows[of_test]
    for folder, ids in ((CASSAVA.train_images, train), (CASSAVA.test_images, test)):
        for image_id in track(list(ids["image_id"]), f"Linking {folder}"):
            _link(data / CASSAVA.train_images / image_id, out / PUBLIC / folder / image_id)
    for part, paths in (("train", train_files), ("test", test_files)):
        for number, path in enumerate(paths):
            name = f"ld_{part}{number:02d}-{path.stem.split('-')[-1]}.tfrec"
            _link(path, out / PUBLIC / f"{part}_tfrecords" / name)
    _link(data / CLASS_NAMES, out / PUBLIC / CLASS_NAMES)
    tables = {
        f"{PUBLIC}/{CASSAVA.train_csv}": train,
        f"{PUBLIC}/{SAMPLE_SUBMISSION}": test.assign(label=PLACEHOLDER_LABEL),
        f"{PRIVATE}/{ANSWERS}": test,
    }
    for name, content in tables.items():
        _write_table(out / name, content)
    whole = len(rows) == COMPETITION_ROWS
    right = {name: _md5(out / name) == wanted for name, wanted in MD5_SUMS.items()} if whole else {}
    return PreparedBenchmark(out, len(train), len(test), tuple(path.name for path in test_files), right)


def split_records(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files of the training and of the test part, each in scikit-learn's order."""
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(sorted(files), test_size=0.1, random_state=0)
    return list(train), list(test)


def _find_records(data: Path) -> list[Path]:
    folder = data / "train_tfrecords"
    files = sorted(folder.glob("*.tfrec")) if folder.is_dir() else []
    if len(files) < 2:
        raise FileNotFoundError(
            f"expected the competition's records in {folder} (16 .tfrec files), found {len(files)}; {REMEDY}"
        )
    return files


def _image_names(files: Sequence[Path]) -> set[str]:
    """Return the images that the records of these files name."""
    names = set()
    for path in track(list(files), "Reading TFRecords"):
        for record in read_records(path):
            (name,) = parse_example(record.data).get(IMAGE_NAME) or (None,)
            if not isinstance(name, bytes):
                raise UserError(f"{path}, record {record.number}: it has no {IMAGE_NAME}")
            names.add(name.decode("utf-8"))
    return names


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table byte for byte as MLE-bench does."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
