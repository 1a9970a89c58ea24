"""Prediction files: `image_id,p0..p{K-1}` (and `fold`) with a JSON header beside them, joined by id alone.

Entry points `read_predictions` and `write_predictions`; `write_oof` for the model of another program.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError

from cassava_kit.competition import Metric, Task, read_task
from cassava_kit.errors import UserError
from cassava_kit.files import (
    KIT_VERSION,
    OOF_FILE,
    check_names,
    csv_text,
    find_file,
    header_path,
    read_csv,
    read_json,
    write_json,
    write_text,
)


class Source(BaseModel):
    """One checkpoint behind a prediction, and the fold it was not trained on (None: trained on every row)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    fold: int | None = None
    fold_hash: str | None = None


class Header(BaseModel):
    """Header of a prediction file: its origin, the split it was made on, and the metric that judges it.

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
    """Return the columns p0, p1, ... in order."""
    return sorted((c for c in frame.columns if c[:1] == "p" and c[1:].isdigit()), key=lambda c: int(c[1:]))


def make_predictions(
    image_ids: np.ndarray, probabilities: np.ndarray, *, header: Header, fold: np.ndarray | None = None
) -> Predictions:
    """Make predictions from arrays: ids (N,), probabilities (N, K), fold (N,) where they are out of fold."""
    columns = {f"p{k}": probabilities[:, k] for k in range(probabilities.shape[1])}
    frame = pd.DataFrame({"image_id": np.asarray(image_ids).astype(str), **columns})
    if fold is not None:
        frame["fold"] = np.asarray(fold).astype(int)
    return check_predictions(Predictions(frame, header), "predictions")


def check_predictions(predictions: Predictions, name: str) -> Predictions:
    """Check that each image has one row of probabilities that sum to 1; UserError with `name` and the row otherwise."""
    frame = predictions.frame
    columns = probability_columns(frame)
    if "image_id" not in frame or columns != [f"p{k}" for k in range(len(columns))] or len(columns) < 2:
        raise UserError(
            f"{name} must have the columns image_id,p0,p1,... (and fold), got {','.join(map(str, frame.columns))}"
        )
    if frame.empty:
        raise UserError(f"{name} has no rows")
    unnamed = (frame["image_id"].isna() | (frame["image_id"] == "")).to_numpy()
    if unnamed.any():
        raise UserError(f"{name} row {int(unnamed.argmax()) + 2} has no image_id")
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
    header.unlink(missing_ok=True)  # beside other rows, even for a moment, it would describe what it does not know
    write_text(path, csv_text(predictions.frame, "%.8g"))
    if predictions.header is not None:
        write_json(header, predictions.header.model_dump(mode="json"))


def read_predictions(path: str | Path) -> Predictions:
    """Read and check a prediction file, with its header if one lies beside it."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.rglob(OOF_FILE), key=lambda file: (len(file.parts), file))  # a run's before its folds'
        there = next(iter(found), None)
        raise UserError(f"expected a prediction file, got the folder {path}; give {there or 'the .csv file itself'}")
    remedy = "`cassava-kit train` writes runs/RECIPE/oof.csv; `write_oof` writes another program's predictions"
    find_file(path, "prediction file", remedy)
    beside = header_path(path)
    frame = read_image_rows(path)
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


def read_image_rows(path: Path) -> pd.DataFrame:
    """Read a CSV file with the column `image_id`, whose names are kept as they are: an image may be called NA.

    Raises:
        UserError: It is no table, or a name leads out of the images' folder.
    """
    columns = read_csv(path, nrows=0).columns
    missing = {column: ["", "NA", "nan", "NaN"] for column in columns if column != "image_id"}
    table = read_csv(path, dtype={"image_id": str}, keep_default_na=False, na_values=missing)
    if "image_id" in table:
        check_names(table["image_id"], path)
    return table


def write_oof(path: str | Path, table: pd.DataFrame, pred_probs: ArrayLike, *, id_column: str = "image_id") -> Path:
    """Write a model's out-of-fold probabilities for `ensemble`, `clean`, `compare` and `finals`.

    Args:
        path: the `.csv` file to write.
        table: one row an image with its name and its `fold`, as `make_folds` returns it. Rows with a fold below 0
            (training alone, test part) are left out.
        pred_probs: probabilities (N, K) in the table's row order, each row by a model that never saw its fold.
        id_column: the column of the names; in the file it is `image_id`.

    Returns:
        The path.

    Raises:
        UserError: where columns are missing, rows do not fit, or a row does not sum to 1.

    Example:
        >>> import tempfile
        >>> table = pd.DataFrame({"image_id": ["a.jpg", "b.jpg"], "label": [0, 1], "fold": [0, 1]})
        >>> path = write_oof(Path(tempfile.mkdtemp()) / "mine.csv", table, [[.9, .1], [.4, .6]])
        >>> path.read_text().splitlines()
        ['image_id,p0,p1,fold', 'a.jpg,0.9,0.1,0', 'b.jpg,0.4,0.6,1']
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise UserError(f"expected a file name that ends in .csv, got {path}")
    if missing := [column for column in (id_column, "fold") if column not in table]:
        raise UserError(
            f"the table must have the columns {id_column} and fold, got {', '.join(map(str, table.columns))}"
            f" ({', '.join(missing)} is missing); make folds first"
        )
    p = np.asarray(pred_probs, dtype=float)
    if p.ndim != 2 or len(p) != len(table):
        raise UserError(f"expected probabilities ({len(table)}, K), one row for each of the table's, got {p.shape}")
    fold = pd.to_numeric(table["fold"], errors="coerce").to_numpy(float)
    if not np.isfinite(fold).all() or (fold % 1).any():
        raise UserError("the column fold must hold a whole number in every row")
    scored = fold >= 0
    columns = {f"p{k}": p[scored, k] for k in range(p.shape[1])}
    names = table[id_column].astype(str).to_numpy()[scored]
    frame = pd.DataFrame({"image_id": names, **columns, "fold": fold[scored].astype(int)})
    write_predictions(path, Predictions(frame))
    return path
