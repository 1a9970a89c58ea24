"""The file that is scored: `image_id,label`, exactly the images on disk, written whole and checked row by row."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.files import atomic_path

WHOLE_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class SubmissionSummary:
    """What a checked submission holds: its path, the number of rows, and how many rows each class has."""

    path: Path
    n_images: int
    class_counts: tuple[int, ...]

    def __str__(self) -> str:
        counts = "/".join(map(str, self.class_counts))
        return f"{self.path}: {self.n_images} images, every one once, labels by class {counts}"


def write_submission(
    path: str | Path, image_ids: Sequence[str], labels: Iterable[int], competition: Competition = CASSAVA
) -> None:
    """Write one row per image, atomically; labels are whole numbers 0..K-1 in the order of `image_ids`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([competition.id_column, competition.label_column])
    writer.writerows([name, int(label)] for name, label in zip(image_ids, labels, strict=True))
    with atomic_path(path) as temporary:
        # A file name need not be valid UTF-8: it goes out as the bytes it came in.
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


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


def check_submission(path: str | Path, images_dir: str | Path, competition: Competition = CASSAVA) -> SubmissionSummary:
    """Refuse whatever the competition would score as an error: ValueError naming the file and the row.

    The columns are `image_id,label`, the ids are exactly `submission_ids(images_dir)`, each once, and every label is a
    whole number 0..K-1.
    """
    path, images_dir = Path(path), Path(images_dir)
    labels = _read_rows(path, competition)
    expected = submission_ids(images_dir)
    missing = [name for name in expected if name not in labels]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of the {len(expected)} images in {images_dir} "
            f"(first: {_shown(missing[0])}); write one row for every image"
        )
    on_disk = set(expected)
    for row, name in enumerate(labels, start=2):
        if name not in on_disk:
            raise ValueError(f"{path} row {row} names {_shown(name)}, which is not an image in {images_dir}; remove it")
    counts = [0] * competition.n_classes
    for label in labels.values():
        counts[label] += 1
    return SubmissionSummary(path, len(labels), tuple(counts))


def _read_rows(path: Path, competition: Competition) -> dict[str, int]:
    """Label by image id in file order; ValueError for a wrong column, cell, label or repeated id."""
    if not path.is_file():
        raise FileNotFoundError(f"no submission {path}")
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    rows = csv.reader(io.StringIO(text, newline=""))
    columns = [competition.id_column, competition.label_column]
    header = next(rows, None)
    if header != columns:
        got = "nothing" if header is None else _shown(",".join(header))
        raise ValueError(f"{path} must begin with the columns {','.join(columns)}, got {got}")
    labels: dict[str, int] = {}
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(columns):
            raise ValueError(f"{path} row {number} must have {len(columns)} cells, got {len(cells)}")
        name, label = cells
        if not WHOLE_NUMBER.fullmatch(label) or int(label) >= competition.n_classes:
            raise ValueError(
                f"{path} row {number} ({_shown(name)}): the label must be a whole number in "
                f"0..{competition.n_classes - 1}, got {label!r}"
            )
        if name in labels:
            raise ValueError(f"{path} row {number} names {_shown(name)} again; each image has one row")
        labels[name] = int(label)
    return labels


def _shown(name: str) -> str:
    """A name that can be printed, whatever bytes it holds."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
