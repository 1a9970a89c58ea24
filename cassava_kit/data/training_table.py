"""Which table of an unknown folder holds the training labels: `find_training_table`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from cassava_kit.data.shape import Scan, role_of, suffixes_of
from cassava_kit.data.sheets import LEAST_MATCHED, LOOKED_AT, Ids, Names, Sheet, check_column, find_ids, rank_ids
from cassava_kit.errors import UserError
from cassava_kit.files import find_file, find_folder

TRAIN_CSV = "train.csv"


def find_training_table(
    scan: Scan, sheets: Mapping[str, Sheet], given: Mapping[str, Any], *, test_folder: str
) -> tuple[Sheet, Ids] | None:
    """Return the table that names training images, and how: the given one, or the likeliest; None where none does.

    Raises:
        FileNotFoundError: The table or the image folder that is given is missing, or names other images.
        UserError: The given table is none or empty, lacks the given column, or has an image twice.
    """
    pool = training_pool(scan, given, test_folder)
    wanted = given.get("train_csv")
    if wanted is not None:
        find_file(scan.folder / wanted, "table", "--train-csv names the table of labels in --data")
    for name in filter(None, [wanted, TRAIN_CSV if TRAIN_CSV in scan.tables and not wanted else None]):
        if (scan.folder / name).is_file() and not (scan.folder / name).stat().st_size:
            raise UserError(f"{scan.folder / name} is empty; expected a header and one row for every training image")
    if wanted is not None and wanted not in sheets:
        raise UserError(f"{scan.folder / wanted} is no table with a header and rows; look at --train-csv")
    id_column = given.get("id_column")
    candidates = []
    for name in [wanted] if wanted else sheets:
        sheet = sheets[name]
        if id_column is not None and name in (wanted, TRAIN_CSV):
            check_column(sheet, id_column, "--id-column", scan.folder / name)
        if len(sheet.columns) < 2 or (id_column is not None and id_column not in sheet.columns):
            continue
        ids = find_ids(sheet, pool, id_column)
        if ids is not None:
            candidates.append((sheet, ids))
    if not candidates and (wanted or TRAIN_CSV in sheets):
        raise _why_no_ids(scan, sheets[wanted or TRAIN_CSV], pool, id_column)
    best = max(candidates, key=lambda one: _rank(*one), default=None)
    return None if best is None or (wanted is None and role_of(best[0].name) == "test") else best


def training_pool(scan: Scan, given: Mapping[str, Any], test_folder: str) -> list[str]:
    """Return the images that may be training images, in the folder and with the suffix that the user gave.

    Raises:
        FileNotFoundError: There is no such folder, or no image with the suffix in it.
    """
    folder, suffix = given.get("train_images"), given.get("image_suffix") or ""
    if folder is not None:
        find_folder(scan.folder / folder, "name the one of the training images, --train-images")
    tests = set(scan.images_in(test_folder)) if test_folder and not folder else set()
    pool = [name for name in scan.images_in(folder or ".") if name not in tests]
    if suffix and not any(name.endswith(suffix) for name in pool):
        raise FileNotFoundError(
            f"expected images with {suffix} in {scan.folder / (folder or '.')}, got {suffixes_of(pool) or 'none'}; "
            "look at --image-suffix and --train-images"
        )
    return [name for name in pool if name.endswith(suffix)]


def _rank(sheet: Sheet, ids: Ids) -> tuple[bool, bool, bool, int]:
    name = PurePosixPath(sheet.name).name.lower()
    return name == TRAIN_CSV, role_of(name) == "train", "label" in name, len(ids.files)


def _why_no_ids(scan: Scan, sheet: Sheet, pool: list[str], id_column: str | None) -> Exception:
    """Return what keeps a table from naming the training images."""
    path, columns, names = scan.folder / sheet.name, ",".join(sheet.columns), Names(pool)
    if len(sheet.columns) < 2:
        return UserError(f"{path}: expected a column of image names and one of labels, got the one column {columns}")
    if not sheet.rows:
        return UserError(
            f"{path} has a header but no rows of {len(sheet.columns)} cells, as it has; expected one row for every "
            "training image"
        )
    likely = [one for one in rank_ids(sheet, names, id_column) if one.usual or one.column == id_column]
    twice = next((one.column for one in likely if one.matched > LEAST_MATCHED and not one.distinct), None)
    if twice is not None:
        first, rows = Counter(sheet.cells(twice)).most_common(1)[0]
        return UserError(f"{path}: {twice} has {first!r} on {rows} rows; each image has one row")
    shown = ", ".join(pool[:2]) or "none"
    if likely:
        cells = sheet.cells(likely[0].column, LOOKED_AT)
        absent = [cell for cell in cells if not names.files(cell)]
        return FileNotFoundError(
            f"{path}: {len(absent)} of {len(cells)} images that {likely[0].column} names are not in the folder (first: "
            f"{absent[0]!r}), which has {shown}; look at --id-column, --train-csv and --train-images"
        )
    column = id_column or sheet.columns[0]
    return FileNotFoundError(
        f"{path}: expected a column with the names of images, as {shown}; got {columns} with "
        f"{column}={sheet.cells(column, 1)[0]!r}; look at --id-column, --train-csv and the images"
    )
