"""Rows of a training table: columns, ids, labels as numbers, names or one-hot. Entry point: `read_table_rows`."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cassava_kit.competition import SEPARATORS, Competition
from cassava_kit.data.listing import FileFinder
from cassava_kit.errors import UserError, closest
from cassava_kit.files import find_file


class Row(NamedTuple):
    """One row of the CSV, with its line number (the header is line 1), its image's file and its label 0..K-1."""

    line: int
    image_id: str
    label: int


def read_table_rows(csv: Path, competition: Competition, finder: FileFinder) -> list[Row]:
    """Return the rows of a training table, each image once.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The table is empty, or a row is wrong; the message names the line.
    """
    rows = list(_parse(csv, competition, finder))
    if not rows:
        raise UserError(f"{csv} has a header but no rows; expected one row for every training image")
    first_line: dict[str, int] = {}
    for row in rows:
        if row.image_id in first_line:
            raise UserError(
                f"{csv}, line {row.line}: {row.image_id!r} is already on line {first_line[row.image_id]}; "
                "each image has one row"
            )
        first_line[row.image_id] = row.line
    return rows


def _parse(csv: Path, competition: Competition, finder: FileFinder) -> Iterator[Row]:
    """Yield the rows of the file with their line numbers; blank lines are skipped."""
    lines = read_lines(csv, competition.separator)
    _, header = next(lines, (1, []))
    id_at, label_at = _columns([name.strip() for name in header], csv, competition)
    label_of = _label_reader(competition)
    for line, cells in lines:
        if len(cells) != len(header):
            raise UserError(f"{csv}, line {line}: expected {len(header)} cells as in the header, got {len(cells)}")
        image_id = cells[id_at]
        if not image_id.strip():
            raise UserError(f"{csv}, line {line}: {competition.id_column} is empty; expected an image's file name")
        try:
            yield Row(line, finder.name(image_id), label_of([cells[at].strip() for at in label_at]))
        except UserError as error:
            raise UserError(f"{csv}, line {line}: {error}") from None


def read_lines(csv: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of a table, its header first; blank lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not UTF-8, or a row is no CSV.
    """
    # `str.splitlines` would end a row at a form feed or U+2028 as well.
    reader = csv_module.reader(io.StringIO(read_text(csv), newline=""), strict=True, delimiter=separator)
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if cells:
                yield line, cells
    except csv_module.Error as error:
        raise UserError(f"{csv}, line {reader.line_num}: not a valid CSV row ({error})") from None


def _label_reader(competition: Competition) -> Callable[[list[str]], int]:
    """Return the function from a row's label cells to 0..K-1; it raises UserError for what is no label."""
    if competition.label_columns:
        return lambda cells: one_hot(cells, competition.label_columns)
    column, k = competition.label_column, competition.n_classes
    if competition.label_values:
        numbers = {value: number for number, value in enumerate(competition.label_values)}

        def by_name(cells: list[str]) -> int:
            if cells[0] not in numbers:
                shown = ", ".join(competition.label_values[:5]) + (", ..." if k > 5 else "")
                raise UserError(
                    f"{column} must be one of {shown}, got {cells[0]!r}{closest(cells[0], competition.label_values)}"
                )
            return numbers[cells[0]]

        return by_name

    def by_number(cells: list[str]) -> int:
        digits = cells[0] if cells[0].isascii() and cells[0].isdigit() else ""
        if not digits or int(digits) >= k:
            raise UserError(f"{column} must be a whole number in 0..{k - 1}, got {cells[0]!r}")
        return int(digits)

    return by_number


def one_hot(cells: Sequence[str], columns: Sequence[str]) -> int:
    """Return which of the cells is 1; UserError where not exactly one is and the others are 0."""
    try:
        numbers = [float(cell) for cell in cells]
    except ValueError:
        numbers = []
    if sorted(numbers) != [0.0] * (len(columns) - 1) + [1.0]:
        shown = ",".join(columns[:4]) + (",..." if len(columns) > 4 else "")
        raise UserError(f"exactly one of the columns {shown} must be 1 and the others 0, got {','.join(cells[:8])}")
    return numbers.index(1.0)


def _columns(header: list[str], csv: Path, competition: Competition) -> tuple[int, list[int]]:
    """Return the positions of the id, and of the label or the labels, in a row."""
    labels = competition.label_columns or (competition.label_column,)
    wanted = (competition.id_column, *labels)
    if not any(header):
        raise UserError(f"{csv} is empty; expected the header {','.join(wanted)} and one row for every image")
    if any(header.count(name) != 1 for name in wanted):
        other = next((mark for mark in SEPARATORS if mark != competition.separator and mark in header[0]), "")
        why = f" (its cells are separated by {other!r}, not by {competition.separator!r})" if other else ""
        raise UserError(
            f"{csv}, line 1: expected the columns {','.join(wanted)}, got {','.join(header)}{why}; for another "
            "competition than the one at hand run: cassava-kit init --data DIR"
        )
    return header.index(wanted[0]), [header.index(name) for name in labels]


def read_text(csv: Path) -> str:
    """Return a table's text; UserError, with the line, where it is not UTF-8."""
    find_file(csv, "table", "expected a CSV with the training labels")
    content = csv.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{csv}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None
