"""Files of a folder and its subfolders by relative name, and which of them the ids of a table mean: `list_files`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cassava_kit.competition import Competition
from cassava_kit.errors import UserError
from cassava_kit.files import find_folder, leaves_folder, path_inside

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
# Folders that unpacking a macOS archive leaves beside the content.
STRAY_FOLDERS = ("__MACOSX",)


@dataclass(frozen=True)
class Listing:
    """Names of all files below `folder`, sorted, with `/` between folder and file, and those that are links.

    Hidden files and folders are left out, and links to folders are not followed.
    """

    folder: Path
    names: tuple[str, ...]
    links: frozenset[str] = frozenset()

    @property
    def images(self) -> list[str]:
        """The names with an image's suffix."""
        return [name for name in self.names if is_image(name)]

    def check_links(self, names: Iterable[str]) -> None:
        """Raise UserError where one of the names is a link that leads out of the folder."""
        for name in names:
            if name in self.links:
                path_inside(self.folder, name)


def is_image(name: str) -> bool:
    """Return whether a file name has an image's suffix, in whatever case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def list_files(folder: str | Path, within: Sequence[str] = ("",)) -> Listing:
    """List a folder, or only its subfolders `within`, at any depth; no file is opened.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    folder = find_folder(folder, "give one that holds images")
    names: list[str] = []
    links: set[str] = set()
    waiting = [f"{part}/" if part not in ("", ".") else "" for part in within]
    while waiting:
        below = waiting.pop()
        try:
            entries = list(os.scandir(folder / below))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in STRAY_FOLDERS:
                continue
            name = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{name}/")
            elif entry.is_file():
                names.append(name)
                if entry.is_symlink():
                    links.add(name)
    return Listing(folder, tuple(sorted(names)), frozenset(links))


def named_images(folder: str | Path) -> list[str]:
    """Return the names in a folder and its subfolders that have an image's suffix, sorted; no hidden ones.

    The name alone decides: a folder, a broken link and a link to another place count as well.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    folder = find_folder(folder, "give one that holds images")
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        below = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        shown = [name for name in (*folders, *files) if not name.startswith(".") and name not in STRAY_FOLDERS]
        names += [below + name for name in shown if is_image(name)]
        folders[:] = [name for name in folders if name in shown and not is_image(name)]
    return sorted(names)


def relative_names(paths: Sequence[Path]) -> list[str]:
    """Return the paths relative to the folder that all have in common, e.g. `1.jpg`, or `rose/1.jpg` of two folders."""
    root = os.path.commonpath({Path(path).absolute().parent for path in paths})
    return [Path(path).absolute().relative_to(root).as_posix() for path in paths]


def check_utf8(names: Iterable[str]) -> None:
    """Refuse a file name of bytes that are no UTF-8, which no table can hold."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise UserError(f"the file name {shown} is not UTF-8, so that no table can name it; rename it") from None


class FileFinder:
    """Find the image file that an id of a competition's table means."""

    def __init__(self, names: Iterable[str], competition: Competition) -> None:
        self.competition = competition
        self.by_id: dict[str, str] = {}
        self.by_stem: dict[str, str] = {}
        self.twice: dict[str, tuple[str, str]] = {}
        short = not competition.ids_have_suffix
        for name in names:
            if short and not is_image(name):
                continue
            self._add(competition.written_id(name), name)
            if is_image(name):
                self.by_stem[_stem(name if competition.ids_have_folder else name.rpartition("/")[2])] = name

    def _add(self, image_id: str, name: str) -> None:
        first = self.by_id.setdefault(image_id, name)
        if first == name:
            return
        suffix = self.competition.image_suffix
        if suffix and first.endswith(suffix) != name.endswith(suffix):  # e.g. a mask, a.png, beside a.jpg
            self.by_id[image_id] = first if first.endswith(suffix) else name
        else:
            self.twice[image_id] = (first, name)

    def find(self, image_id: str) -> str | None:
        """Return the file's name; None where there is none.

        A suffix in another case, or another image suffix, is taken where the name itself is not there.

        Raises:
            UserError: Two files have this id.
        """
        if image_id in self.twice:
            first, other = self.twice[image_id]
            raise UserError(f"the id {image_id!r} means two files, {first} and {other}; rename or remove one of them")
        found = self.by_id.get(image_id)
        if found is None and ("\\" in image_id or image_id.startswith("./")):
            image_id = image_id.replace("\\", "/").removeprefix("./")
            found = self.by_id.get(image_id)
        if found is None and self.competition.ids_have_suffix and is_image(image_id):
            found = self.by_stem.get(_stem(image_id))
        return found

    def name(self, image_id: str) -> str:
        """Return the file's name, or what it should be where there is none.

        Raises:
            UserError: The id leads out of the folder, or means two files.
        """
        if leaves_folder(image_id):
            raise UserError(f"{image_id!r} leads out of the images' folder; expected the name of a file in it")
        return self.find(image_id) or self.competition.file_name(image_id)


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
