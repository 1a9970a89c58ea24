"""Read the labelled images and check them against those on disk. Entry points: `read_competition`, `read_table`.

Labels are in a table (`train_csv`) or are the names of the folders in which the images lie (`class_folders`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cassava_kit.competition import Competition, current
from cassava_kit.data.listing import FileFinder, Listing, check_utf8, list_files
from cassava_kit.data.table_rows import Row, read_table_rows
from cassava_kit.errors import UserError
from cassava_kit.files import find_folder

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class TrainTable:
    """The rows (`image_id,label`), the folder of their images, and the names of unlisted images in it."""

    frame: pd.DataFrame
    image_dir: Path
    unlisted: tuple[str, ...]


def read_table(csv: str | Path, competition: Competition | None = None) -> pd.DataFrame:
    """Read `image_id: str, label: int` from a CSV with a header; other columns are dropped; ids are file names.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The table is empty, lacks a column, has a row of another width, an empty or repeated id, or a label
            that is none of the competition's; the message names the file and the line. Or the ids do not tell the
            files' names without the images (mixed suffixes, subfolders).
    """
    competition = competition or current()
    if not competition.ids_have_folder or not (competition.ids_have_suffix or competition.image_suffix):
        raise UserError(
            f"the ids of {csv} leave out subfolders or mixed suffixes of the images' files; give the competition's "
            "folder, --data DIR, instead of the table alone"
        )
    return _frame(read_table_rows(Path(csv), competition, FileFinder((), competition)))


def to_written_columns(table: pd.DataFrame, competition: Competition) -> pd.DataFrame:
    """Return a table `image_id,label` with the columns, ids and labels of the competition's own tables."""
    written = table.assign(image_id=[competition.written_id(name) for name in table["image_id"]])
    written = written.rename(columns={"image_id": competition.id_column})
    if competition.label_columns:
        columns = {name: (table["label"] == k).astype(int) for k, name in enumerate(competition.label_columns)}
        return written.drop(columns="label").assign(**columns)
    if competition.label_values:
        written["label"] = [competition.label_values[k] for k in table["label"]]
    return written.rename(columns={"label": competition.label_column})


def read_competition(data_dir: str | Path, competition: Competition | None = None) -> TrainTable:
    """Read a competition folder's labelled images and check that each row's image is there; no image is opened.

    Images that are set apart as the test images (`test_share`) are not among them.

    Raises:
        FileNotFoundError: The table, the image folder or the image of a row is missing.
        UserError: The table is not as `read_table` expects, or a name or link leads out of the image folder.
    """
    competition = competition or current()
    listing = list_training_files(data_dir, competition)
    rows = read_labelled_rows(data_dir, competition, listing)
    if not competition.class_folders:
        _check_images_exist(rows, Path(data_dir) / competition.train_csv, listing, competition)
    named = {row.image_id for row in rows}
    listing.check_links(named)
    mixed = competition.test_table and competition.train_images == competition.test_images
    unlisted = () if mixed else tuple(name for name in listing.images if name not in named)
    return TrainTable(_frame(without_set_apart(rows, competition)), listing.folder, unlisted)


def read_labels(data_dir: str | Path, competition: Competition | None = None) -> pd.DataFrame:
    """Return `read_competition`'s rows alone: the image of a row may be missing, but there must be a folder of images.

    Raises:
        FileNotFoundError: The table or the image folder is missing.
        UserError: As `read_competition`.
    """
    competition = competition or current()
    listing = list_training_files(data_dir, competition)
    rows = read_labelled_rows(data_dir, competition, listing)
    listing.check_links(row.image_id for row in rows)
    return _frame(without_set_apart(rows, competition))


def list_training_images(data_dir: str | Path, competition: Competition | None = None) -> set[str]:
    """Return the names of all training images, with a row or not; images that are to be predicted are not among them.

    Where one folder holds both, these are the images of rows.
    """
    competition = competition or current()
    listing = list_training_files(data_dir, competition)
    found = set(listing.images)
    if not (competition.test_share or competition.test_table):
        return found
    rows = read_labelled_rows(data_dir, competition, listing)
    if competition.test_table and competition.train_images == competition.test_images:
        return found & {row.image_id for row in rows}
    return found - set(set_apart(rows, competition))


def list_training_files(data_dir: str | Path, competition: Competition) -> Listing:
    """List the files of the training images' folder, or of its class folders.

    Raises:
        FileNotFoundError: There is no such folder; the message says what the competition's folder must hold.
    """
    data_dir = Path(data_dir)
    check_data_folder(data_dir)
    image_dir = data_dir / competition.train_images
    if not image_dir.is_dir():
        what = competition.train_csv or " and ".join(competition.class_folders)
        raise FileNotFoundError(
            f"no folder {image_dir}; of {competition.slug}, the competition at hand, {data_dir} must hold {what} and "
            f"{competition.train_images}/; for another competition run: cassava-kit init --data DIR"
        )
    own = competition.class_folders and competition.train_images == "."
    within = list(class_folders(competition)) if own else competition.class_folders or ("",)
    listing = list_files(image_dir, within)
    check_utf8(listing.images)
    return listing


def class_folders(competition: Competition) -> Iterator[str]:
    """Yield the class folders, relative to the training images' folder."""
    for folder in competition.class_folders:
        for name in competition.label_values:
            yield PurePosixPath(folder, name).as_posix()


def check_data_folder(data_dir: Path) -> None:
    """Refuse a competition folder that is a file or is not there.

    Raises:
        FileNotFoundError: There is nothing of this name.
        UserError: It is a file; the message names its folder.
    """
    if data_dir.is_file():
        raise UserError(f"expected a competition's folder, got the file {data_dir}; give its folder {data_dir.parent}")
    find_folder(data_dir, "give the competition's folder as it was downloaded")


def list_images(folder: str | Path) -> list[str]:
    """Return the names of the image files (by suffix, without hidden files) in a folder and its subfolders, sorted."""
    return list_files(folder).images


def read_labelled_rows(data_dir: str | Path, competition: Competition, listing: Listing) -> list[Row]:
    """Return all labelled rows of a competition's folder, those set apart included.

    Raises:
        UserError: As `read_table`; or a class folder holds no image.
    """
    if not competition.class_folders:
        return read_table_rows(
            Path(data_dir) / competition.train_csv, competition, FileFinder(listing.names, competition)
        )
    label_of = {name: k for k, name in enumerate(competition.label_values)}
    roots = [PurePosixPath(folder).parts for folder in competition.class_folders]
    rows = []
    for name in listing.images:
        parts = PurePosixPath(name).parts
        folders = [parts[len(root)] for root in roots if parts[: len(root)] == root and len(parts) > len(root) + 1]
        if folders and folders[0] in label_of:
            rows.append(Row(0, name, label_of[folders[0]]))
    if not rows:
        raise UserError(
            f"no image in the class folders of {competition.slug} in {listing.folder}; for another competition than "
            "the one at hand run: cassava-kit init --data DIR"
        )
    return rows


def without_set_apart(rows: Sequence[Row], competition: Competition) -> list[Row]:
    """Return the rows without those that are set apart as test images."""
    apart = set(set_apart(rows, competition))
    return [row for row in rows if row.image_id not in apart]


def set_apart(rows: Sequence[Row], competition: Competition) -> list[str]:
    """Return the images that are set apart as test images: `test_share` of each class, rounded down, by name's hash.

    Where no class has so many, one image of the largest class. The same files give the same choice.
    """
    if not competition.test_share:
        return []
    classes: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        classes[row.label].append(row.image_id)
    counts = {label: int(len(names) * competition.test_share) for label, names in classes.items()}
    if not any(counts.values()):
        counts[max(classes, key=lambda label: len(classes[label]))] = 1
    chosen = [sorted(names, key=_name_hash)[: counts[label]] for label, names in classes.items()]
    return sorted(name for names in chosen for name in names)


def _name_hash(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def _check_images_exist(rows: list[Row], csv: Path, listing: Listing, competition: Competition) -> None:
    present = set(listing.names)
    missing = [row for row in rows if row.image_id not in present]
    if missing:
        count = "1 row has" if len(missing) == 1 else f"{len(missing)} of {len(rows)} rows have"
        first = competition.written_id(missing[0].image_id) if missing[0].image_id else ""
        hint = _other_ids(missing, listing, competition) or "add the images or remove the rows"
        raise FileNotFoundError(
            f"{csv}, line {missing[0].line}: no image {first!r} in {listing.folder} ({count} none); {hint}"
        )


def _other_ids(missing: list[Row], listing: Listing, competition: Competition) -> str:
    """Return what to change where the ids would fit with or without suffix or subfolder; an empty text elsewhere."""
    ids = [row.image_id for row in missing]
    if not competition.ids_have_suffix:
        ids = [name.removesuffix(competition.image_suffix) for name in ids]
    suffix, folder = not competition.ids_have_suffix, not competition.ids_have_folder
    changes: tuple[dict[str, Any], ...] = ({"ids_have_suffix": suffix}, {"ids_have_folder": folder})
    for change in changes:
        by_id = FileFinder(listing.images, replace(competition, **change)).by_id
        found = [by_id[each] for each in ids if each in by_id]
        if found:
            ((setting, value),) = change.items()
            what = f"with {PurePosixPath(found[0]).suffix}" if setting == "ids_have_suffix" else "in subfolders"
            return (
                f"{len(found)} of them are there {what} (e.g. {found[0]}): is {setting}={str(value).lower()} in "
                "competition.json? `cassava-kit init --data DIR` finds out"
            )
    return ""


def _frame(rows: Sequence[Row]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"image_id": [row.image_id for row in rows], "label": [row.label for row in rows]})
