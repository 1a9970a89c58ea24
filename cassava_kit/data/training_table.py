"""Which table of an unknown folder holds the training labels: `find_training_table`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from cassava_kit.data.shape import Scan, role_of, suffixes_of
from cassava_kit.data.sheets import Ids, Sheet, check_column, find_ids
from cassava_kit.errors import UserError

TRAIN_CSV = "train.csv"


def find_training_table(
    scan: Scan, sheets: Mapping[str, Sheet], given: Mapping[str, Any], *, test_folder: str
) -> tuple[Sheet, Ids] | None:
    """Return the table that names training images, and how: the given one, or the likeliest; None where none does.

    Raises:
        FileNotFoundError: The table or the image folder that is given is missing, or names other images.
        UserError: The given table is none, or lacks the given column.
    """
    pool = training_pool(scan, given, test_folder)
    wanted = given.get("train_csv")
    if wanted is not None and not (scan.folder / wanted).is_file():
        raise FileNotFoundError(f"no {scan.folder / wanted}; --train-csv names the table of labels in --data")
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
        raise _names_other_images(scan, sheets[wanted or TRAIN_CSV], pool, id_column)
    best = max(candidates, key=lambda one: _rank(*one), default=None)
    return None if best is None or (wanted is None and role_of(best[0].name) == "test") else best


def training_pool(scan: Scan, given: Mapping[str, Any], test_folder: str) -> list[str]:
    """Return the images that may be training images, in the folder and with the suffix that the user gave.

    Raises:
        FileNotFoundError: There is no such folder, or no image with the suffix in it.
    """
    folder, suffix = given.get("train_images"), given.get("image_suffix") or ""
    if folder is not None and not (scan.folder / folder).is_dir():
        raise FileNotFoundError(
            f"no folder {scan.folder / folder}; name the one of the training images, --train-images"
        )
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


def _names_other_images(scan: Scan, sheet: Sheet, pool: list[str], id_column: str | None) -> Exception:
    column = id_column or sheet.columns[0]
    first = (sheet.cells(column, 1) or [""])[0]
    return FileNotFoundError(
        f"{scan.folder / sheet.name}: expected a column with the names of images, as {', '.join(pool[:2]) or 'none'}; "
        f"got {','.join(sheet.columns)} with {column}={first!r}; look at --id-column, --train-csv and the images"
    )
