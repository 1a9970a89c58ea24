"""Recognise the facts of a competition from its folder, and say in words what was found. Entry point: `recognise`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from cassava_kit.data.answer_format import Labels, chosen_format, read_format
from cassava_kit.data.shape import ClassFolders, Scan, check_images, find_class_folders, natural, role_of, scan_folder
from cassava_kit.data.sheets import (
    Ids,
    Sheet,
    check_column,
    find_ids,
    find_label_column,
    find_one_hot,
    names_beside,
    read_sheet,
)
from cassava_kit.errors import UserError
from cassava_kit.files import read_json

TEST_SHARE = 0.1
SET_APART = "set_apart"  # the name of the folder that a rehearsal makes of the images set apart
FEW_IMAGES = 5


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
        self.test_folder = given.get("test_images") or self._test_folder()

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
            if named and not (self.data / named).is_file():
                raise FileNotFoundError(f"no {self.data / named}; --sample-submission names a file in --data")
            return named
        likely = [name for name in self.scan.tables if "submission" in PurePosixPath(name).name.lower()]
        return min(likely, key=lambda name: ("sample" not in name.lower(), name.count("/"), name), default="")

    def _test_folder(self) -> str:
        """Return the largest folder whose name says that its images are to be predicted; empty where there is none."""
        counts: dict[str, int] = {}
        for name in self.scan.images:
            parents = PurePosixPath(name).parents
            tests = [each for each in parents if role_of(each.name) == "test"]
            if tests:  # the outermost; and from there down through folders that hold one folder alone
                counts[tests[-1].as_posix()] = counts.get(tests[-1].as_posix(), 0) + 1
        folder = max(counts, key=lambda name: counts[name], default="")
        while folder and (below := self._only_child(folder)):
            folder = below
        return folder

    def _only_child(self, folder: str) -> str:
        firsts = {name.removeprefix(f"{folder}/").partition("/") for name in self.images_in(folder)}
        children = {first for first, mark, _ in firsts if mark}
        return f"{folder}/{children.pop()}" if len(children) == 1 and all(mark for _, mark, _ in firsts) else ""

    def images_in(self, folder: str) -> list[str]:
        """Return the images below a folder."""
        prefix = "" if folder in ("", ".") else f"{folder}/"
        return [name for name in self.scan.images if name.startswith(prefix)]

    def run(self) -> Found:
        """Find labels, then images to predict, then what a submission looks like."""
        table = self._training_table()
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

    def _training_table(self) -> tuple[Sheet, Ids] | None:
        """Return the table that names training images and has a label; UserError where one is given that does not."""
        pool = self._training_pool()
        wanted = self.given.get("train_csv")
        if wanted is not None:
            if not (self.data / wanted).is_file():
                raise FileNotFoundError(f"no {self.data / wanted}; --train-csv names the table of labels in --data")
            if wanted not in self.sheets:
                raise UserError(f"{self.data / wanted} is no table with a header and rows; look at --train-csv")
        id_column = self.given.get("id_column")
        named = [name for name in self.sheets if name != self.sample_name or name == wanted]
        candidates = []
        for name in [wanted] if wanted else named:
            sheet = self.sheets[name]
            if id_column is not None and id_column not in sheet.columns and not wanted and name != "train.csv":
                continue
            if id_column is not None and (wanted or name == "train.csv"):
                check_column(sheet, id_column, "--id-column", self.data / name)
            ids = find_ids(sheet, pool, id_column) if len(sheet.columns) > 1 else None
            if ids is not None:
                candidates.append((sheet, ids))
        if not candidates and (wanted or "train.csv" in self.sheets):
            raise self._no_image_of(self.sheets[wanted or "train.csv"], pool)
        best = max(candidates, key=lambda one: self._rank(*one), default=None)
        return None if best is None or (wanted is None and role_of(best[0].name) == "test") else best

    def _training_pool(self) -> list[str]:
        """Return the images that may be training images, in the folder and with the suffix that the user gave.

        Raises:
            FileNotFoundError: There is no such folder, or no image with the suffix in it.
        """
        folder, suffix = self.given.get("train_images"), self.given.get("image_suffix")
        if folder is not None and not (self.data / folder).is_dir():
            raise FileNotFoundError(
                f"no folder {self.data / folder}; name the one of the training images with --train-images"
            )
        tests = set() if folder else self._tests
        pool = [name for name in self.images_in(folder or ".") if name not in tests]
        if suffix and not any(name.endswith(suffix) for name in pool):
            raise FileNotFoundError(
                f"expected images with {suffix} in {self.data / (folder or '.')}, got {suffixes_of(pool) or 'none'}; "
                "look at --image-suffix and --train-images"
            )
        return [name for name in pool if name.endswith(suffix or "")]

    @property
    def _tests(self) -> set[str]:
        return set(self.images_in(self.test_folder)) if self.test_folder else set()

    def _rank(self, sheet: Sheet, ids: Ids) -> tuple[bool, bool, bool, int]:
        name = PurePosixPath(sheet.name).name.lower()
        return name == "train.csv", role_of(name) == "train", "label" in name, len(ids.files)

    def _no_image_of(self, sheet: Sheet, pool: list[str]) -> Exception:
        column = self.given.get("id_column") or sheet.columns[0]
        first = (sheet.cells(column, 1) or [""])[0]
        there = ", ".join(pool[:2]) or "no image"
        return FileNotFoundError(
            f"{self.data / sheet.name}: expected a column with the names of images, as {there}; got "
            f"{','.join(sheet.columns)} with {column}={first!r}; look at --id-column, --train-csv and the images"
        )

    def _labels_are_folders(self, sheet: Sheet, ids: Ids) -> bool:
        """Return whether a table only repeats the class folders, perhaps for test images too."""
        if any(name in self.given for name in ("train_csv", "label_column")) or sheet.name == "train.csv":
            return False
        folders = find_class_folders(self.scan.images)
        if folders is None:
            return False
        files = [name for name in ids.files if PurePosixPath(name).parent.name in folders.values]
        cells = {value for column in sheet.columns if column != ids.column for value in sheet.distinct(column)}
        return len(files) == len(ids.files) and set(folders.values) <= cells

    def _from_table(self, sheet: Sheet, ids: Ids) -> tuple[Labels, list[str]]:
        """Note the table's facts; return its labels and the images of its rows."""
        if not any(sheet.rows):
            raise UserError(f"{sheet.name} has a header but no rows; expected one row for every training image")
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
        short = {(True, False): ", without suffix", (False, False): ", without folder and suffix"}
        short |= {(False, True): ", without folder"}
        left = short.get((ids.have_folder, ids.have_suffix), "")
        folders = sorted({PurePosixPath(name).parent.as_posix() for name in ids.files}, key=natural)
        where = f"{len(folders)} folders ({', '.join(folders[:4])}{', ...' if len(folders) > 4 else ''})"
        where = where if len(folders) > 1 else f"{folders[0]}/" if folders[0] != "." else "the folder itself"
        self.found.lines += [
            f"{sheet.name}: {len(sheet.rows):,} rows{divided}; {ids.column} names the images{left}, {what}",
            f"training images: {len(ids.files):,} in {where} ({suffixes_of(ids.files)})",
        ]
        return labels, list(ids.files)

    def _table_labels(self, sheet: Sheet, ids: Ids) -> tuple[Labels, str]:
        """Note where the labels are; return them, and that in words."""
        fields = self.found.fields
        answers = self._answer_columns()
        column = self.given.get("label_column")
        if column is not None:
            check_column(sheet, column, "--label-column", self.data / sheet.name)
        hot = () if column else find_one_hot(sheet, ids.column, answers if len(answers) > 1 else ())
        if hot:
            fields |= {"label_columns": hot}
            return self._named(Labels(hot, hot)), f"one of {len(hot)} columns is 1 ({', '.join(hot[:4])}, ...)"
        column = column or find_label_column(sheet, ids.column, answers)
        fields["label_column"] = column
        values = sorted(sheet.distinct(column), key=natural)
        if len(values) < 2:
            raise UserError(f"{sheet.name}: expected two or more labels in {column}, got {', '.join(values) or 'none'}")
        if len(values) > max(2, 0.9 * len(sheet.rows)):
            raise UserError(
                f"{sheet.name}: {column} has {len(values)} different values in {len(sheet.rows)} rows, which are no "
                "classes; say with --label-column which column holds the labels"
            )
        beside = names_beside(sheet, column, ids.column)
        named = self._named(Labels(tuple(beside.get(value, value) for value in values), tuple(values)))
        return named, f"{column} holds {len(named.classes)} labels"

    def _named(self, labels: Labels) -> Labels:
        """Return labels with the names that the user gave, or a JSON map; numbers 0 to K-1 are not listed as values."""
        given = self.given.get("classes")
        numbers = set(labels.values) <= {str(k) for k in range(max(len(labels.values), len(given or ())))}
        names = self._label_map(labels.values)
        classes = labels.classes
        if given is not None and numbers:
            classes = tuple(given)
        elif given is not None:
            if set(given) == set(labels.values):
                return Labels(tuple(given), tuple(given))
            if len(given) != len(labels.values):
                raise UserError(
                    f"--classes gives {len(given)} names, the data have {len(labels.values)} labels "
                    f"({', '.join(labels.values[:6])}); give a name for each, in this order"
                )
            classes = tuple(given)
        elif names:
            classes = names
        columns = [] if self._answer_columns() is None else self._answer_columns()
        if given is None and not names and classes == labels.values and numbers and len(columns) == len(classes):
            classes = tuple(columns)
        if len(set(classes)) < len(classes):
            classes = tuple(f"{name} ({value})" for name, value in zip(classes, labels.values, strict=True))
        return Labels(classes, () if numbers and not self.found.fields.get("label_columns") else labels.values)

    def _label_map(self, values: Collection[str]) -> tuple[str, ...]:
        """Return class names from the JSON map of labels to names: the named file, or the only one that fits."""
        wanted = self.given.get("label_map")
        if wanted is not None and not (self.data / wanted).is_file():
            raise FileNotFoundError(
                f"no {self.data / wanted}; --label-map names a JSON file of labels and class names in --data"
            )
        fitting = {}
        for path in [self.data / wanted] if wanted else sorted(self.data.glob("*.json")):
            try:
                content = read_json(path)
            except UserError:
                if wanted:
                    raise
                continue
            if isinstance(content, dict) and content and all(isinstance(key, str) for key in content.values()):
                numbers = [str(k) for k in range(len(content))]
                for order in (sorted(values, key=natural), numbers):
                    if content.keys() == set(order) and (len(order) >= len(values)):
                        fitting[path] = tuple(str(content[key]) for key in order)
        if wanted and not fitting:
            raise UserError(
                f'{self.data / wanted} must map labels to names as {{"0": "healthy", "1": ...}}; or give --classes'
            )
        if len(fitting) != 1:
            return ()
        ((path, names),) = fitting.items()
        self.found.fields["label_map"] = path.name
        self.found.lines.append(f"{path.name}: names of the {len(names)} labels")
        return names

    def _answer_columns(self) -> list[str]:
        sheet = self.sheets.get(self.sample_name)
        return sheet.columns[1:] if sheet else []

    def _from_folders(self, folders: ClassFolders) -> tuple[Labels, list[str]]:
        """Note the class folders; return the labels and the images in them."""
        labels = self._named(Labels(folders.values, folders.values))
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
        where = " and ".join(f"{root.as_posix()}/" if root != PurePosixPath(".") else "the folder" for root in roots)
        counts = dict(zip(folders.values, folders.counts, strict=True))
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        spread = f"from {counts[least]:,} of {least!r} to {counts[most]:,} of {most!r}"
        spread = spread if counts[least] < counts[most] else f"{counts[most]:,} each"
        self.found.lines.append(
            f"training images: {len(rows):,} ({suffixes_of(rows)}) in {len(counts)} class folders of {where}, "
            f"{spread}; a folder's name is its label"
        )
        if few := [name for name, count in counts.items() if count < FEW_IMAGES]:
            shown = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
            self.found.lines.append(f"fewer than {FEW_IMAGES} images, so that not every fold has one: {shown}")
        return Labels(labels.classes, values), rows

    def _images_to_predict(self, rows: list[str]) -> list[str]:
        """Note which images a submission predicts, and return them."""
        fields, lines = self.found.fields, self.found.lines
        if self.test_folder:
            tests = self.images_in(self.test_folder)
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
            f"images to predict: none found, so every tenth image of each class ({TEST_SHARE:.0%}, by the names' hash) "
            "is set apart: no fold has it, the submission predicts it (--test-images names a folder instead)"
        )
        return rows

    def _test_sheets(self) -> list[str]:
        return [name for name in self.sheets if role_of(name) == "test"]

    def _submission(self, labels: Labels, tests: list[str], *, by_folder: bool) -> None:
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
        tables = ", ".join(self.sheets) or "no table"
        return (
            f"{self.data} has {len(self.scan.images):,} images in {', '.join(folders[:4])} and {tables}, but nothing "
            "that says what they show: expected a table with a column of image names and one of labels (--train-csv, "
            "--id-column, --label-column), or a folder for each class (train/<class>/1.jpg, or <class>/1.jpg)"
        )


def suffixes_of(names: Collection[str]) -> str:
    """Return the suffixes of files with their counts: `30 .jpg, 2 .PNG`, or the only one."""
    found = Counter(PurePosixPath(name).suffix for name in names)
    counts = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{count:,} {suffix}" for suffix, count in counts)


def only_suffix(names: Collection[str]) -> str:
    """Return the suffix that all names have; an empty text where they differ."""
    suffixes = {PurePosixPath(name).suffix for name in names}
    return suffixes.pop() if len(suffixes) == 1 else ""


def recognise(data: Path, given: Mapping[str, Any]) -> Found:
    """Return what a competition's folder shows, by names and tables alone: no image is opened.

    `given` are the fields that the user named, which are taken as they are.

    Raises:
        FileNotFoundError: A file or folder that was named is missing.
        UserError: The folder has no image, or nothing that tells the labels, or a table contradicts it.
    """
    return Recogniser(data, given).run()
