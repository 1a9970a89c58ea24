"""What a folder holds, by names alone: images, tables, class folders. Start at `scan_folder`, `find_class_folders`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cassava_kit.competition import COMPETITION_FILE
from cassava_kit.data.listing import STRAY_FOLDERS, check_utf8, is_image
from cassava_kit.data.table import check_data_folder
from cassava_kit.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
# Folders that the kit makes where it is called; left out where competition.json is there too.
OWN_FOLDERS = ("build", "runs", "folds", "outputs", "weights")
# How deep in the folder a table may lie.
TABLE_DEPTH = 2
# A folder of class folders may hold this share of its images itself: an example, a picture of the classes.
STRAY_SHARE = 0.1
ROLES = {
    "train": r"train\w*",
    "valid": r"valid\w*|val|dev",
    "test": r"test\w*|pred\w*|hidden|unlabell?ed|holdout|submission",
}


@dataclass(frozen=True)
class Scan:
    """Relative names of a folder's images and tables, how many other files there are by suffix, and links left out."""

    folder: Path
    images: tuple[str, ...]
    tables: tuple[str, ...]
    others: Counter[str]
    links: tuple[str, ...]

    def images_in(self, folder: str) -> list[str]:
        """Return the images below a folder; an empty name is the whole."""
        prefix = "" if folder in ("", ".") else f"{folder}/"
        return [name for name in self.images if name.startswith(prefix)]


@dataclass(frozen=True)
class ClassFolders:
    """Class folders: `base` holds `folders`, which hold a folder for each of `values`; `counts` are images by value.

    `test` is the folder of images to predict, empty where there is none.
    """

    base: str
    folders: tuple[str, ...]
    values: tuple[str, ...]
    counts: tuple[int, ...]
    test: str = ""


def scan_folder(folder: Path) -> Scan:
    """List a folder's images and tables at any depth; no file is opened, hidden ones are left out.

    A link to a folder is followed where it lies in the folder itself, and left out below.

    Raises:
        FileNotFoundError: There is no such folder.
        UserError: It is a file, or an image's name is not UTF-8.
    """
    check_data_folder(folder)
    own = OWN_FOLDERS if (folder / COMPETITION_FILE).is_file() else ()
    images, tables, links, others = [], [], [], Counter[str]()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        for entry in os.scandir(folder / below):
            name = below + entry.name
            if entry.name.startswith(".") or entry.name in STRAY_FOLDERS or (not below and name in own):
                others[entry.name] += 1
            elif entry.is_dir(follow_symlinks=not below):
                waiting.append(f"{name}/")
            elif entry.is_dir():
                links.append(name)
            elif is_image(name):
                images.append(name)
            elif name.lower().endswith(TABLE_SUFFIXES) and name.count("/") <= TABLE_DEPTH:
                tables.append(name)
            else:
                others[PurePosixPath(name).suffix.lower() or entry.name] += 1
    check_utf8(images)
    return Scan(folder, tuple(sorted(images)), tuple(sorted(tables)), others, tuple(sorted(links)))


def role_of(name: str) -> str:
    """Return what a folder's or table's name says that it is for: train, valid, test, or an empty text.

    Example:
        >>> [role_of(name) for name in ("train_images", "Validation", "seg_pred", "roses", "latest")]
        ['train', 'valid', 'test', '', '']
    """
    words = re.findall(r"[a-z]+", PurePosixPath(name).name.lower().removesuffix(".csv"))
    found = [role for word in words for role, pattern in ROLES.items() if re.fullmatch(pattern, word)]
    return found[0] if found else ""


class Tree:
    """Counts of images by folder: `own` directly in it, `all` at any depth; and `children`, the folders with images."""

    def __init__(self, images: Iterable[str]) -> None:
        self.own = Counter(name.rpartition("/")[0] for name in images)
        self.all: Counter[str] = Counter()
        self.children: dict[str, set[str]] = {}
        for folder, count in self.own.items():
            here = folder
            self.all[here] += count
            while here:
                parent = here.rpartition("/")[0]
                self.children.setdefault(parent, set()).add(here)
                self.all[parent] += count
                here = parent

    def below(self, folder: str) -> list[str]:
        """The folders directly in a folder that hold images, sorted."""
        return sorted(self.children.get(folder, ()), key=natural)

    @staticmethod
    def last(folder: str) -> str:
        """The folder's own name."""
        return folder.rpartition("/")[2]

    def unwrap(self, folder: str) -> str:
        """Go down as long as a folder holds one folder and no image, e.g. archive/ or seg_train/seg_train/."""
        while not self.own[folder] and len(self.below(folder)) == 1 and not role_of(self.below(folder)[0]):
            folder = self.below(folder)[0]
        return folder

    def unwrap_part(self, folder: str) -> str:
        """Go down as `unwrap`, from a folder with a role through folders of any name."""
        while not self.own[folder] and len(self.below(folder)) == 1:
            folder = self.below(folder)[0]
        return folder

    def holds_classes(self, folder: str) -> bool:
        """Return whether a folder holds two or more folders with images, and next to no image itself."""
        return len(self.below(folder)) >= 2 and self.own[folder] <= STRAY_SHARE * self.all[folder]


def find_class_folders(images: Sequence[str]) -> ClassFolders | None:
    """Return the class folders among relative image names; None where folders are no classes."""
    tree = Tree(images)
    top = tree.unwrap("")
    parts = {part: tree.unwrap_part(part) for part in tree.below(top)}
    labelled = [place for part, place in parts.items() if role_of(part) == "train" and tree.holds_classes(place)]
    roles = {role_of(part) for part in parts}
    if labelled:
        known = {tree.last(child) for place in labelled for child in tree.below(place)}
        for part, place in parts.items():
            inside = next((at for at in (part, place) if known & set(map(tree.last, tree.below(at)))), None)
            if role_of(part) == "valid" and inside is not None:
                labelled.append(inside)
        others = {part: place for part, place in parts.items() if not {part, place} & set(labelled)}
    elif tree.holds_classes(top) and not {"train", "test"} <= roles:
        labelled, others = [top], parts
    else:
        return None
    tests = [place for part, place in others.items() if role_of(part) == "test"]
    test = max(tests, key=lambda place: tree.all[place], default="")
    counts: Counter[str] = Counter()
    for place in labelled:
        for child in tree.below(place):
            if not (place == top and role_of(child) == "test"):
                counts[tree.last(child)] += tree.all[child]
    values = tuple(sorted(counts, key=natural))
    if len(values) < 2:
        return None
    base = os.path.commonpath(labelled) if len(labelled) > 1 else labelled[0]
    # A folder with the first class comes first: by the two together the data are found again.
    labelled.sort(key=lambda place: f"{place}/{values[0]}".removeprefix("/") not in tree.all)
    folders = tuple(os.path.relpath(place or ".", base or ".") for place in labelled)
    return ClassFolders(base or ".", folders, values, tuple(counts[value] for value in values), test)


def find_test_folder(images: Sequence[str]) -> str:
    """Return the largest folder whose name says that its images are to be predicted; empty where there is none.

    From there on down through folders that hold one folder alone.
    """
    counts: Counter[str] = Counter()
    for name in images:
        tests = [each for each in PurePosixPath(name).parents if role_of(each.name) == "test"]
        if tests:
            counts[tests[-1].as_posix()] += 1
    return Tree(images).unwrap_part(max(counts, key=lambda name: counts[name])) if counts else ""


def suffixes_of(names: Collection[str]) -> str:
    """Return the suffixes of files with their counts: `30 .jpg, 2 .PNG`, or the only one."""
    found = Counter(PurePosixPath(name).suffix for name in names)
    counts = sorted(found.items(), key=lambda one: (-one[1], one[0]))
    return counts[0][0] if len(counts) == 1 else ", ".join(f"{count:,} {suffix}" for suffix, count in counts)


def only_suffix(names: Collection[str]) -> str:
    """Return the suffix that all names have; an empty text where they differ."""
    suffixes = {PurePosixPath(name).suffix for name in names}
    return suffixes.pop() if len(suffixes) == 1 else ""


def natural(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts numbers in names by value: class2 before class10."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part) for part in parts]


def check_images(scan: Scan) -> None:
    """Refuse a folder without an image.

    Raises:
        UserError: The message says what lies there instead.
    """
    if scan.images:
        return
    archives = [suffix for suffix in (".zip", ".tar", ".gz", ".7z", ".rar") if scan.others[suffix]]
    hint = f"; unpack the {archives[0]} file first" if archives else ""
    if any(scan.others[suffix] for suffix in (".tfrec", ".tfrecord", ".tfrecords")):
        hint = "; convert the TFRecords first: cassava-kit tfrecords FOLDER --out DIR"
    there = ", ".join(f"{count} {suffix}" for suffix, count in scan.others.most_common(4)) or "no file"
    raise UserError(f"no image in {scan.folder} ({there}){hint}; --data is a competition's folder as it was downloaded")
