"""The file that is scored: ids and labels, or probabilities, for exactly the images on disk, checked row by row.

The competition says which: `image_id,label`, or the id and one probability column for each class.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path

WHOLE_NUMBER = re.compile(r"[0-9]+")
# Written with eight digits, a row of probabilities sums to 1 within this much for any number of classes.
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SubmissionSummary:
    """What a checked submission holds: its path, the number of rows, and how many rows each class has or leads."""

    path: Path
    n_images: int
    class_counts: tuple[int, ...]
    probabilities: bool = False

    def __str__(self) -> str:
        counts = "/".join(map(str, self.class_counts))
        what = "probabilities, most probable" if self.probabilities else "labels by"
        return f"{self.path}: {self.n_images} images, every one once, {what} class {counts}"


def write_submission(
    path: str | Path,
    image_ids: Sequence[str],
    answers: Iterable[int] | np.ndarray,
    competition: Competition | None = None,
) -> None:
    """Write one row per image, atomically, in the order of `image_ids`.

    `answers` are labels (N,), whole numbers 0..K-1, or probabilities (N, K) where the competition takes those.
    """
    competition = competition or current()
    lines = [",".join(map(csv_cell, competition.submission_columns))]
    for name, answer in zip(image_ids, answers, strict=True):
        cells = [f"{p:.8g}" for p in answer] if competition.probability_columns else [str(int(answer))]
        lines.append(",".join([csv_cell(competition.written_id(name)), *cells]))
    with atomic_path(path) as temporary:
        # A file name need not be valid UTF-8: it goes out as the bytes it came in.
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def csv_cell(text: str) -> str:
    """Return a cell as CSV (RFC 4180): in quotes where it holds a comma, a quote or a line's end.

    `csv.writer` leaves a carriage return bare where lines end in a newline, and readers take it for a line's end.
    """
    return '"{}"'.format(text.replace('"', '""')) if any(c in text for c in ',"\r\n') else text


def submission_ids(images_dir: str | Path) -> list[str]:
    """What a submission has rows for: every name in the folder with an image's suffix, sorted; not hidden files.

    A name alone decides, whatever is behind it (a folder, a link to nothing, a file that may not be read): the
    competition counts ids, and one row too few scores nothing at all.
    """
    from cassava_kit.data.table import IMAGE_SUFFIXES

    images_dir = Path(images_dir)
    if not images_dir.is_dir():
        raise FileNotFoundError(f"no folder {images_dir}")
    with os.scandir(images_dir) as entries:
        names = [entry.name for entry in entries]
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


def check_submission(
    path: str | Path, images_dir: str | Path, competition: Competition | None = None
) -> SubmissionSummary:
    """Refuse whatever the competition would score as an error: UserError naming the file and the row.

    The columns are the competition's, the ids are exactly those of `submission_ids(images_dir)`, each once, and every
    label is a whole number 0..K-1, or every row holds probabilities that sum to 1.
    """
    competition = competition or current()
    path, images_dir = Path(path), Path(images_dir)
    answers = read_answers(path, competition)
    expected = [competition.written_id(name) for name in submission_ids(images_dir)]
    missing = [name for name in expected if name not in answers]
    if missing:
        raise UserError(
            f"{path} has no row for {len(missing)} of the {len(expected)} images in {images_dir} "
            f"(first: {_shown(missing[0])}); write one row for every image"
        )
    on_disk = set(expected)
    for row, name in enumerate(answers, start=2):
        if name not in on_disk:
            raise UserError(f"{path} row {row} names {_shown(name)}, which is not an image in {images_dir}; remove it")
    counts = [0] * competition.n_classes
    for label in answers.values():
        counts[label] += 1
    return SubmissionSummary(path, len(answers), tuple(counts), bool(competition.probability_columns))


def read_answers(path: Path, competition: Competition) -> dict[str, int]:
    """Label, or most probable class, by id in file order; UserError for a wrong column or cell, or a repeated id."""
    if not path.is_file():
        raise FileNotFoundError(f"no submission {path}")
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    columns = competition.submission_columns
    header = next(rows, None)
    if header != columns:
        got = "nothing" if header is None else _shown(",".join(header))
        raise UserError(f"{path} must begin with the columns {','.join(columns)}, got {got}")
    read = _most_probable if competition.probability_columns else _label
    answers: dict[str, int] = {}
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(columns):
            raise UserError(f"{path} row {number} must have {len(columns)} cells, got {len(cells)}")
        answer = read(cells[1:], competition.n_classes, f"{path} row {number} ({_shown(cells[0])})")
        if cells[0] in answers:
            raise UserError(f"{path} row {number} names {_shown(cells[0])} again; each image has one row")
        answers[cells[0]] = answer
    return answers


def _label(cells: Sequence[str], n_classes: int, where: str) -> int:
    """The one cell as a label."""
    (label,) = cells
    if not WHOLE_NUMBER.fullmatch(label) or int(label) >= n_classes:
        raise UserError(f"{where}: the label must be a whole number in 0..{n_classes - 1}, got {label!r}")
    return int(label)


def _most_probable(cells: Sequence[str], n_classes: int, where: str) -> int:
    """The class with the largest of the probabilities."""
    try:
        p = [float(cell) for cell in cells]
    except ValueError:
        p = [math.nan]
    if not all(0 <= each <= 1 for each in p) or abs(sum(p) - 1) > SUM_TOLERANCE:
        raise UserError(f"{where}: the cells must be {n_classes} probabilities that sum to 1, got {','.join(cells)}")
    return p.index(max(p))


def _shown(name: str) -> str:
    """A name that can be printed, whatever bytes it holds."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
