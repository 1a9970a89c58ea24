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

from cassava_kit.errors import UserError, closest
from cassava_kit.files import find_file

if TYPE_CHECKING:
    import pandas as pd

WHOLE_NUMBER = re.compile(r"[0-9]+")
# Written with eight digits, a row of probabilities sums to 1 within this much for any number of classes.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Form:
    """What a submission looks like: the id column, the columns beside it, and the number of classes (None: unknown).

    One column beside the id holds labels, several hold the classes' probabilities. `values` are the labels as they are
    written, class by class; without them they are numbers. With `probability` one column of two classes holds the
    probability of class 1.
    """

    id_column: str
    columns: tuple[str, ...]
    n_classes: int | None = None
    values: tuple[str, ...] = ()
    probability: bool = False

    @property
    def probabilities(self) -> bool:
        """Whether it holds probabilities."""
        return self.probability or len(self.columns) > 1

    @property
    def header(self) -> list[str]:
        """The file's first line."""
        return [self.id_column, *self.columns]


def open_table(source: str | Path | pd.DataFrame, what: str) -> tuple[str, Iterable[Sequence[str]]]:
    """A table's name and its lines as text, the header first; FileNotFoundError where there is no file."""
    if isinstance(source, str | Path):
        path = find_file(source, "submission", "give the .csv that a notebook, `submission` or `ensemble` wrote")
        text = path.read_bytes().decode("utf-8", "surrogateescape")
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
    read = _more_probable if form.probability else _most_probable if len(form.columns) > 1 else _label
    answers: dict[str, int] = {}
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(form.header):
            raise UserError(f"{name} row {number} must have {len(form.header)} cells, got {len(cells)}")
        answer = read(cells[1:], form, f"{name} row {number} ({printable(cells[0])})")
        if cells[0] in answers:
            raise UserError(f"{name} row {number} names {printable(cells[0])} again; each image has one row")
        answers[cells[0]] = answer
    return answers


def _label(cells: Sequence[str], form: Form, where: str) -> int:
    """The one cell as a label."""
    (label,), n_classes = cells, form.n_classes
    if form.values:
        if label not in form.values:
            shown = ", ".join(form.values[:5]) + (", ..." if len(form.values) > 5 else "")
            raise UserError(f"{where}: the label must be one of {shown}, got {label!r}{closest(label, form.values)}")
        return form.values.index(label)
    if not WHOLE_NUMBER.fullmatch(label) or (n_classes is not None and int(label) >= n_classes):
        allowed = "of at least 0" if n_classes is None else f"in 0..{n_classes - 1}"
        raise UserError(f"{where}: the label must be a whole number {allowed}, got {label!r}")
    return int(label)


def _more_probable(cells: Sequence[str], form: Form, where: str) -> int:
    """1 where the one cell, class 1's probability, is at least a half, else 0."""
    try:
        p = float(cells[0])
    except ValueError:
        p = math.nan
    if not 0 <= p <= 1:
        raise UserError(f"{where}: the cell must be a probability in 0..1, got {cells[0]!r}")
    return int(p >= 0.5)


def _most_probable(cells: Sequence[str], form: Form, where: str) -> int:
    """The class with the largest of the probabilities."""
    try:
        p = [float(cell) for cell in cells]
    except ValueError:
        p = [math.nan]
    if not all(0 <= each <= 1 for each in p) or abs(sum(p) - 1) > SUM_TOLERANCE:
        got = ",".join(cells)
        raise UserError(f"{where}: the cells must be {form.n_classes} probabilities that sum to 1, got {got}")
    return p.index(max(p))


def printable(name: str) -> str:
    """Return a name that can be printed; bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
