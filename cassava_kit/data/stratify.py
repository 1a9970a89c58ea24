"""Labels -> stratified folds or a holdout, groups kept together. Entry points: `make_folds`, `split_folds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cassava_kit.competition import Task, class_name
from cassava_kit.data.folds import TEST, TRAIN_ONLY, Folds, GroupCounts
from cassava_kit.errors import UserError

PARTS = {2: (TRAIN_ONLY, 0), 3: (TRAIN_ONLY, 0, TEST)}


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
    flat = hasattr(values, "__len__") and getattr(values, "ndim", 1) == 1
    if not flat or isinstance(values, str | bytes | dict):
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
    if not isinstance(n_splits, int | np.integer) or n_splits < 2:
        raise UserError(f"n_splits must be a whole number of at least 2, got {n_splits}")
    frame, groups = _prepare(labels, groups, n_parts=n_splits, seed=seed, task=task)
    y = frame["label"].to_numpy()
    if groups is not None:
        shares = {f"fold {k}": 1 / n_splits for k in range(n_splits)}
        fold = assign_parts(y, list(shares.values()), seed=seed, groups=groups)
        check_parts(frame, fold, shares, groups, task=task)
        return Folds(frame.assign(fold=fold), method_name(None, grouped=True), seed, count_groups(groups), task)
    from sklearn.model_selection import StratifiedKFold  # it takes a second to import: not where groups are given

    fold = np.full(len(frame), -1)
    for k, (_, validation) in enumerate(StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(y, y)):
        fold[validation] = k
    return Folds(frame.assign(fold=fold), method_name(None, grouped=False), seed, task=task)


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
    frame, groups = _prepare(labels, groups, n_parts=len(shares), seed=seed, task=task)
    part = assign_parts(frame["label"].to_numpy(), shares, seed=seed, groups=groups)
    names = [f"the {name} part of {_percents(shares)}" for name in ("training", "validation", "test")]
    check_parts(frame, part, dict(zip(names, shares, strict=False)), groups, task=task)
    counts = None if groups is None else count_groups(groups)
    fold = np.array(PARTS[len(shares)])[part]
    return Folds(frame.assign(fold=fold), method_name(shares, grouped=groups is not None), seed, counts, task)


def method_name(shares: Sequence[float] | None, *, grouped: bool) -> str:
    """Return the name by which a fold file's header knows a split into folds (None), or into parts of these shares."""
    if shares is None:
        return "stratified-group-kfold" if grouped else "stratified-kfold"
    return f"stratified-{'group-holdout' if grouped else 'holdout'}-{_percents(shares)}"


def _percents(shares: Sequence[float]) -> str:
    return "-".join(f"{100 * share:g}" for share in shares)


def check_splittable(labels: pd.DataFrame, n_parts: int, *, seed: int = 42, task: Task | None = None) -> None:
    """Raise UserError for a seed that is none, and for a class with fewer rows than there are parts."""
    largest = np.iinfo(np.uint32).max
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= largest:
        raise UserError(f"seed must be a whole number in 0..{largest}, got {seed}")
    counts = labels["label"].value_counts()
    if counts.empty or counts.min() < n_parts:
        few = "the table is empty" if counts.empty else f"{class_name(counts.idxmin(), task)} has {counts.min()}"
        raise UserError(
            f"a split into {n_parts} parts needs {n_parts} images of every class, {few}; use fewer parts or more images"
        )


def _prepare(
    labels: pd.DataFrame, groups: np.ndarray | None, *, n_parts: int, seed: int, task: Task | None
) -> tuple[pd.DataFrame, np.ndarray | None]:
    """Return the rows, and their groups, in the order of `image_id`; UserError where they cannot be split."""
    if groups is not None and len(groups) != len(labels):
        raise UserError(f"groups must name one group for each of {len(labels)} rows, got {len(groups)}")
    check_splittable(labels, n_parts, seed=seed, task=task)
    order = np.argsort(labels["image_id"].to_numpy().astype(str), kind="stable")
    frame = labels[["image_id", "label"]].iloc[order].reset_index(drop=True)
    return frame, None if groups is None else np.asarray(groups)[order]


def assign_parts(y: np.ndarray, shares: Sequence[float], *, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the part of each row, (N,) int in 0..P-1, by labels `y` (N,) and `shares` (P,) that sum to 1.

    Groups of several rows are placed first, each where it fits; single rows then fill each class's quotas exactly.
    The names of groups do not matter.
    """
    rng = np.random.default_rng(seed)
    quotas = compute_quotas(np.unique(y, return_counts=True)[1], shares)
    part = np.full(len(y), -1)
    if groups is not None:
        _place_groups(part, y, groups, quotas, rng)
    _place_rows(part, y, quotas, rng)
    return part


def compute_quotas(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Return the images of each class in each part, (K, P) int, rows adding up to `counts` (K,).

    Each is its ideal share rounded up or down; rounding is carried from class to class, so that totals are near theirs.
    """
    ideal = np.outer(counts, shares)
    quotas = np.floor(ideal + 1e-9).astype(int)
    owed = np.zeros(len(shares))
    for k, count in enumerate(counts):
        rest = ideal[k] - quotas[k]
        owed += rest
        # Only a part whose ideal is not whole may be rounded up.
        up = sorted(range(len(shares)), key=lambda p: (rest[p] < 1e-9, -owed[p]))[: count - quotas[k].sum()]
        quotas[k, up] += 1
        owed[up] -= 1
    return quotas


def _place_groups(
    part: np.ndarray, y: np.ndarray, groups: np.ndarray, quotas: np.ndarray, rng: np.random.Generator
) -> None:
    """Put every group of more than one row into the part where it fits best, largest first; lowers `quotas`."""
    _, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    _, class_of = np.unique(y, return_inverse=True)
    in_order = np.lexsort((first, -sizes))  # by size, then by first row: independent of the groups' names
    for group in in_order[sizes[in_order] > 1]:
        rows = np.flatnonzero(inverse == group)
        needed = np.bincount(class_of[rows], minlength=len(quotas))
        too_many = np.maximum(needed[:, None] - quotas, 0).sum(axis=0)
        fitting = np.flatnonzero(too_many == too_many.min())
        room = np.maximum(quotas[needed > 0][:, fitting].sum(axis=0), 1e-9)
        chosen = rng.choice(fitting, p=room / room.sum())
        part[rows] = chosen
        quotas[:, chosen] -= needed


def _place_rows(part: np.ndarray, y: np.ndarray, quotas: np.ndarray, rng: np.random.Generator) -> None:
    """Fill what is left of each class's quotas with its rows not yet placed, in random order."""
    for k, label in enumerate(np.unique(y)):
        rows = rng.permutation(np.flatnonzero((y == label) & (part < 0)))
        room = np.maximum(quotas[k], 0)
        while room.sum() > len(rows):  # groups have overfilled a part: the others give way
            room[np.argmax(room)] -= 1
        part[rows] = np.repeat(np.arange(len(room)), room)


def check_parts(
    frame: pd.DataFrame,
    part: np.ndarray,
    shares: dict[str, float],
    groups: np.ndarray | None,
    *,
    task: Task | None = None,
) -> None:
    """Raise UserError where a part (0..P-1 by row, named in `shares`) is empty or lacks a class it is due an image of.

    The message names the group that is too large, if groups were kept together.
    """
    names = list(shares)
    for label in sorted(frame["label"].unique()):
        of_class = (frame["label"] == label).to_numpy()
        counts = np.bincount(part[of_class], minlength=len(names))
        due = of_class.sum() * np.array(list(shares.values())) >= 1
        lacking = np.flatnonzero((counts == 0) & (due | (np.bincount(part, minlength=len(names)) == 0)))
        if not len(lacking):
            continue
        empty = f"{names[lacking[0]]} would have no image of {class_name(label, task)}"
        if groups is None:
            raise UserError(f"{empty}, which has {of_class.sum()}; use other shares or more images")
        group, sizes = np.unique(groups[of_class], return_counts=True)
        largest = groups == group[sizes.argmax()]
        raise UserError(
            f"{empty}: the group of near-duplicates around {frame['image_id'][largest].iloc[0]} has {sizes.max()} of "
            f"the class's {of_class.sum()} images ({largest.sum()} in all), and groups stay together; use fewer folds "
            "or larger shares, remove copies, or split without groups (--no-groups)"
        )


def count_groups(groups: np.ndarray) -> GroupCounts:
    """Return the counts of all groups of more than one row."""
    sizes = np.unique(groups, return_counts=True)[1]
    several = sizes[sizes > 1]
    return GroupCounts(len(several), int(several.sum()), int(sizes.max(initial=1)))
