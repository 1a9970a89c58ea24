"""Labels -> one holdout split, 85/15, 70/30 or 60/20/20, and its file; k folds are in `folds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.files import header_path, read_csv, read_json, sha256_bytes, write_json, write_text
from cassava_kit.folds import Folds, labels_hash

PARTS = {2: ("train", "val"), 3: ("train", "val", "test")}


@dataclass(frozen=True)
class Split:
    """Every row in one part: columns `image_id,label,part`, sorted by `image_id`; part is train, val or test."""

    frame: pd.DataFrame
    shares: tuple[float, ...] = ()
    method: str = "unknown"
    seed: int | None = None

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file's bytes."""
        return sha256_bytes(to_csv(self.frame).encode())

    def part(self, name: str) -> pd.DataFrame:
        """Rows of one part; ValueError with the choices for a name the split does not have."""
        names = sorted(self.frame["part"].unique())
        if name not in names:
            raise ValueError(f"part must be one of {', '.join(names)}, got {name!r}")
        return self.frame[self.frame["part"] == name].reset_index(drop=True)

    def as_folds(self) -> Folds:
        """Train and val as folds, so that training needs no second door: val is fold 0, train fold 1, test left out."""
        kept = self.frame[self.frame["part"] != "test"].reset_index(drop=True)
        fold = (kept["part"] == "train").astype(int)
        return Folds(kept[["image_id", "label"]].assign(fold=fold), self.method, self.seed)


def make_split(
    labels: pd.DataFrame, shares: Sequence[float], *, seed: int = 42, groups: np.ndarray | None = None
) -> Split:
    """Split rows (`image_id,label`) into two or three parts of these shares; rows that share a group never part.

    Without groups each class's count in every part is within one image of its ideal share, and each part's total
    within one image too. The result depends on the rows, not on their order.
    """
    _check_shares(shares)
    order = np.argsort(labels["image_id"].to_numpy().astype(str), kind="stable")
    frame = labels[["image_id", "label"]].iloc[order].reset_index(drop=True)
    y = frame["label"].to_numpy()
    _check_counts(y, len(shares))
    part = stratified_parts(y, shares, seed=seed, groups=None if groups is None else np.asarray(groups)[order])
    names = np.array(PARTS[len(shares)])
    if len(set(part)) < len(names):
        raise ValueError(
            f"{len(frame)} images are too few for parts of {', '.join(f'{s:.0%}' for s in shares)}: one is empty"
        )
    method = "stratified-holdout-" + "-".join(f"{100 * share:g}" for share in shares)
    return Split(
        frame.assign(part=names[part]), tuple(shares), method + ("-groups" if groups is not None else ""), seed
    )


def stratified_parts(
    y: np.ndarray, shares: Sequence[float], *, seed: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """Part of each row, (N,) in 0..P-1, by labels y (N,) and any number of shares; the names of groups do not matter.

    Groups of several rows are placed first, each where it fits; single rows then fill each class's quotas exactly.
    """
    rng = np.random.default_rng(seed)
    quotas = class_quotas(np.unique(y, return_counts=True)[1], shares)
    part = np.full(len(y), -1)
    if groups is not None:
        _place_groups(part, y, groups, quotas, rng)
    _place_rows(part, y, quotas, rng)
    return part


def class_quotas(counts: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Images of each class in each part, (K, P), rows adding up to `counts` (K,).

    Each is its ideal share rounded up or down; rounding is carried from class to class, so that totals stay near too.
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


def _check_shares(shares: Sequence[float]) -> None:
    if len(shares) not in PARTS or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be two or three positive numbers that sum to 1, e.g. .6 .2 .2, got {shares}")


def _check_counts(y: np.ndarray, n_parts: int) -> None:
    classes, counts = np.unique(y, return_counts=True)
    if not len(classes) or counts.min() < n_parts:
        few = f"class {classes[counts.argmin()]} has {counts.min()}" if len(classes) else "the table is empty"
        raise ValueError(f"a split into {n_parts} parts needs {n_parts} images of every class; {few}")


def to_csv(frame: pd.DataFrame) -> str:
    """The split file's text: the same for the same rows."""
    return frame[["image_id", "label", "part"]].to_csv(index=False, lineterminator="\n")


def write_split(path: str | Path, split: Split) -> None:
    """Write `<name>.csv` and, beside it, `<name>.json` (method, shares, seed, hashes), each atomically."""
    path = Path(path)
    header = {
        "method": split.method,
        "shares": list(split.shares),
        "seed": split.seed,
        "n_rows": len(split.frame),
        "labels_sha256": labels_hash(split.frame),
        "split_sha256": split.hash,
    }
    beside = header_path(path)
    write_text(path, to_csv(split.frame))
    write_json(beside, header)


def read_split(path: str | Path) -> Split:
    """Read and check a split file; a `.json` beside it must agree with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no split file {path}; make it first")
    frame = read_csv(path, dtype={"image_id": str, "part": str}, keep_default_na=False)
    if list(frame.columns) != ["image_id", "label", "part"]:
        raise ValueError(f"{path} must have the columns image_id,label,part, got {','.join(frame.columns)}")
    if frame.empty or not pd.api.types.is_integer_dtype(frame["label"]):
        raise ValueError(f"{path} must have rows, with a whole number as each label; make it again")
    repeated = frame["image_id"][frame["image_id"].duplicated()]
    if len(repeated):
        raise ValueError(f"{path} names {repeated.iloc[0]} more than once; each image belongs to one part")
    present = set(frame["part"])
    if present not in map(set, PARTS.values()):
        raise ValueError(f"{path} must have the parts train,val or train,val,test, got {','.join(sorted(present))}")
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    beside = header_path(path)
    header = read_json(beside) if beside.is_file() else {}
    split = Split(frame, tuple(header.get("shares", ())), header.get("method", "unknown"), header.get("seed"))
    if header and header.get("split_sha256") != split.hash:
        raise ValueError(f"{path} is not the file that {beside.name} describes (its hash differs); make both again")
    return split
