"""Decoded pixels in one memory-mapped file, so that later epochs decode no JPEG. Entry point: `open_cache`."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cassava_kit.data.images import PIXELS_VERSION, ImageError, decode, in_threads, resize
from cassava_kit.data.listing import relative_names
from cassava_kit.errors import UserError
from cassava_kit.files import atomic_path, read_json, write_json


class CachedFile(BaseModel):
    """The image file behind a row: name, content hash, size and times, and why it could not be decoded, if so.

    The name is relative to the folder that all images of the cache have in common.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    sha256: str
    marks: tuple[int, int, int]
    error: str | None = None


class CacheHeader(BaseModel):
    """The header beside the pixels: format number, picture size (height, width), and each row's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    layout: int = Field(default=PIXELS_VERSION, ge=PIXELS_VERSION, le=PIXELS_VERSION)
    size: tuple[int, int]
    files: tuple[CachedFile, ...]


class PixelCache:
    """Pictures (H, W, 3) uint8 by index or by path, as read-only views into the file.

    The file is memory-mapped, so its pages count as the system's file cache. Each process maps the file itself: a cache
    may be pickled to worker processes.
    """

    def __init__(self, file: Path, paths: Sequence[Path], header: CacheHeader) -> None:
        self.file, self.size = file, header.size
        row_of = {one.name: row for row, one in enumerate(header.files)}
        self._order = [row_of[name] for name in stored_names(paths, row_of)]
        self._rows = dict(zip(map(Path, paths), self._order, strict=True))
        self._errors = {row: one.error for row, one in enumerate(header.files) if one.error}
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._row(self._order[index])

    def load(self, path: Path) -> np.ndarray:
        """Return the picture of an image file; ImageError where the file could not be decoded."""
        try:
            return self._row(self._rows[Path(path)])
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from None

    def _row(self, row: int) -> np.ndarray:
        if row in self._errors:
            raise ImageError(self._errors[row])
        if self._map is None:
            self._map = np.load(self.file, mmap_mode="r", allow_pickle=False)
        return np.asarray(self._map[row])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def open_cache(folder: Path, paths: Sequence[Path], size: tuple[int, int], *, progress: bool = True) -> PixelCache:
    """Return the pixel cache of these images in `folder`, made anew if it is missing, damaged or of other contents.

    Rows are those of `images.load_image(path, size)`. A cache of more images serves any part of them. A file whose size
    and times are unchanged is taken as unchanged; of any other the content is hashed.

    Raises:
        UserError: There is no image, one is given twice, or the disk has too little room.
    """
    _check_names(paths)
    file = Path(folder) / f"pixels-{size[0]}x{size[1]}.npy"
    header = _read_header(file, size)
    header = header and _confirm(file, paths, header, progress=progress)
    if header is None:
        header = _make(file, paths, size, progress=progress)
    return PixelCache(file, paths, header)


def _check_names(paths: Sequence[Path]) -> None:
    if not paths:
        raise UserError("a pixel cache needs at least one image, got none")
    if len(set(relative_names(paths))) != len(paths):
        raise UserError("a pixel cache holds each image once, and one is given twice; give each path once")


def stored_names(paths: Sequence[Path], stored: Collection[str]) -> list[str]:
    """Return the name under which a cache holds each path: the longest end of the path that it knows; "" for none."""
    deepest = max((name.count("/") for name in stored), default=0)
    found = []
    for path in paths:
        parts = Path(path).parts
        ends = ("/".join(parts[-length:]) for length in range(min(deepest + 1, len(parts)), 0, -1))
        found.append(next((end for end in ends if end in stored), ""))
    return found


def _header_file(file: Path) -> Path:
    return file.with_suffix(".json")


def _read_header(file: Path, size: tuple[int, int]) -> CacheHeader | None:
    """Return the header, if the pixels beside it are complete and of this size; None otherwise."""
    try:
        header = CacheHeader.model_validate(read_json(_header_file(file)))
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, ValidationError, EOFError):
        return None
    whole = stored.shape == (len(header.files), *size, 3) and stored.dtype == np.uint8
    return header if whole and header.size == size else None


def _confirm(file: Path, paths: Sequence[Path], header: CacheHeader, *, progress: bool) -> CacheHeader | None:
    """Return the header, where it has every image with its present content; None otherwise.

    Only files whose size or times differ are read; where their content is the old one, the header gets the new times.
    """
    stored = {one.name: one for one in header.files}
    names = dict(zip(paths, stored_names(paths, stored), strict=True))
    if not all(names.values()) or len(set(names.values())) != len(paths):
        return None
    touched = [path for path in paths if stored[names[path]].marks != _marks(path)]
    hashes = in_threads(_sha256, touched, title="Checking the pixel cache", progress=progress)
    for path, sha256 in zip(touched, hashes, strict=True):
        one = stored[names[path]]
        if one.sha256 != sha256:
            return None
        stored[one.name] = one.model_copy(update={"marks": _marks(path)})
    if touched:
        header = header.model_copy(update={"files": tuple(stored.values())})
        write_json(_header_file(file), header.model_dump(mode="json"))
    return header


def _marks(path: Path) -> tuple[int, int, int]:
    """Return file size, mtime and ctime; a change of any means that the file may have been edited."""
    try:
        stat = Path(path).stat()
    except OSError:
        return (-1, -1, -1)
    return (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return ""


def _make(file: Path, paths: Sequence[Path], size: tuple[int, int], *, progress: bool) -> CacheHeader:
    """Decode every image into the file, atomically; threads write rows in place."""
    shape = (len(paths), *size, 3)
    file.parent.mkdir(parents=True, exist_ok=True)
    _check_room(file.parent, int(np.prod(shape)))
    with atomic_path(file) as temporary:
        with temporary.open("r+b") as out:
            description = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, description)
            start = out.tell()
            out.truncate(start + int(np.prod(shape)))
            write = partial(_write_row, out.fileno(), start, size)
            rows = list(zip(range(len(paths)), paths, relative_names(paths), strict=True))
            files = tuple(in_threads(write, rows, title="Pixel cache", progress=progress))
            os.fsync(out.fileno())
        # A file without a header is not read: new pixels are never found under an old header.
        _header_file(file).unlink(missing_ok=True)
    header = CacheHeader(size=size, files=files)
    write_json(_header_file(file), header.model_dump(mode="json"))
    return header


def _write_row(descriptor: int, start: int, size: tuple[int, int], item: tuple[int, Path, str]) -> CachedFile:
    """Decode one image into its row; one that cannot be decoded leaves it black, with the reason in the header."""
    row, path, name = item
    marks = _marks(path)
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        return CachedFile(name=name, sha256="", marks=marks, error=f"cannot be read ({error.strerror})")
    one = CachedFile(name=name, sha256=hashlib.sha256(content).hexdigest(), marks=marks)
    try:
        picture = resize(decode(content), size)
    except ImageError as error:
        return one.model_copy(update={"error": str(error)})
    os.pwrite(descriptor, picture.tobytes(), start + row * picture.nbytes)
    return one


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"a pixel cache of {needed / 1e9:.1f} GB does not fit in {folder} ({free / 1e9:.1f} GB free); "
            "use a smaller picture size, another folder, or no cache"
        )
