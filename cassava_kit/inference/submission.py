"""The file that is scored: `write_submission` writes it, `check_submission` reads it row by row.

A competition takes ids and labels, or ids and one probability a class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path
from cassava_kit.inference.submission_rows import Form, open_table, printable, read_rows

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SubmissionSummary:
    """What a checked submission holds: its name, the number of rows, and how many rows each class has or leads."""

    name: str
    n_images: int
    class_counts: tuple[int, ...]
    probabilities: bool = False

    def __str__(self) -> str:
        counts = "/".join(map(str, self.class_counts))
        what = "probabilities, most probable" if self.probabilities else "labels by"
        return f"{self.name}: {self.n_images} images, every one once, {what} class {counts}"


def write_submission(
    path: str | Path,
    image_ids: Sequence[str],
    answers: ArrayLike,
    *,
    id_column: str = "image_id",
    columns: Sequence[str] = ("label",),
) -> None:
    """Write one row per image, atomically, in the order of `image_ids`.

    Args:
        path: CSV file to write; a file that is there is replaced once the new one is whole.
        image_ids: ids (N,), distinct.
        answers: labels (N,), whole numbers 0..K-1; or probabilities (N, K) where there are K `columns`.
        id_column: name of the id column.
        columns: name of the label column, or of the K columns of probabilities.

    Raises:
        UserError: an id is given twice, or the answers are not one row an id of the expected shape.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "submission.csv"
        >>> write_submission(path, ["a", "b"], [2, 0], id_column="id", columns=["class"])
        >>> path.read_text()
        'id,class\\na,2\\nb,0\\n'
    """
    _write(path, image_ids, answers, _form(id_column, columns, None))


def _write(path: str | Path, image_ids: Sequence[str], answers: ArrayLike, form: Form) -> None:
    ids = _as_ids(image_ids)
    if repeated := sorted({name for name in ids if ids.count(name) > 1} if len(set(ids)) < len(ids) else ()):
        raise UserError(f"{path}: each image has one row, got {printable(repeated[0])} more than once")
    rows = _answer_cells(answers, len(ids), form, str(path))
    lines = [",".join(map(csv_cell, form.header))]
    lines += [",".join(map(csv_cell, [name, *cells])) for name, cells in zip(ids, rows, strict=True)]
    with atomic_path(path) as temporary:
        # A file name need not be valid UTF-8: it goes out as the bytes it came in.
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def csv_cell(text: str) -> str:
    """Return a cell as CSV (RFC 4180): in quotes where it holds a comma, a quote or a line's end.

    `csv.writer` leaves a carriage return bare where lines end in a newline, and readers take it for a line's end.
    """
    return '"{}"'.format(text.replace('"', '""')) if any(c in text for c in ',"\r\n') else text


def submission_ids(images_dir: str | Path) -> list[str]:
    """Return what a submission has rows for: the names in the folder with an image's suffix, sorted; no hidden files.

    Images in subfolders are named with them, `part/1.jpg`. The name alone decides, also for a folder, a broken link or
    an unreadable file: the competition counts ids, and a submission with a missing row is not scored.

    Raises:
        FileNotFoundError: there is no folder `images_dir`.
    """
    from cassava_kit.data.listing import named_images

    return named_images(images_dir)


def check_submission(
    submission: str | Path | pd.DataFrame,
    images: str | Path | Sequence[str] | pd.DataFrame,
    *,
    id_column: str = "image_id",
    columns: Sequence[str] = ("label",),
    n_classes: int | None = None,
) -> SubmissionSummary:
    """Raise an error for anything that a competition would refuse to score.

    Every expected id has one row and no other id has any; every label is a whole number 0..K-1, or every row holds
    probabilities that sum to 1.

    Args:
        submission: the CSV file, or its rows as a table.
        images: the folder of images; or the ids themselves, or a table or CSV file that has them in the id column,
            such as the sample submission.
        id_column: name of the id column.
        columns: name of the label column, or of the K columns of probabilities.
        n_classes: K for labels; None takes any whole number.

    Returns:
        The number of images, and how many each class has or leads.

    Raises:
        UserError: naming the file and the row.
        FileNotFoundError: there is no such file or folder.

    Example:
        >>> import pandas as pd
        >>> table = pd.DataFrame({"id": ["a", "b"], "label": [2, 0]})
        >>> check_submission(table, ["a", "b"], id_column="id", n_classes=3).class_counts
        (1, 0, 1)
        >>> check_submission(table, ["a", "b", "c"], id_column="id")
        Traceback (most recent call last):
        cassava_kit.errors.UserError: the submission has no row for 1 of the 3 images in the ids given (first: c); \
write one row for every image
    """
    name, table = open_table(submission, "the submission")
    form = _form(id_column, columns, n_classes)
    answers = read_rows(table, form, name)
    expected, where = _expected_ids(images, id_column)
    return _check_rows(answers, expected, form, name=name, where=where)


def write_answers(path: str | Path, names: Sequence[str], answers: np.ndarray, competition: Competition) -> None:
    """Write a competition's submission for image files by name: `write_submission` with its columns, ids and labels.

    `answers`: labels (N,) or probabilities (N, K).
    """
    ids = [competition.submitted_id(name) for name in names]
    form = competition_form(competition)
    if form.probability:
        answers = np.asarray(answers)[:, 1]
    _write(path, ids, answers, form)


def check_answers(
    path: str | Path, images: str | Path | Sequence[str], competition: Competition | None = None
) -> SubmissionSummary:
    """Check a competition's submission against its images: `check_submission` with its columns, classes and ids.

    `images`: their folder, or the names of their files.

    Raises:
        UserError: naming the file and the row.
        FileNotFoundError: there is no such file or folder.
    """
    competition = competition or current()
    answers = read_answers(path, competition)
    folder = isinstance(images, str | Path)
    names = submission_ids(images) if isinstance(images, str | Path) else images
    expected = [competition.submitted_id(name) for name in names]
    where = str(images) if folder else "the test set"
    return _check_rows(answers, expected, competition_form(competition), name=str(path), where=where)


def competition_form(competition: Competition) -> Form:
    """Return what a competition's submissions look like."""
    id_column, *columns = competition.submission_columns
    single = len(competition.probability_columns) == 1
    return Form(id_column, tuple(columns), competition.n_classes, competition.answer_values, single)


def _check_rows(
    answers: dict[str, int], expected: list[str], form: Form, *, name: str, where: str
) -> SubmissionSummary:
    """UserError where the ids are not exactly the expected ones; else what the submission holds."""
    missing = [image_id for image_id in expected if image_id not in answers]
    if missing:
        raise UserError(
            f"{name} has no row for {len(missing)} of the {len(expected)} images in {where} "
            f"(first: {printable(missing[0])}); write one row for every image"
        )
    known = set(expected)
    for row, image_id in enumerate(answers, start=2):
        if image_id not in known:
            raise UserError(
                f"{name} row {row} names {printable(image_id)}, which is not an image in {where}; remove it"
            )
    counts = [0] * (form.n_classes or max(answers.values(), default=0) + 1)
    for label in answers.values():
        counts[label] += 1
    return SubmissionSummary(name, len(answers), tuple(counts), form.probabilities)


def read_answers(path: str | Path, competition: Competition) -> dict[str, int]:
    """Return the label, or the most probable class, by id in file order.

    Raises:
        UserError: a wrong column or cell, or a repeated id.
        FileNotFoundError: there is no file `path`.
    """
    name, rows = open_table(path, "the submission")
    return read_rows(rows, competition_form(competition), name)


def _form(id_column: str, columns: Sequence[str], n_classes: int | None) -> Form:
    if isinstance(columns, str) or not columns:
        raise UserError(f"columns must be a list of column names, got {columns!r}; give e.g. ['label']")
    return Form(id_column, tuple(columns), len(columns) if len(columns) > 1 else n_classes)


def _as_ids(image_ids: Sequence[str]) -> list[str]:
    if isinstance(image_ids, str) or not isinstance(image_ids, Iterable):
        raise UserError(f"image ids must be a list, array or column, got {image_ids!r}")
    return [str(image_id) for image_id in image_ids]


def _answer_cells(answers: ArrayLike, n: int, form: Form, name: str) -> list[list[str]]:
    """The cells beside each id; UserError where the answers are not (n,) labels or (n, K) probabilities."""
    given: list[Any] = list(answers) if isinstance(answers, Iterable) and not isinstance(answers, str) else [answers]
    if len(given) != n:
        raise UserError(f"{name}: expected one answer for each of the {n} images, got {len(given)}")
    if form.probability:
        return [[f"{p:.8g}"] for p in given]
    if len(form.columns) == 1:
        wrong = [answer for answer in given if not _is_label(answer)]
        if wrong:
            raise UserError(f"{name}: labels must be whole numbers of at least 0, got {wrong[0]!r}; take argmax first")
        return [[form.values[int(answer)] if form.values else str(int(answer))] for answer in given]
    width = len(form.columns)
    wrong = [answer for answer in given if np.shape(answer) != (width,)]
    if wrong:
        raise UserError(f"{name}: expected {width} probabilities for each image, got {wrong[0]!r}")
    return [[f"{p:.8g}" for p in answer] for answer in given]


def _is_label(answer: Any) -> bool:
    """Whether an answer is one whole number of at least 0."""
    try:
        number = float(answer) if np.ndim(answer) == 0 else math.nan
    except (TypeError, ValueError):
        return False
    return number >= 0 and number.is_integer()


def _expected_ids(images: str | Path | Sequence[str] | pd.DataFrame, id_column: str) -> tuple[list[str], str]:
    """The ids that must have a row, and where they come from."""
    if isinstance(images, str | Path) and not Path(images).is_file():
        return submission_ids(images), str(images)
    if isinstance(images, str | Path) or hasattr(images, "columns"):
        name, rows = open_table(images, "the table given")  # type: ignore[arg-type]
        header, *lines = [list(row) for row in rows] or [[]]
        if id_column not in header:
            raise UserError(f"{name} must have the column {id_column}, got {','.join(header) or 'nothing'}")
        return [line[header.index(id_column)] for line in lines], name
    return _as_ids(images), "the ids given"
