"""Probabilities as files: `image_id,p0..p{K-1}` (and `fold`), with a JSON header beside the CSV, joined by id alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from cassava_kit.competition import Metric, Task, read_task
from cassava_kit.errors import UserError
from cassava_kit.files import KIT_VERSION, atomic_path, header_path, read_csv, read_json, write_json


class Source(BaseModel):
    """One checkpoint that took part in a prediction, and the fold it never trained on (None: trained on every row)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    fold: int | None = None
    fold_hash: str | None = None


class Header(BaseModel):
    """What a prediction file says of itself: where it comes from, which split it was made on, and what judges it.

    `competition`, `metric`, `classes` and `id_column` are the fields of a `Task`; files of older versions lack them.
    `labels_seen` says in words how labels of the scored rows came into the file, if they did.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Literal["oof", "images"]
    fold_hash: str | None = None
    sources: tuple[Source, ...] = ()
    labels: str = "given"
    labels_seen: tuple[str, ...] = ()
    competition: str | None = None
    metric: Metric | None = None
    classes: tuple[str, ...] = ()
    id_column: str = "image_id"
    kit_version: str = KIT_VERSION

    @property
    def task(self) -> Task | None:
        """What the probabilities are of and judged by; None in files of older versions."""
        return read_task(self.model_dump(), self.name)


@dataclass(frozen=True)
class Predictions:
    """Class probabilities by image: `frame` has `image_id`, `p0..p{K-1}` and, out of fold, `fold`.

    `header` is None for a foreign file that came without one.
    """

    frame: pd.DataFrame
    header: Header | None = None

    @property
    def ids(self) -> np.ndarray:
        """Image ids, (N,), in file order."""
        return self.frame["image_id"].to_numpy()

    @property
    def probabilities(self) -> np.ndarray:
        """Class probabilities, (N, K) float64, rows sum to 1."""
        return self.frame[probability_columns(self.frame)].to_numpy(np.float64)


def probability_columns(frame: pd.DataFrame) -> list[str]:
    """The columns p0, p1, ... in order."""
    return sorted((c for c in frame.columns if c[:1] == "p" and c[1:].isdigit()), key=lambda c: int(c[1:]))


def make_predictions(
    image_ids: np.ndarray, probabilities: np.ndarray, *, header: Header, fold: np.ndarray | None = None
) -> Predictions:
    """Predictions from arrays: ids (N,), probabilities (N, K), fold (N,) where they are out of fold."""
    columns = {f"p{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    frame = pd.DataFrame({"image_id": np.asarray(image_ids).astype(str), **columns})
    if fold is not None:
        frame["fold"] = np.asarray(fold).astype(int)
    return check_predictions(Predictions(frame, header), "predictions")


def check_predictions(predictions: Predictions, name: str) -> Predictions:
    """Refuse what is not a table of probabilities by distinct image: UserError naming `name` and the row."""
    frame = predictions.frame
    columns = probability_columns(frame)
    if "image_id" not in frame or columns != [f"p{k}" for k in range(len(columns))] or len(columns) < 2:
        raise UserError(
            f"{name} must have the columns image_id,p0,p1,... (and fold), got {','.join(map(str, frame.columns))}"
        )
    if frame.empty:
        raise UserError(f"{name} has no rows")
    if frame["image_id"].isna().any():
        raise UserError(f"{name} row {int(frame['image_id'].isna().argmax()) + 2} has no image_id")
    repeated = frame["image_id"].duplicated()
    if repeated.any():
        raise UserError(f"{name} predicts {frame['image_id'][repeated].iloc[0]} more than once; each image has one row")
    try:
        p = predictions.probabilities
    except ValueError:
        raise UserError(f"{name} has a probability that is not a number") from None
    bad = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-3)
    if bad.any():
        row = int(np.argmax(bad))
        raise UserError(
            f"{name} row {row + 2} ({frame['image_id'].iloc[row]}) must hold probabilities that sum to 1, "
            f"got {np.round(p[row], 4).tolist()}; apply softmax before writing"
        )
    return predictions


def write_predictions(path: str | Path, predictions: Predictions) -> None:
    """Write the CSV and its header `<stem>.json`, each atomically."""
    path = Path(path)
    header = header_path(path)
    check_predictions(predictions, path.name)
    header.unlink(missing_ok=True)  # left beside other rows, even for a moment, it would vouch for them
    with atomic_path(path) as temporary:
        predictions.frame.to_csv(temporary, index=False, float_format="%.8g", lineterminator="\n")
    if predictions.header is not None:
        write_json(header, predictions.header.model_dump(mode="json"))


def read_predictions(path: str | Path) -> Predictions:
    """Read and check a prediction file, with its header if one lies beside it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no prediction file {path}")
    beside = header_path(path)
    frame = read_csv(path, dtype={"image_id": str})
    header = None
    if beside.is_file():
        try:
            header = Header.model_validate(read_json(beside))
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(f"{beside} is not a prediction header ({field}: {error.errors()[0]['msg']})") from None
    if "fold" in frame:
        numbers = pd.to_numeric(frame["fold"], errors="coerce")
        if numbers.isna().any() or (numbers % 1 != 0).any():
            raise UserError(f"{path} must have whole numbers in the column fold")
        frame["fold"] = numbers.astype(int)  # other frameworks write 2.0 for 2
    return check_predictions(Predictions(frame, header), str(path))
