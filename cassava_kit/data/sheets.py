"""Tables of an unknown folder: which column names images, which holds labels. Start at `read_sheet`, `find_ids`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cassava_kit.competition import SEPARATORS, Separator
from cassava_kit.data.listing import is_image
from cassava_kit.data.table_rows import read_lines, read_text
from cassava_kit.errors import UserError, closest

# Rows that are looked at to recognise columns; labels are read of all rows.
LOOKED_AT = 500
MOST_BYTES = 200_000_000
# A column names images where more than this share of its cells does, and they are nearly all different.
LEAST_MATCHED, LEAST_DISTINCT = 0.5, 0.95
ID_NAMES = frozenset(
    ("id", "imageid", "imgid", "image", "img", "imagename", "imagefile", "imagepath", "filename", "file", "filepath")
)
LABEL_NAMES = (
    *("label", "labels", "class", "target", "category", "species", "diagnosis", "breed", "variety", "disease"),
    *("class_id", "class_name", "classname", "label_name", "label_id", "category_id", "type", "kind", "dx", "y"),
)


@dataclass(frozen=True)
class Sheet:
    """A table as it lies in the folder: relative name, separator, columns, and its rows as text, stripped."""

    name: str
    separator: Separator
    columns: list[str]
    rows: list[list[str]]

    def cells(self, column: str, most: int | None = None) -> list[str]:
        """Return a column's cells, of the first `most` rows or of all."""
        at = self.columns.index(column)
        return [row[at] for row in self.rows[:most]]

    def distinct(self, column: str) -> list[str]:
        """Return a column's distinct cells without empty ones, in order of appearance."""
        return [value for value in dict.fromkeys(self.cells(column)) if value]


@dataclass(frozen=True)
class Ids:
    """How a table's column names images: the column, the files meant (relative names), and what an id leaves out.

    `base` is the folder that the ids are relative to; without `have_folder` they leave out folders below it.
    """

    column: str
    files: tuple[str, ...]
    base: str
    have_suffix: bool
    have_folder: bool


def read_sheet(folder: Path, name: str, separator: Separator | None = None) -> Sheet | None:
    """Read a table, by default with the separator that divides its rows evenly; None for a text that is no table.

    Raises:
        UserError: It is not UTF-8, or a row is no CSV.
    """
    path = folder / name
    if path.stat().st_size > MOST_BYTES:
        return None
    separator = separator or find_separator(read_text(path))
    lines = [cells for _, cells in read_lines(path, separator)]
    if not lines or (name.lower().endswith(".txt") and len(lines[0]) < 2):
        return None
    header = [cell.strip() for cell in lines[0]]
    rows = [[cell.strip() for cell in row] for row in lines[1:] if len(row) == len(header)]
    return Sheet(name, separator, header, rows)


def find_separator(text: str) -> Separator:
    """Return the separator with which the first rows have most cells, equally many each."""
    most, best = 1, SEPARATORS[0]
    for separator in SEPARATORS:
        lines = csv.reader(io.StringIO(text[:65536], newline=""), delimiter=separator)
        try:
            widths = [len(row) for row, _ in zip(lines, range(50), strict=False) if row][:-1] or [0]
        except csv.Error:
            continue
        header = next(csv.reader(io.StringIO(text[:65536], newline=""), delimiter=separator), [])
        widths.append(len(header))
        if widths.count(len(header)) >= 0.9 * len(widths) and len(header) > most:
            most, best = len(header), separator
    return best


class Names:
    """Files by the last part of their name, with and without suffix, to look ids up in."""

    def __init__(self, images: Iterable[str]) -> None:
        self.by_name: dict[str, list[str]] = {}
        self.by_stem: dict[str, list[str]] = {}
        for name in images:
            last = name.rpartition("/")[2]
            self.by_name.setdefault(last, []).append(name)
            self.by_stem.setdefault(last.rpartition(".")[0], []).append(name)

    def files(self, cell: str) -> list[str]:
        """Return the files that a cell may mean."""
        last = cell.replace("\\", "/").rpartition("/")[2]
        found = self.by_name.get(last) or self.by_stem.get(last)
        return found or (self.by_stem.get(last.rpartition(".")[0], []) if is_image(last) else [])


def find_ids(sheet: Sheet, images: Collection[str], column: str | None = None) -> Ids | None:
    """Return how a table names some of the images; None where none of its columns does, or the given one does not."""
    names = Names(images)
    likely = [one for one in rank_ids(sheet, names, column) if one.matched > LEAST_MATCHED and one.distinct]
    return _describe_ids(sheet, likely[0].column, names) if likely else None


class IdColumn(NamedTuple):
    """A column that may name images: whether its name or its cells' endings say so, and the share that images match.

    `distinct` says that nearly all its cells differ.
    """

    column: str
    usual: bool
    matched: float
    distinct: bool


def rank_ids(sheet: Sheet, names: Names, column: str | None = None) -> list[IdColumn]:
    """Return the columns that may name images, the likeliest first: usual ones before those that match by chance.

    A column of labels is none, nor are bare numbers beside a column of file names; a given column is taken as it is.
    """
    found = []
    for each in [column] if column else dict.fromkeys(sheet.columns):
        cells = sheet.cells(each, LOOKED_AT)
        if not cells or (column is None and each.lower() in LABEL_NAMES):
            continue
        share = sum(bool(cell and names.files(cell)) for cell in cells) / len(cells)
        usual = re.sub(r"[\W_]", "", each.lower()) in ID_NAMES or is_file_names(cells)
        found.append(IdColumn(each, usual, share, len(set(cells)) >= LEAST_DISTINCT * len(cells)))
    if any(is_file_names(sheet.cells(one.column, LOOKED_AT)) for one in found):
        found = [one for one in found if one.usual or not all(map(str.isdigit, sheet.cells(one.column, LOOKED_AT)))]
    return sorted(found, key=lambda one: (one.usual and one.matched > LEAST_MATCHED, one.matched), reverse=True)


def is_file_names(cells: Sequence[str]) -> bool:
    """Return whether most cells end as images do."""
    return sum(map(is_image, cells)) > LEAST_MATCHED * len(cells)


def _describe_ids(sheet: Sheet, column: str, names: Names) -> Ids:
    """Return the folder that the ids are relative to, and whether they have folder and suffix."""
    cells = [cell.replace("\\", "/").removeprefix("./") for cell in sheet.cells(column) if cell]
    found = {cell: names.files(cell) for cell in cells}
    some = next(cell for cell in cells if found[cell])
    have_suffix = some.rpartition("/")[2] in names.by_name or is_image(some)
    chosen: dict[str, str] = {}
    for cell, meant in found.items():
        ends = [name for name in meant if _ends_with(name, cell)] or meant
        if ends:
            chosen[cell] = ends[0]
    files = tuple(chosen.values())
    common = PurePosixPath(_common_folder(files))
    for base in [common, *common.parents]:
        prefix = "" if base == PurePosixPath(".") else f"{base}/"
        fits = sum(_ends_with(name.removeprefix(prefix), cell, whole=True) for cell, name in chosen.items())
        if fits >= 0.9 * len(chosen):
            return Ids(column, files, base.as_posix(), have_suffix, have_folder=True)
    return Ids(column, files, common.as_posix(), have_suffix, have_folder=False)


def _ends_with(name: str, cell: str, *, whole: bool = False) -> bool:
    """Return whether a file's name is a cell's text, with or without suffix, or ends with it."""
    stem = name.rpartition(".")[0]
    for text, other in ((name, cell), (stem, cell), (stem, cell.rpartition(".")[0])):
        if text == other or (not whole and text.endswith(f"/{other}")):
            return True
    return False


def _common_folder(files: Sequence[str]) -> str:
    """Return the folder that all files have in common."""
    parts = [PurePosixPath(name).parts[:-1] for name in files]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "/".join(common)


def find_one_hot(sheet: Sheet, id_column: str, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the columns of which each row has one 1 and otherwise 0; empty where there are none.

    `wanted` are the only ones that are looked at, if given; else all columns of 0 and 1.
    """
    rows = sheet.rows[:LOOKED_AT]
    ones = {"0", "1", "0.0", "1.0"}
    columns = [name for name in wanted or sheet.columns if name in sheet.columns and name != id_column]
    columns = [name for name in columns if sheet.columns.count(name) == 1 and set(sheet.cells(name, LOOKED_AT)) <= ones]
    if len(columns) < 2 or not rows:
        return ()
    sums = [sum(float(row[sheet.columns.index(name)]) for name in columns) for row in rows]
    return tuple(columns) if all(each == 1 for each in sums) else ()


def find_label_column(sheet: Sheet, id_column: str, answers: Sequence[str]) -> str:
    """Return the column of labels of a training table: the sample submission's, a usual name, or the only one left.

    Raises:
        UserError: None or several columns can be it; the message names them.
    """
    others = [name for name in sheet.columns if name and name != id_column]
    usual = {name.lower(): name for name in reversed(others)}
    likely = [name for name in answers if name in others] if len(answers) == 1 else []
    likely += [usual[name] for name in LABEL_NAMES if name in usual]
    rows = len(sheet.rows)
    few = {name: len(sheet.distinct(name)) for name in others}
    likely = [name for name in likely if few[name] >= 2] or likely
    if likely or len(others) == 1:
        return [*likely, *others][0]
    possible = [name for name in others if 2 <= few[name] <= max(2, rows // 2)]
    if len(possible) == 1:
        return possible[0]
    shown = ", ".join(f"{name} ({few[name]} values)" for name in others) or "no column beside the id"
    raise UserError(f"{sheet.name}: say with --label-column which column holds the labels: {shown}")


def has_labels(sheet: Sheet, id_column: str, answers: Sequence[str]) -> bool:
    """Return whether a column's name says that it holds labels, or several are one-hot."""
    others = [name for name in sheet.columns if name and name != id_column]
    named = {name.lower() for name in others} & set(LABEL_NAMES) or set(others) & set(answers)
    return bool(named or find_one_hot(sheet, id_column))


def check_column(sheet: Sheet, column: str, option: str, path: Path) -> None:
    """Refuse a column that the table has not, or twice; UserError names its columns."""
    if sheet.columns.count(column) != 1:
        raise UserError(
            f"{path}: expected the column {column}, got {','.join(sheet.columns)}{closest(column, sheet.columns)}; "
            f"say with {option} which one"
        )


def names_beside(sheet: Sheet, label_column: str, id_column: str) -> dict[str, str]:
    """Return label -> name where the labels are numbers and another column holds one name for each; else nothing."""
    labels = sheet.cells(label_column)
    if not all(label.isdigit() for label in labels):
        return {}
    for column in sheet.columns:
        pairs = set(zip(labels, sheet.cells(column), strict=True))
        names = {name for _, name in pairs}
        numbers = {label for label, _ in pairs}
        words = all(name and not name.replace(".", "").isdigit() for name in names)
        if column not in (label_column, id_column) and words and len(pairs) == len(numbers) == len(names) > 1:
            return dict(pairs)
    return {}
