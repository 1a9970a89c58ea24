"""Recognise the facts of a competition from its folder, and say in words what was found. Entry point: `recognise`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cassava_kit.competition import COMPETITION_FILE
from cassava_kit.data.answer_format import chosen_format, read_format
from cassava_kit.data.label_names import ClassLabels, find_label_map, name_labels
from cassava_kit.data.shape import (
    ClassFolders,
    Scan,
    check_images,
    find_class_folders,
    find_test_folder,
    natural,
    only_suffix,
    role_of,
    scan_folder,
    suffixes_of,
)
from cassava_kit.data.sheets import (
    Ids,
    Sheet,
    check_column,
    find_ids,
    find_label_column,
    find_one_hot,
    has_labels,
    names_beside,
    read_sheet,
)
from cassava_kit.data.training_table import find_training_table
from cassava_kit.errors import UserError
from cassava_kit.files import find_file

TEST_SHARE = 0.1
SET_APART = "set_apart"  # the name of the folder that a rehearsal makes of the images set apart
FEW_IMAGES = 5
ANSWERS_NAME = re.compile(r"submission|sample.?sub|submit", re.IGNORECASE)


@dataclass
class Found:
    """Fields of the competition that the folder shows, and lines that say so."""

    fields: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


class Recogniser:
    """The folder's images and tables, the fields that the user gave, and what has been found so far."""

    def __init__(self, data: Path, given: Mapping[str, Any]) -> None:
        self.data, self.given = data, given
        self.scan: Scan = scan_folder(data)
        check_images(self.scan)
        self.found = Found()
        self.sample_name = self._sample_name()
        self.sheets = {name: sheet for name in self.scan.tables if (sheet := self._sheet(name)) is not None}
        self.test_folder = given.get("test_images") or find_test_folder(self.scan.images)

    def _sheet(self, name: str) -> Sheet | None:
        needed = name in (self.given.get("train_csv"), "train.csv", self.sample_name)
        given = self.given.get("separator") if name == self.given.get("train_csv", "train.csv") else None
        try:
            return read_sheet(self.data, name, given)
        except UserError:
            if needed:
                raise
            return None

    def _sample_name(self) -> str:
        """Return the sample submission's name; empty where there is none."""
        named: str | None = self.given.get("sample_submission")
        if named is not None:
            if named:
                find_file(self.data / named, "file", "--sample-submission names a file in --data")
            return named
        own = {"submission.csv"} if (self.data / COMPETITION_FILE).is_file() else set()  # what the kit itself wrote
        likely = [
            name for name in self.scan.tables if ANSWERS_NAME.search(PurePosixPath(name).name) and name not in own
        ]
        return min(likely, key=lambda name: ("sample" not in name.lower(), name.count("/"), name), default="")

    def run(self) -> Found:
        """Find labels, then images to predict, then what a submission looks like."""
        named = {name: sheet for name, sheet in self.sheets.items() if name != self.sample_name}
        table = find_training_table(self.scan, named, self.given, test_folder=self.test_folder)
        folders = None if self.given.get("train_csv") or table else find_class_folders(self.scan.images)
        if table is not None and self._labels_are_folders(*table):
            table, folders = None, find_class_folders(self.scan.images)
        if table is not None:
            labels, rows = self._from_table(*table)
        elif folders is not None:
            labels, rows = self._from_folders(folders)
        else:
            raise UserError(self._why_nothing())
        tests = self._images_to_predict(rows)
        self._submission(labels, tests, by_folder=table is None)
        self._others()
        return self.found

    def _labels_are_folders(self, sheet: Sheet, ids: Ids) -> bool:
        """Return whether a table beside class folders has no labels, or repeats their names, perhaps of test images."""
        if any(name in self.given for name in ("train_csv", "label_column")) or sheet.name == "train.csv":
            return False
        folders = find_class_folders(self.scan.images)
        if folders is None:
            return False
        if not has_labels(sheet, ids.column, self._answer_columns()):
            return True
        files = [name for name in ids.files if PurePosixPath(name).parent.name in folders.values]
        cells = {value for column in sheet.columns if column != ids.column for value in sheet.distinct(column)}
        return len(files) == len(ids.files) and set(folders.values) <= cells

    def _from_table(self, sheet: Sheet, ids: Ids) -> tuple[ClassLabels, list[str]]:
        """Note the table's facts; return its labels and the images of its rows."""
        fields = self.found.fields
        fields |= {
            "train_csv": sheet.name,
            "separator": sheet.separator,
            "id_column": ids.column,
            "train_images": self.given.get("train_images", ids.base),
            "ids_have_suffix": ids.have_suffix,
            "ids_have_folder": ids.have_folder,
            "image_suffix": only_suffix(ids.files),
        }
        labels, what = self._table_labels(sheet, ids)
        marks = {";": "semicolons", "\t": "tabs", "|": "bars"}
        divided = f", cells separated by {marks[sheet.separator]}" if sheet.separator in marks else ""
        short = {(True, False): " (without the file's ending)", (False, False): " (without folder and ending)"}
        short |= {(False, True): " (without folder)"}
        left = short.get((ids.have_folder, ids.have_suffix), "")
        folders = sorted({PurePosixPath(name).parent.as_posix() for name in ids.files}, key=natural)
        where = f"{len(folders)} folders ({', '.join(folders[:4])}{', ...' if len(folders) > 4 else ''})"
        where = where if len(folders) > 1 else f"{folders[0]}/" if folders[0] != "." else "the folder itself"
        self.found.lines += [
            f"{sheet.name}: {len(sheet.rows):,} rows{divided}; image names are in the column {ids.column!r}{left}, "
            f"labels in {what}",
            f"training images: {len(ids.files):,} in {where} ({suffixes_of(ids.files)})",
        ]
        return labels, list(ids.files)

    def _table_labels(self, sheet: Sheet, ids: Ids) -> tuple[ClassLabels, str]:
        """Note where the labels are; return them, and that in words."""
        fields = self.found.fields
        answers = self._answer_columns()
        column = self.given.get("label_column")
        if column is not None:
            check_column(sheet, column, "--label-column", self.data / sheet.name)
        hot = () if column else find_one_hot(sheet, ids.column, answers if len(answers) > 1 else ())
        if hot:
            fields |= {"label_columns": hot}
            return self._named(
                ClassLabels(hot, hot), listed=True
            ), f"{len(hot)} columns, of which one is 1 ({', '.join(hot[:4])}{', ...' if len(hot) > 4 else ''})"
        column = column or find_label_column(sheet, ids.column, answers)
        fields["label_column"] = column
        values = sorted(sheet.distinct(column), key=natural)
        if len(values) < 2:
            got = f"{values[0]!r} alone" if values else "none"
            raise UserError(f"{sheet.name}: expected two or more labels in {column}, got {got}")
        if len(values) > 0.9 * len(sheet.rows):
            raise UserError(
                f"{sheet.name}: {column} has {len(values)} different values in {len(sheet.rows)} rows, which are no "
                "classes; say with --label-column which column holds the labels"
            )
        beside = names_beside(sheet, column, ids.column)
        named = self._named(ClassLabels(tuple(beside.get(value, value) for value in values), tuple(values)))
        return named, f"the column {column!r} ({len(named.classes)} classes)"

    def _named(self, labels: ClassLabels, *, listed: bool = False) -> ClassLabels:
        """Return labels with the names that the user gave, or a JSON map; see `name_labels`."""
        fitting = find_label_map(self.data, self.given.get("label_map"), labels.values)
        if fitting is not None:
            self.found.fields["label_map"] = fitting[0]
            self.found.lines.append(f"{fitting[0]}: names of the {len(fitting[1])} labels")
        names = fitting[1] if fitting else ()
        return name_labels(labels, self.given.get("classes"), names=names or self._answer_columns(), listed=listed)

    def _answer_columns(self) -> list[str]:
        sheet = self.sheets.get(self.sample_name)
        return sheet.columns[1:] if sheet else []

    def _from_folders(self, folders: ClassFolders) -> tuple[ClassLabels, list[str]]:
        """Note the class folders; return the labels and the images in them."""
        labels = self._named(ClassLabels(folders.values, folders.values))
        values = labels.values or folders.values
        roots = [PurePosixPath(folders.base, folder) for folder in folders.folders]
        prefixes = tuple(f"{(root / value).as_posix()}/" for root in roots for value in folders.values)
        rows = [name for name in self.scan.images if name.startswith(prefixes)]
        self.found.fields |= {
            "train_csv": "",
            "train_images": folders.base,
            "class_folders": folders.folders,
            "label_values": values,
            "ids_have_suffix": True,
            "image_suffix": only_suffix(rows),
        }
        where = " and ".join(f"{root.as_posix()}/" for root in roots if root != PurePosixPath("."))
        counts = dict(zip(folders.values, folders.counts, strict=True))
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        spread = f"from {counts[least]:,} of {least!r} to {counts[most]:,} of {most!r}"
        spread = spread if counts[least] < counts[most] else f"{counts[most]:,} each"
        self.found.lines.append(
            f"training images: {len(rows):,} ({suffixes_of(rows)}) in {len(counts)} class folders"
            f"{f' of {where}' if where else ''}, {spread}; a folder's name is its label"
        )
        if few := [name for name, count in counts.items() if count < FEW_IMAGES]:
            shown = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
            self.found.lines.append(f"fewer than {FEW_IMAGES} images, too few for five folds: {shown}")
        return ClassLabels(labels.classes, values), rows

    def _images_to_predict(self, rows: list[str]) -> list[str]:
        """Note which images a submission predicts, and return them."""
        fields, lines = self.found.fields, self.found.lines
        if self.test_folder:
            tests = self.scan.images_in(self.test_folder)
            if not tests or not (self.data / self.test_folder).is_dir():
                raise FileNotFoundError(
                    f"expected a folder {self.data / self.test_folder} with images, got none; name it with "
                    "--test-images"
                )
            fields["test_images"] = self.test_folder
            inside = len({PurePosixPath(name).parent for name in tests}) > 1
            beside = "; their folders' names are no labels here" if inside else ""
            lines.append(f"images to predict: {len(tests):,} in {self.test_folder}/{beside}")
            return tests
        known = set(rows)
        for name in filter(None, [self.given.get("test_table"), self.sample_name, *self._test_sheets()]):
            sheet = self.sheets.get(name)
            ids = find_ids(sheet, [image for image in self.scan.images if image not in known]) if sheet else None
            if sheet is not None and ids is not None:
                fields |= {"test_table": name, "test_images": ids.base}
                lines.append(f"images to predict: the {len(ids.files):,} that {name} lists, in {ids.base}/")
                return list(ids.files)
        fields |= {"test_share": TEST_SHARE, "test_images": SET_APART}
        lines.append(
            f"images to predict: none found, so {TEST_SHARE:.0%} of each class are set apart: never trained on, and "
            "predicted in the submission (--test-images names a folder instead)"
        )
        return rows

    def _test_sheets(self) -> list[str]:
        return [name for name in self.sheets if role_of(name) == "test"]

    def _submission(self, labels: ClassLabels, tests: list[str], *, by_folder: bool) -> None:
        """Note what a submission looks like: as the sample submission, or as the training data call the labels."""
        fields, given = self.found.fields, self.given
        sheet = self.sheets.get(self.sample_name)
        fields["classes"] = labels.classes
        if labels.values and not fields.get("label_columns"):
            fields["label_values"] = labels.values
        fields["sample_submission"] = self.sample_name
        if sheet is None:
            made, what = chosen_format(labels, by_folder=by_folder)
            columns = f"{made.get('answer_id_column', fields.get('id_column'))},"
            columns += made.get("answer_column") or given.get("label_column") or fields.get("label_column") or "label"
            self.found.lines.append(f"no sample submission: a submission will have {columns}, {what}")
            fields |= (
                made if given.get("metric") != "log_loss" else {"answer_id_column": made.get("answer_id_column", "")}
            )
            if fields.get("label_columns") and "label_column" not in fields:
                fields["answer_column"] = "label"
            return
        if given.get("probability_columns"):
            self.found.lines.append(f"{sheet.name}: columns as given")
            fields["answer_id_column"] = sheet.columns[0]
        else:
            made, what = read_format(sheet, labels, tests)
            fields |= made
            self.found.lines.append(f"{sheet.name}: a submission has {','.join(sheet.columns[:5])}, {what}")
        self._submitted_ids(sheet, tests, by_folder=by_folder)

    def _submitted_ids(self, sheet: Sheet, tests: list[str], *, by_folder: bool) -> None:
        """Note how the sample submission writes ids, where it differs from the training table."""
        fields = self.found.fields
        ids = find_ids(sheet, tests, sheet.columns[0])
        if ids is None:
            return
        if by_folder:
            fields |= {"ids_have_suffix": ids.have_suffix, "ids_have_folder": ids.have_folder}
        elif ids.have_suffix != fields["ids_have_suffix"]:
            fields["answer_ids_have_suffix"] = ids.have_suffix
        if not fields.get("test_table") and len(ids.files) < len(tests):
            self.found.lines.append(
                f"{sheet.name} lists {len(ids.files):,} of the {len(tests):,} images: the submission has them all "
                f"(--test-table {sheet.name} predicts the listed ones alone)"
            )

    def _others(self) -> None:
        """Note what was left alone."""
        scan = self.scan
        if scan.links:
            self.found.lines.append(f"left alone, links to folders: {', '.join(scan.links[:4])}")
        if scan.others:
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in scan.others.most_common(4))
            self.found.lines.append(f"left alone, no images or tables: {kinds}")

    def _why_nothing(self) -> str:
        """Return what was expected of a folder in which no label was found."""
        folders = sorted({PurePosixPath(name).parent.as_posix() for name in self.scan.images})
        where = ", ".join("the folder itself" if folder == "." else folder for folder in folders[:4])
        images = f"{len(self.scan.images):,} image{'s' if len(self.scan.images) != 1 else ''}"
        tables = ", ".join(self.sheets) or "no table"
        return (
            f"{self.data} has {images} in {where} and {tables}, but nothing "
            "that says what they show: expected a table with a column of image names and one of labels (--train-csv, "
            "--id-column, --label-column), or a folder for each class (train/<class>/1.jpg, or <class>/1.jpg)"
        )


def recognise(data: Path, given: Mapping[str, Any]) -> Found:
    """Return what a competition's folder shows, by names and tables alone: no image is opened.

    `given` are the fields that the user named, which are taken as they are.

    Raises:
        FileNotFoundError: A file or folder that was named is missing.
        UserError: The folder has no image, or nothing that tells the labels, or a table contradicts it.
    """
    return Recogniser(data, given).run()
