"""Labels -> folds, and the fold file that runs, predictions and scores name by its hash; start at `make_folds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cassava_kit.competition import Task, read_task
from cassava_kit.data.stratify import GroupCounts, assign_parts, check_parts, count_groups
from cassava_kit.errors import UserError
from cassava_kit.files import csv_text, header_path, read_csv, read_json, sha256_bytes, write_json, write_text
from cassava_kit.settings import LARGEST_SEED

# Values of `fold` that are no fold: rows that every run trains on (as in sklearn's PredefinedSplit), and the test part.
TRAIN_ONLY, TEST = -1, -2
PARTS = {2: (TRAIN_ONLY, 0), 3: (TRAIN_ONLY, 0, TEST)}


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


def make_folds(
    table: pd.DataFrame | ArrayLike,
    n_splits: int = 5,
    *,
    seed: int = 42,
    groups: str | ArrayLike | None = None,
    id_column: str = "image_id",
    label_column: str = "label",
) -> pd.DataFrame:
    """Return the validation fold of each row, stratified by label.

    `table` has one row an image, N in all, with its id and its label (a number or text); a sequence of labels will do,
    whose ids are then 0..N-1. Rows of one group, e.g. near-duplicates (`find_duplicates`) or photographs of one plant,
    stay in one fold; `groups` names a column of the table, or has a group for each row. Without groups each class's
    count in every fold is within one row of its share. The folds depend on ids, labels, groups and seed, not on the
    order of the rows.

    Returns:
        The columns `id_column`, `label_column` and `fold` (int, 0..n_splits-1), with the table's rows and index.

    Raises:
        UserError: A column is missing, an id repeated, a label or group missing, a class has fewer rows than there are
            folds, or a group is so large that a fold would lack a class.

    Example:
        >>> train = pd.DataFrame({"image_id": list("abcdef"), "label": ["cat", "dog"] * 3})
        >>> make_folds(train, n_splits=3, seed=0)["fold"].value_counts().tolist()
        [2, 2, 2]
        >>> make_folds([0, 0, 1, 1], n_splits=2, groups=["p", "q", "q", "p"]).query("fold == 0")["image_id"].tolist()
        [1, 2]
    """
    if not isinstance(table, pd.DataFrame):
        labels = _as_sequence(table, "table", "a DataFrame, or a sequence of labels")
        table = pd.DataFrame({id_column: range(len(labels)), label_column: labels})
    wanted = [id_column, label_column, *([groups] if isinstance(groups, str) else [])]
    if missing := [column for column in wanted if column not in table.columns]:
        raise UserError(
            f"expected the columns {', '.join(wanted)}, got {', '.join(map(str, table.columns))}; {missing[0]!r} is "
            "missing: name it by id_column=, label_column= or groups="
        )
    group_ids = None
    if groups is not None:
        each = table[groups] if isinstance(groups, str) else groups
        group_ids = pd.Series(_as_sequence(each, "groups", "a column's name, or one group for each row"))
    rows = pd.DataFrame({"image_id": table[id_column].to_numpy(), "label": table[label_column].to_numpy()})
    for name, column in ((id_column, rows["image_id"]), (label_column, rows["label"]), ("groups", group_ids)):
        if column is not None and (empty := column.isna().to_numpy()).any():
            raise UserError(
                f"{name} must have a value in every row, {empty.sum()} of {len(empty)} have none (first: row "
                f"{np.argmax(empty)}); fill or drop them"
            )
    if (repeated := rows["image_id"].duplicated()).any():
        raise UserError(
            f"{id_column} names {rows['image_id'][repeated].iloc[0]!r} more than once; each row has its own"
        )
    # Groups may be of any kind, tuples included: their codes will do.
    codes = None if group_ids is None else pd.factorize(group_ids)[0]
    split = split_folds(rows, n_splits=n_splits, seed=seed, groups=codes)
    fold = split.frame.set_index("image_id")["fold"].loc[rows["image_id"]].to_numpy()
    return table[[id_column, label_column]].assign(fold=fold)


def _as_sequence(values: Any, name: str, expected: str) -> list[Any]:
    """Return one-dimensional values as a list; UserError for text, a dictionary, a number or a table."""
    if (
        isinstance(values, str | bytes | Path | dict)
        or getattr(values, "ndim", 1) != 1
        or not hasattr(values, "__len__")
    ):
        raise UserError(f"{name} must be {expected}, got {type(values).__name__}")
    return list(values)


def split_folds(
    labels: pd.DataFrame,
    *,
    n_splits: int = 5,
    seed: int = 42,
    groups: np.ndarray | None = None,
    task: Task | None = None,
) -> Folds:
    """Return stratified folds of `labels` (`image_id,label`); rows that share a group stay in one fold.

    Without groups each class's count in every fold is within one image of its ideal share. The result depends on
    the rows, not on their order.

    Raises:
        UserError: A class has fewer rows than there are folds, or a group is so large that a fold lacks a class.
    """
    from sklearn.model_selection import StratifiedKFold

    if not isinstance(n_splits, int | np.integer) or n_splits < 2:
        raise UserError(f"n_splits must be a whole number of at least 2, got {n_splits}")
    frame, groups = _prepare(labels, groups, n_parts=n_splits, seed=seed)
    y = frame["label"].to_numpy()
    if groups is not None:
        shares = {f"fold {k}": 1 / n_splits for k in range(n_splits)}
        fold = assign_parts(y, list(shares.values()), seed=seed, groups=groups)
        check_parts(frame, fold, shares, groups)
        return Folds(frame.assign(fold=fold), "stratified-group-kfold", seed, count_groups(groups), task)
    fold = np.full(len(frame), -1)
    for k, (_, validation) in enumerate(StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(y, y)):
        fold[validation] = k
    return Folds(frame.assign(fold=fold), "stratified-kfold", seed, task=task)


def split_holdout(
    labels: pd.DataFrame,
    shares: Sequence[float],
    *,
    seed: int = 42,
    groups: np.ndarray | None = None,
    task: Task | None = None,
) -> Folds:
    """Return one stratified holdout split of `labels` (`image_id,label`) as folds.

    `shares` are those of training and validation, and of a test part if there are three; they sum to 1. Validation is
    fold 0, the only one. Without groups each class's count in every part is within one image of its ideal share.

    Raises:
        UserError: The shares do not fit, a class has fewer rows than there are parts, or a part lacks a class.
    """
    if len(shares) not in PARTS or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"shares must be two or three positive numbers that sum to 1, e.g. .6 .2 .2, got {shares}")
    frame, groups = _prepare(labels, groups, n_parts=len(shares), seed=seed)
    part = assign_parts(frame["label"].to_numpy(), shares, seed=seed, groups=groups)
    percents = "-".join(f"{100 * share:g}" for share in shares)
    names = [f"the {name} part of {percents}" for name in ("training", "validation", "test")]
    check_parts(frame, part, dict(zip(names, shares, strict=False)), groups)
    method, counts = ("holdout", None) if groups is None else ("group-holdout", count_groups(groups))
    fold = np.array(PARTS[len(shares)])[part]
    return Folds(frame.assign(fold=fold), f"stratified-{method}-{percents}", seed, counts, task)


def _prepare(
    labels: pd.DataFrame, groups: np.ndarray | None, *, n_parts: int, seed: int
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Return the rows, and their groups, in the order of `image_id`; UserError where they cannot be split."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed must be a whole number in 0..{LARGEST_SEED}, got {seed}")
    if groups is not None and len(groups) != len(labels):
        raise UserError(f"groups must name one group for each of {len(labels)} rows, got {len(groups)}")
    counts = labels["label"].value_counts()
    if counts.empty or counts.min() < n_parts:
        few = "the table is empty" if counts.empty else f"class {counts.idxmin()} has {counts.min()}"
        raise UserError(
            f"a split into {n_parts} parts needs {n_parts} images of every class, {few}; use fewer parts or more images"
        )
    order = np.argsort(labels["image_id"].to_numpy().astype(str), kind="stable")
    frame = labels[["image_id", "label"]].iloc[order].reset_index(drop=True)
    return frame, None if groups is None else np.asarray(groups)[order]


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
        raise UserError(
            f"{path} is another split, which runs and predictions may name; give another --out, or --replace to "
            "write over it"
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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no fold file {path}; make one with: python -m cassava_kit folds --data DIR --out {path}"
        )
    frame = read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    if list(frame.columns) != ["image_id", "label", "fold"]:
        raise UserError(f"{path} must have the columns image_id,label,fold, got {','.join(frame.columns)}")
    if frame.empty:
        raise UserError(f"{path} has no rows; make it again with: python -m cassava_kit folds")
    if (frame["image_id"] == "").any() or not all(pd.api.types.is_integer_dtype(frame[c]) for c in ("label", "fold")):
        raise UserError(f"{path} must have whole numbers in label and fold and no empty cell; make it again")
    repeated = frame["image_id"][frame["image_id"].duplicated()]
    if len(repeated):
        raise UserError(f"{path} names {repeated.iloc[0]} more than once; each image belongs to one fold")
    _check_numbers(path, frame["fold"])
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    beside = header_path(path)
    header = read_json(beside) if beside.is_file() else {}
    if not isinstance(header, dict):
        raise UserError(f"{beside} must hold a JSON object, got {type(header).__name__}; make it again")
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
