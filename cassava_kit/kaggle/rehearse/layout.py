"""Lay out datasets and competitions as Kaggle mounts them: `as_uploaded`, `dataset_mounts`, `competition_mounts`."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Literal

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import write_text
from cassava_kit.kaggle.pack.config import METADATA_FILE

Layout = Literal["new", "old"]
LAYOUTS: tuple[Layout, ...] = ("new", "old")
REFUSED_CHARACTERS = "@&"


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, and its path below `/kaggle/input`."""

    source: Path
    target: PurePosixPath


def dataset_folder(dataset: str, layout: Layout) -> PurePosixPath:
    """Return the folder of a dataset owner/slug below the input."""
    owner, _, slug = dataset.partition("/")
    return PurePosixPath("datasets", owner, slug) if layout == "new" else PurePosixPath(slug)


def competition_folder(slug: str, layout: Layout) -> PurePosixPath:
    """Return the folder of a competition below the input."""
    return PurePosixPath("competitions", slug) if layout == "new" else PurePosixPath(slug)


def competition_mounts(
    folder: Path,
    layout: Layout,
    competition: Competition | None = None,
    *,
    test_images: Path | None = None,
    test_table: Path | None = None,
) -> list[Mount]:
    """Return the mounts of the competition's files, without others in the folder.

    `test_images` and `test_table` replace its own. Training images that are not in a folder of their own are left out.

    Raises:
        FileNotFoundError: the test images or the sample submission are missing.
    """
    competition = competition or current()
    at = competition_folder(competition.slug, layout)
    needed = dict.fromkeys(competition.test_files) | {competition.test_images: test_images}
    if competition.test_table:
        needed[competition.test_table] = test_table
    optional = (competition.train_csv, competition.train_images, competition.label_map, competition.train_tfrecords)
    for name in needed:
        if needed[name] is None and not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}; give the folder of {competition.slug} as downloaded")
    mounts = [Mount((source or folder / name).resolve(), at / name) for name, source in needed.items()]
    others = [name for name in optional if name not in ("", ".", *needed) and (folder / name).exists()]
    return mounts + [Mount((folder / name).resolve(), at / name) for name in others]


def dataset_mounts(folder: Path, dataset: str, layout: Layout) -> list[Mount]:
    """Return the mounts of a folder that `as_uploaded` made."""
    at = dataset_folder(dataset, layout)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [Mount(path.resolve(), at / path.relative_to(folder).as_posix()) for path in files]


def as_uploaded(folder: Path, out: Path) -> Path:
    """Make in `out` what a notebook sees of an uploaded folder; unchanged files become links.

    Sub-folders are dropped (the client's default `--dir-mode skip`), the metadata file is not mounted, '+', '~' and
    non-ASCII characters are removed from names, archives are unpacked, links and exec bits are lost.

    Raises:
        UserError: a name has '@' or '&'.
    """
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != METADATA_FILE:
            _upload(path, out / uploaded_name(path.name))
    return out


def uploaded_name(name: str) -> str:
    """Return the name that a file has on Kaggle; UserError where Kaggle refuses it."""
    if any(character in name for character in REFUSED_CHARACTERS):
        raise UserError(f"{name!r} is refused by Kaggle; use letters, digits, '.', '_' and '-'")
    return re.sub(r"[+~]|[^\x00-\x7f]", "", name)


def _upload(path: Path, target: Path) -> None:
    name = path.name.lower()
    if zipfile.is_zipfile(path) and name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(target.with_suffix(""))
    elif name.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            archive.extractall(target.parent / re.sub(r"\.(tar|tar\.gz|tgz)$", "", target.name), filter="data")
    elif name.endswith(".gz"):
        with gzip.open(path) as source, target.with_suffix("").open("wb") as file:
            shutil.copyfileobj(source, file)
    elif os.access(path, os.X_OK):
        shutil.copyfile(path, target)
    else:
        target.symlink_to(path.resolve())


def link_images(images: Mapping[str, Path], out: Path) -> Path:
    """Make a folder of links, name -> image, and return it."""
    out.mkdir(parents=True, exist_ok=True)
    for name, source in images.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).symlink_to(source.resolve())
    return out


def few_images(folder: Path, n_per_class: int, out: Path, competition: Competition) -> Path:
    """Make a competition folder of `n_per_class` training images of every class and two test images.

    The rows are spread evenly over the table, where neighbours may be near-duplicates. Images are copies, as a link
    that leads out of the folder is refused; files that training does not need are left out.

    Raises:
        FileNotFoundError: `folder` lacks the table or the images.
    """
    from cassava_kit.data.table import read_labels, to_written_columns
    from cassava_kit.data.to_predict import read_test, write_test_table

    out.mkdir(parents=True)
    for name in (competition.train_csv, competition.train_images):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}; give the folder of {competition.slug} as downloaded")
    table, tests = read_labels(folder, competition), read_test(folder, competition)
    places = [
        group[int(k * len(group) / n_per_class)]
        for group in table.groupby("label").indices.values()
        for k in range(n_per_class)
    ]
    rows = table.iloc[sorted(set(places))]
    if competition.train_csv:
        written = to_written_columns(rows, competition).to_csv(index=False, sep=competition.separator)
        write_text(out / competition.train_csv, written)
    names = tests.names[:2]
    if competition.test_table:
        write_test_table(out / competition.test_table, names, competition)
    images = {Path(competition.train_images, name): folder / competition.train_images / name for name in rows.image_id}
    images |= {Path(competition.test_images, name): tests.folder / name for name in names}
    (out / competition.train_images).mkdir(parents=True, exist_ok=True)
    for place, source in images.items():
        if source.is_file():
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / place)
    for name in (competition.sample_submission, competition.label_map):
        if name and name != competition.test_table and (folder / name).is_file():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)
    return out


def hidden_images(folders: Sequence[Path], n: int) -> dict[str, Path]:
    """Return `n` test images, name -> source: those of the folders in turn, then the same ones under new names."""
    from cassava_kit.data.table import list_images

    ordered: dict[str, Path] = {}
    for folder in folders:
        for name in list_images(folder):
            ordered.setdefault(name, folder / name)
    if not ordered:
        raise FileNotFoundError(f"no image in {', '.join(map(str, folders))} to make hidden ones of")
    sources = list(ordered.values())
    numbers = (number for number in count(1) if f"{number:09d}{sources[0].suffix}" not in ordered)
    images = dict(list(ordered.items())[:n])
    for k in range(len(images), n):
        source = sources[k % len(sources)]
        images[f"{next(numbers):09d}{source.suffix}"] = source
    return images
