"""The images that a submission predicts: a folder's, those that a table lists, or a part set apart: `read_test`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cassava_kit.competition import SEPARATORS, Competition, current
from cassava_kit.data.listing import FileFinder, list_files, named_images
from cassava_kit.data.table import check_data_folder, list_training_files, read_labelled_rows, set_apart
from cassava_kit.data.table_rows import read_lines
from cassava_kit.errors import UserError
from cassava_kit.files import csv_text, find_folder, write_text


@dataclass(frozen=True)
class ToPredict:
    """The folder of the images to predict, and their names in it, in a submission's order."""

    folder: Path
    names: tuple[str, ...]

    @property
    def paths(self) -> dict[str, Path]:
        """Name -> file."""
        return {name: self.folder / name for name in self.names}


def read_test(data_dir: str | Path, competition: Competition | None = None, *, check_links: bool = True) -> ToPredict:
    """Return the images of a competition's folder that a submission predicts.

    A notebook reads mounted images, which a rehearsal may make as links, with `check_links` off.

    Raises:
        FileNotFoundError: Their folder or their table is missing.
        UserError: The table has no such column, or a name in it leads out of the folder.
    """
    competition, data_dir = competition or current(), Path(data_dir)
    check_data_folder(data_dir)
    if competition.test_share:
        listing = list_training_files(data_dir, competition)
        names = set_apart(read_labelled_rows(data_dir, competition, listing), competition)
        listing.check_links(names)
        return ToPredict(listing.folder, tuple(names))
    folder = find_folder(data_dir / competition.test_images, "give the competition's folder as it was downloaded")
    if not competition.test_table:
        return ToPredict(folder, tuple(named_images(folder)))
    names = listed_names(data_dir / competition.test_table, folder, competition)
    if check_links:
        list_files(folder).check_links(names)
    return ToPredict(folder, tuple(names))


def listed_names(table: Path, folder: Path, competition: Competition) -> list[str]:
    """Return the image files whose ids a table lists, in its order; an id without a file gives the name it would have.

    Raises:
        UserError: The table lacks the id column, or a name leads out of the folder.
    """
    lines = listed_ids(table, competition)
    listing = list_files(folder)
    finder = FileFinder(listing.names, replace(competition, ids_have_suffix=competition.answers_have_suffix))
    names = []
    for line, image_id in lines:
        try:
            names.append(finder.name(image_id))
        except UserError as error:
            raise UserError(f"{table}, line {line}: {error}") from None
    return names


def listed_ids(table: Path, competition: Competition) -> list[tuple[int, str]]:
    """Return (line, id) of a table's rows, whatever separates its cells; UserError where it has no id column."""
    columns: list[str] = []
    for separator in dict.fromkeys((competition.separator, *SEPARATORS)):
        (_, header), *lines = [*read_lines(table, separator)] or [(1, [""])]
        columns = [name.strip() for name in header]
        for id_column in (competition.id_column, competition.answer_id):
            if id_column in columns:
                at = columns.index(id_column)
                return [(line, cells[at]) for line, cells in lines if len(cells) > at]
    raise UserError(f"{table}, line 1: expected the column {competition.id_column}, got {columns[0]}")


def write_test_table(path: Path, names: Iterable[str], competition: Competition) -> Path:
    """Write a table of the ids of image files as `listed_names` reads it, and return its path."""
    import pandas as pd

    ids: Sequence[str] = [competition.submitted_id(name) for name in names]
    write_text(path, csv_text(pd.DataFrame({competition.answer_id: ids})))
    return path
