"""Labels -> folds, and the fold file that every run, prediction and score names by its hash."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.files import header_path, read_csv, read_json, sha256_bytes, write_json, write_text


@dataclass(frozen=True)
class Folds:
    """A split of all training rows into validation folds: columns `image_id,label,fold`, sorted by `image_id`."""

    frame: pd.DataFrame
    method: str = "unknown"
    seed: int | None = None

    @property
    def n_splits(self) -> int:
        """Number of folds; `fold` is 0..n_splits-1."""
        return int(self.frame["fold"].max()) + 1

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the file's bytes: the name by which predictions and checkpoints know this split."""
        return sha256_bytes(to_csv(self.frame).encode())

    def check_fold(self, fold: int) -> int:
        """Return `fold` if this split has it; ValueError with the range otherwise."""
        if not 0 <= fold < self.n_splits:
            raise ValueError(
                f"fold must be in 0..{self.n_splits - 1}, got {fold}; the fold file has {self.n_splits} folds"
            )
        return fold

    def validation(self, fold: int) -> pd.DataFrame:
        """Rows of one fold: what a model trained on the other folds is scored on."""
        return self.frame[self.frame["fold"] == self.check_fold(fold)].reset_index(drop=True)

    def training(self, fold: int) -> pd.DataFrame:
        """Rows of all other folds."""
        return self.frame[self.frame["fold"] != self.check_fold(fold)].reset_index(drop=True)


def make_folds(labels: pd.DataFrame, *, n_splits: int = 5, seed: int = 42, groups: np.ndarray | None = None) -> Folds:
    """Stratified folds of `labels` (`image_id,label`); rows that share a group never part.

    Without groups each class's count in every fold is within one image of its ideal share. The result depends on
    the rows, not on their order. Raises ValueError where a class has fewer rows than there are folds.
    """
    from sklearn.model_selection import StratifiedKFold

    order = np.argsort(labels["image_id"].to_numpy().astype(str), kind="stable")
    frame = labels[["image_id", "label"]].iloc[order].reset_index(drop=True)
    counts = frame["label"].value_counts()
    if n_splits < 2:
        raise ValueError(f"n_splits must be at least 2, got {n_splits}")
    if counts.min() < n_splits:
        raise ValueError(
            f"n_splits={n_splits} needs {n_splits} images of every class, class {counts.idxmin()} has {counts.min()}; "
            "use fewer folds or more images"
        )
    y = frame["label"].to_numpy()
    if groups is not None:
        from cassava_kit.splits import stratified_parts

        fold = stratified_parts(y, (1 / n_splits,) * n_splits, seed=seed, groups=np.asarray(groups)[order])
        return Folds(frame.assign(fold=fold), "stratified-group-kfold", seed)
    fold = np.full(len(frame), -1)
    for k, (_, validation) in enumerate(StratifiedKFold(n_splits, shuffle=True, random_state=seed).split(y, y)):
        fold[validation] = k
    return Folds(frame.assign(fold=fold), "stratified-kfold", seed)


def to_csv(frame: pd.DataFrame) -> str:
    """The fold file's text: the same for the same rows."""
    return frame[["image_id", "label", "fold"]].to_csv(index=False, lineterminator="\n")


def labels_hash(frame: pd.DataFrame) -> str:
    """SHA-256 of the labels alone (`image_id,label`, sorted by id): says whether two splits are of the same table."""
    ordered = frame[["image_id", "label"]].sort_values("image_id", kind="stable")
    return sha256_bytes(ordered.to_csv(index=False, lineterminator="\n").encode())


def write_folds(path: str | Path, folds: Folds) -> None:
    """Write `<name>.csv` and, beside it, `<name>.json` (method, seed, n_splits, hashes), each atomically."""
    path = Path(path)
    header = {
        "method": folds.method,
        "seed": folds.seed,
        "n_splits": folds.n_splits,
        "n_rows": len(folds.frame),
        "labels_sha256": labels_hash(folds.frame),
        "folds_sha256": folds.hash,
    }
    beside = header_path(path)
    write_text(path, to_csv(folds.frame))
    write_json(beside, header)


def read_folds(path: str | Path) -> Folds:
    """Read and check a fold file; a `.json` beside it must agree with it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no fold file {path}; make one with: python -m cassava_kit folds --data DIR --out {path}"
        )
    frame = read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    if list(frame.columns) != ["image_id", "label", "fold"]:
        raise ValueError(f"{path} must have the columns image_id,label,fold, got {','.join(frame.columns)}")
    if frame.empty:
        raise ValueError(f"{path} has no rows; make it again with: python -m cassava_kit folds")
    if (frame["image_id"] == "").any() or not all(pd.api.types.is_integer_dtype(frame[c]) for c in ("label", "fold")):
        raise ValueError(f"{path} must have whole numbers in label and fold and no empty cell; make it again")
    repeated = frame["image_id"][frame["image_id"].duplicated()]
    if len(repeated):
        raise ValueError(f"{path} names {repeated.iloc[0]} more than once; each image belongs to one fold")
    present = sorted(frame["fold"].unique().tolist())
    if present != list(range(len(present))):
        raise ValueError(f"{path} must number its folds 0..n-1, got {present}")
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    beside = header_path(path)
    header = read_json(beside) if beside.is_file() else {}
    folds = Folds(frame, header.get("method", "unknown"), header.get("seed"))
    if header and header.get("folds_sha256") != folds.hash:
        raise ValueError(f"{path} is not the file that {beside.name} describes (its hash differs); make both again")
    return folds
