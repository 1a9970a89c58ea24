"""Read the training table and check it against the images on disk. Entry points: `read_competition`, `read_table`."""

from __future__ import annotations

import csv as csv_module
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")


@dataclass(frozen=True)
class TrainTable:
    """The rows (`image_id,label`), the folder of their images, and the names of unlisted images in it."""

    frame: pd.DataFrame
    image_dir: Path
    unlisted: tuple[str, ...]


class Row(NamedTuple):
    """One row of the CSV as written, with its line number (the header is line 1)."""

    line: int
    image_id: str
    label: str


def read_table(csv: str | Path, competition: Competition | None = None) -> pd.DataFrame:
    """Read `image_id: str, label: int` from a CSV with a header; other columns are dropped; ids are file names.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The table is empty, lacks a column, has a row of another width, an empty or repeated id, or a label
            that is not a whole number in 0..K-1; the message names the file and the line.
    """
    return _frame(_read_rows(Path(csv), competition or current()))


def to_written_columns(table: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Return a table `image_id,label` with the column names and ids of the competition's own tables."""
    ids = [competition.written_id(name) for name in table["image_id"]]
    columns = {"image_id": competition.id_column, "label": competition.label_column}
    return table.assign(image_id=ids).rename(columns=columns)


def read_competition(data_dir: str | Path, competition: Competition | None = None) -> TrainTable:
    """Read a competition folder's training table and check that each row's image is there; no image is opened.

    Raises:
        FileNotFoundError: The table, the image folder or the image of a row is missing.
        UserError: The table is not as `read_table` expects.
    """
    competition = competition or current()
    data_dir = Path(data_dir)
    csv, image_dir = data_dir / competition.train_csv, data_dir / competition.train_images
    rows = _read_rows(csv, competition)
    if not image_dir.is_dir():
        raise FileNotFoundError(f"no folder {image_dir}; {data_dir} must hold {csv.name} and {image_dir.name}/")
    _check_images_exist(rows, csv, image_dir)
    named = {row.image_id for row in rows}
    unlisted = tuple(name for name in list_images(image_dir) if name not in named)
    return TrainTable(_frame(rows), image_dir, unlisted)


def list_images(folder: str | Path) -> list[str]:
    """Return the names of the image files (by suffix, without hidden files) in a folder, sorted."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    names = _file_names(folder)
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


def _file_names(folder: Path) -> set[str]:
    with os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_file()}


def _check_images_exist(rows: list[Row], csv: Path, image_dir: Path) -> None:
    present = _file_names(image_dir)
    missing = [row for row in rows if row.image_id not in present]
    if missing:
        count = "1 row has" if len(missing) == 1 else f"{len(missing)} of {len(rows)} rows have"
        raise FileNotFoundError(
            f"{csv}, line {missing[0].line}: no image {missing[0].image_id!r} in {image_dir} ({count} none); "
            "add the images or remove the rows"
        )


def _frame(rows: list[Row]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"image_id": [row.image_id for row in rows], "label": [int(row.label) for row in rows]})


def _read_rows(csv: Path, competition: Competition) -> list[Row]:
    rows = list(_parse(csv, competition))
    if not rows:
        raise UserError(f"{csv} has a header but no rows; expected one row for every training image")
    first_line: dict[str, int] = {}
    for row in rows:
        _check_row(row, csv, competition)
        if row.image_id in first_line:
            raise UserError(
                f"{csv}, line {row.line}: {row.image_id!r} is already on line {first_line[row.image_id]}; "
                "each image has one row"
            )
        first_line[row.image_id] = row.line
    return rows


def _check_row(row: Row, csv: Path, competition: Competition) -> None:
    if not row.image_id.strip():
        raise UserError(f"{csv}, line {row.line}: {competition.id_column} is empty; expected an image's file name")
    digits = row.label if row.label.isascii() and row.label.isdigit() else ""
    if not digits or int(digits) >= competition.n_classes:
        raise UserError(
            f"{csv}, line {row.line}: {competition.label_column} must be a whole number in "
            f"0..{competition.n_classes - 1}, got {row.label!r}"
        )


def _parse(csv: Path, competition: Competition) -> Iterator[Row]:
    """Yield the rows of the file with their line numbers; blank lines are skipped."""
    # `str.splitlines` would end a row at a form feed or U+2028 as well.
    reader = csv_module.reader(io.StringIO(_read_text(csv), newline=""), strict=True)
    try:
        header = next(reader, [])
        id_at, label_at = _columns(header, csv, competition)
        end = reader.line_num
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(f"{csv}, line {line}: expected {len(header)} cells as in the header, got {len(cells)}")
            image_id = cells[id_at]
            yield Row(line, image_id and competition.file_name(image_id), cells[label_at].strip())
    except csv_module.Error as error:
        raise UserError(f"{csv}, line {reader.line_num}: not a valid CSV row ({error})") from None


def _columns(header: list[str], csv: Path, competition: Competition) -> tuple[int, int]:
    """Return the positions of id and label in a row."""
    names = [name.strip() for name in header]
    wanted = (competition.id_column, competition.label_column)
    if not any(names):
        raise UserError(f"{csv} is empty; expected the header {','.join(wanted)} and one row for every image")
    if any(names.count(name) != 1 for name in wanted):
        raise UserError(f"{csv}, line 1: expected the columns {','.join(wanted)}, got {','.join(names)}")
    return names.index(wanted[0]), names.index(wanted[1])


def _read_text(csv: Path) -> str:
    if not csv.is_file():
        raise FileNotFoundError(f"no such file {csv}; expected a CSV with the training labels")
    content = csv.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{csv}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        ) from None
