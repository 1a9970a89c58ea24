"""A split into folds and its file, which runs, predictions and scores name by its hash. Entry point: `read_folds`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pandas as pd

from cassava_kit.competition import Task, read_task
from cassava_kit.errors import UserError
from cassava_kit.files import (
    check_names,
    csv_text,
    find_file,
    header_path,
    read_csv,
    read_object,
    sha256_bytes,
    write_json,
    write_text,
)

# Values of `fold` that are no fold: rows that every run trains on (as in sklearn's PredefinedSplit), and the test part.
TRAIN_ONLY, TEST = -1, -2


class GroupCounts(NamedTuple):
    """Groups of near-duplicates that a split keeps together: how many, their images, and the largest one's images."""

    groups: int
    images: int
    largest: int


@dataclass(frozen=True)
class Folds:
    """A split of all training rows: columns `image_id,label,fold`, sorted by `image_id`.

    `fold` is 0..n_splits-1: the fold in which a row is validated. In a holdout split the validation part is fold 0, the
    rows of the training part have fold -1, and those of a test part, which no run trains on or is scored on, -2.
    `near_duplicates` counts the groups that were kept together; None where near-duplicates were not looked for.
    `task` says what competition the labels are of.
    """

    frame: pd.DataFrame
    method: str = "unknown"
    seed: int | None = None
    near_duplicates: GroupCounts | None = None
    task: Task | None = None

    @property
    def n_splits(self) -> int:
        """Number of folds, each of which one run validates on; 1 for a holdout split."""
        return int(self.frame["fold"].max()) + 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file's bytes: the name by which predictions and checkpoints know this split."""
        return sha256_bytes(to_csv(self.frame).encode())

    @cached_property
    def scored(self) -> pd.DataFrame:
        """Rows of all folds: those that out-of-fold predictions cover and scores are about."""
        return self.frame[self.frame["fold"] >= 0].reset_index(drop=True)

    @cached_property
    def test(self) -> pd.DataFrame:
        """Rows of the test part; empty where the split has none."""
        return self.frame[self.frame["fold"] == TEST].reset_index(drop=True)

    def check_fold(self, fold: int) -> int:
        """Return `fold` if this split has it.

        Raises:
            UserError: It has not; the message says which it has.
        """
        if not 0 <= fold < self.n_splits:
            raise UserError(
                f"fold must be in 0..{self.n_splits - 1}, got {fold}; the fold file has {self.n_splits} folds"
            )
        return fold

    def validation(self, fold: int) -> pd.DataFrame:
        """Rows of one fold: what a model trained on the other folds is scored on."""
        return self.frame[self.frame["fold"] == self.check_fold(fold)].reset_index(drop=True)

    def training(self, fold: int) -> pd.DataFrame:
        """Rows of all other folds, without the test part."""
        return self.frame[~self.frame["fold"].isin((self.check_fold(fold), TEST))].reset_index(drop=True)


def to_csv(frame: pd.DataFrame) -> str:
    """Return the fold file's text: the same for the same rows."""
    return csv_text(frame[["image_id", "label", "fold"]])


def labels_hash(frame: pd.DataFrame) -> str:
    """Return the SHA-256 of the labels alone (`image_id,label`, sorted by id): equal for two splits of one table."""
    ordered = frame[["image_id", "label"]].sort_values("image_id", kind="stable")
    return sha256_bytes(csv_text(ordered).encode())


def write_folds(path: str | Path, folds: Folds, *, replace: bool = False) -> None:
    """Write `<name>.csv` and, beside it, `<name>.json` (method, seed, n_splits, groups, task, hashes), each atomically.

    Raises:
        UserError: Another split is there, and `replace` is off: runs and predictions may name it.
    """
    path = Path(path)
    beside = header_path(path)
    check_free(path, folds, replace=replace)
    write_text(path, to_csv(folds.frame))
    write_json(beside, _header(folds))


def check_free(path: Path, folds: Folds, *, replace: bool = False) -> None:
    """Raise UserError where another split than `folds` is at `path`, unless it is to be replaced."""
    if path.is_file() and not replace and path.read_bytes() != to_csv(folds.frame).encode():
        _refuse(path)


def check_remade(
    path: Path, labels: pd.DataFrame, *, method: str, seed: int, n_splits: int, replace: bool = False
) -> None:
    """Raise UserError where a split made otherwise, or of other labels, is at `path`: said before slow work."""
    beside = header_path(path)
    if replace or not path.is_file() or not beside.is_file():
        return
    wanted = {"method": method, "seed": seed, "n_splits": n_splits, "labels_sha256": labels_hash(labels)}
    header = read_object(beside)
    if any(header.get(key) != value for key, value in wanted.items()):
        _refuse(path)


def _refuse(path: Path) -> NoReturn:
    raise UserError(
        f"{path} is another split, which runs and predictions may name; give another --out, or --replace to write over "
        "it"
    )


def _header(folds: Folds) -> dict[str, Any]:
    """What `<name>.json` says."""
    counts = folds.near_duplicates
    return {
        **(folds.task.header() if folds.task else {}),
        "method": folds.method,
        "seed": folds.seed,
        "n_splits": folds.n_splits,
        "n_rows": len(folds.frame),
        "near_duplicates": None if counts is None else counts._asdict(),
        "labels_sha256": labels_hash(folds.frame),
        "folds_sha256": folds.hash,
    }


def read_folds(path: str | Path) -> Folds:
    """Read and check a fold file; a `.json` beside it must agree with it.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no fold file, or not the one that its header describes.
    """
    path = find_file(path, "fold file", f"make one with: python -m cassava_kit folds --data DIR --out {path}")
    frame = read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    if list(frame.columns) != ["image_id", "label", "fold"]:
        raise UserError(f"{path} must have the columns image_id,label,fold, got {','.join(frame.columns)}")
    if frame.empty:
        raise UserError(f"{path} has no rows; make it again with: python -m cassava_kit folds")
    if (frame["image_id"] == "").any() or not all(pd.api.types.is_integer_dtype(frame[c]) for c in ("label", "fold")):
        raise UserError(f"{path} must have whole numbers in label and fold and no empty cell; make it again")
    check_names(frame["image_id"], path)
    repeated = frame["image_id"][frame["image_id"].duplicated()]
    if len(repeated):
        raise UserError(f"{path} names {repeated.iloc[0]} more than once; each image belongs to one fold")
    _check_numbers(path, frame["fold"])
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    beside = header_path(path)
    header = read_object(beside) if beside.is_file() else {}
    counts = header.get("near_duplicates")
    try:
        near_duplicates = None if counts is None else GroupCounts(**counts)
    except TypeError:
        raise UserError(f"{beside} must count groups, images and largest, got {counts}; make it again") from None
    task = read_task(header, str(beside))
    folds = Folds(frame, header.get("method", "unknown"), header.get("seed"), near_duplicates, task)
    if header and header.get("folds_sha256") != folds.hash:
        raise UserError(f"{path} is not the file that {beside.name} describes (its hash differs); make both again")
    return folds


def _check_numbers(path: Path, fold: pd.Series) -> None:
    """Raise UserError for fold numbers with which no run could be trained and scored."""
    present = sorted(fold.unique().tolist())
    folds = [number for number in present if number >= 0]
    if not folds or folds != list(range(len(folds))) or present[0] < TEST:
        raise UserError(
            f"{path} must number its folds 0..n-1 (and {TRAIN_ONLY} for rows of training alone, {TEST} for a test "
            f"part), got {present}"
        )
    if len(folds) == 1 and TRAIN_ONLY not in present:
        raise UserError(f"{path} has one fold and no other row to train on; make it again")
