"""Labels -> stratified parts of any shares, groups kept together. Entry point: `assign_parts`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from cassava_kit.errors import UserError


class GroupCounts(NamedTuple):
    """Groups of near-duplicates that a split keeps together: how many, their images, and the largest one's images."""

    groups: int
    images: int
    largest: int


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


def check_parts(frame: pd.DataFrame, part: np.ndarray, shares: dict[str, float], groups: np.ndarray | None) -> None:
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
        empty = f"{names[lacking[0]]} would have no image of class {label}"
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
