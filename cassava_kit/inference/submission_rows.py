"""Rows of a submission: `Form` says what they look like, `read_rows` reads them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cassava_kit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

WHOLE_NUMBER = re.compile(r"[0-9]+")
# Written with eight digits, a row of probabilities sums to 1 within this much for any number of classes.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Form:
    """What a submission looks like: the id column, the columns beside it, and the number of classes (None: unknown).

    One column beside the id holds labels, several hold the classes' probabilities.
    """

    id_column: str
    columns: tuple[str, ...]
    n_classes: int | None = None

    @property
    def header(self) -> list[str]:
        """The file's first line."""
        return [self.id_column, *self.columns]


def open_table(source: str | Path | pd.DataFrame, what: str) -> tuple[str, Iterable[Sequence[str]]]:
    """A table's name and its lines as text, the header first; FileNotFoundError where there is no file."""
    if isinstance(source, str | Path):
        if not Path(source).is_file():
            raise FileNotFoundError(f"no submission {source}")
        text = Path(source).read_bytes().decode("utf-8", "surrogateescape")
        return str(source), csv.reader(io.StringIO(text, newline=""))
    if not hasattr(source, "columns"):
        raise UserError(f"{what} must be a CSV file or a DataFrame, got {type(source).__name__}")
    cells = [[str(cell) for cell in row] for row in source.astype(object).itertuples(index=False, name=None)]
    return what, [[str(column) for column in source.columns], *cells]


def read_rows(rows: Iterable[Sequence[str]], form: Form, name: str) -> dict[str, int]:
    """Return the label, or the most probable class, by id from the lines of a table, the header first."""
    lines = iter(rows)
    header = next(lines, None)
    if header is None or list(header) != form.header:
        got = "nothing" if header is None else printable(",".join(header))
        raise UserError(f"{name} must begin with the columns {','.join(form.header)}, got {got}")
    read = _most_probable if len(form.columns) > 1 else _label
    answers: dict[str, int] = {}
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(form.header):
            raise UserError(f"{name} row {number} must have {len(form.header)} cells, got {len(cells)}")
        answer = read(cells[1:], form.n_classes, f"{name} row {number} ({printable(cells[0])})")
        if cells[0] in answers:
            raise UserError(f"{name} row {number} names {printable(cells[0])} again; each image has one row")
        answers[cells[0]] = answer
    return answers


def _label(cells: Sequence[str], n_classes: int | None, where: str) -> int:
    """The one cell as a label."""
    (label,) = cells
    if not WHOLE_NUMBER.fullmatch(label) or (n_classes is not None and int(label) >= n_classes):
        allowed = "of at least 0" if n_classes is None else f"in 0..{n_classes - 1}"
        raise UserError(f"{where}: the label must be a whole number {allowed}, got {label!r}")
    return int(label)


def _most_probable(cells: Sequence[str], n_classes: int | None, where: str) -> int:
    """The class with the largest of the probabilities."""
    try:
        p = [float(cell) for cell in cells]
    except ValueError:
        p = [math.nan]
    if not all(0 <= each <= 1 for each in p) or abs(sum(p) - 1) > SUM_TOLERANCE:
        raise UserError(f"{where}: the cells must be {n_classes} probabilities that sum to 1, got {','.join(cells)}")
    return p.index(max(p))


def printable(name: str) -> str:
    """Return a name that can be printed; bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
