"""Fingerprints of images, from which near-duplicates are found, kept in a file. Entry point: `fingerprint`."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cassava_kit.data.images import ImageError, decode_small, in_threads
from cassava_kit.files import atomic_path

FINGERPRINT_CACHE = "fingerprints.npz"
THUMBNAIL_SIDE = 48


@dataclass(frozen=True)
class Fingerprints:
    """Gray thumbnails (N, 48, 48) uint8 and content digests (N, 16) uint8 of N images.

    An image that cannot be decoded has a black thumbnail, which matches none.
    """

    thumbnails: np.ndarray
    digests: np.ndarray


def fingerprint(paths: Sequence[Path], *, cache: Path | None = None, progress: bool = True) -> Fingerprints:
    """Return the fingerprints of N images in order; those of unchanged files are taken from `cache`.

    A file counts as unchanged where its path, size, mtime and ctime are.
    """
    known = _read_cache(cache) if cache else {}
    keys, marks = [_path_key(path) for path in paths], [_marks(path) for path in paths]
    missing = {key: n for n, key in enumerate(keys) if key not in known or known[key].marks != marks[n]}
    try:
        prints = in_threads(_fingerprint, [paths[n] for n in missing.values()], title="Fingerprints", progress=progress)
        for (key, n), (thumbnail, digest) in zip(missing.items(), prints, strict=True):
            known[key] = CachedPrint(marks[n], thumbnail, digest)
    finally:
        if cache and missing:
            try:
                _write_cache(cache, known)
            except OSError as error:  # e.g. a full disk: they are computed again next time
                print(f"fingerprints are not cached: {error}", file=sys.stderr)
    thumbnails = np.zeros((len(paths), THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    digests = np.zeros((len(paths), 16), np.uint8)
    for n, key in enumerate(keys):
        thumbnails[n], digests[n] = known[key].thumbnail, known[key].digest
    return Fingerprints(thumbnails, digests)


def _fingerprint(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return one image's thumbnail (48, 48) and digest (16,)."""
    import cv2

    content = Path(path).read_bytes()
    digest = np.frombuffer(hashlib.sha256(content).digest()[:16], np.uint8)
    try:
        gray = cv2.cvtColor(decode_small(content, THUMBNAIL_SIDE), cv2.COLOR_RGB2GRAY)
    except ImageError:
        return np.zeros((THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8), digest
    return cv2.resize(gray, (THUMBNAIL_SIDE, THUMBNAIL_SIDE), interpolation=cv2.INTER_AREA), digest


class CachedPrint(NamedTuple):
    """An image's thumbnail (48, 48) and digest (16,), and size, mtime and ctime of its file then."""

    marks: tuple[int, int, int]
    thumbnail: np.ndarray
    digest: np.ndarray


def _path_key(path: Path) -> bytes:
    """Return 16 bytes that stand for a file's absolute path."""
    return hashlib.sha256(os.fsencode(Path(path).absolute())).digest()[:16]


def _marks(path: Path) -> tuple[int, int, int]:
    stat = Path(path).stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _read_cache(cache: Path) -> dict[bytes, CachedPrint]:
    """Return the cache file's fingerprints by path; empty where it is missing, damaged or of another layout."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            columns = [file[name] for name in ("paths", "marks", "thumbnails", "digests")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    shapes = [column.shape[1:] for column in columns]
    if len(set(map(len, columns))) != 1 or shapes != [(16,), (3,), (THUMBNAIL_SIDE, THUMBNAIL_SIDE), (16,)]:
        return {}
    paths, marks, thumbnails, digests = columns
    keys = [path.tobytes() for path in paths]
    prints = map(CachedPrint, map(tuple, marks.tolist()), thumbnails, digests)
    return dict(zip(keys, prints, strict=True))


def _write_cache(cache: Path, known: dict[bytes, CachedPrint]) -> None:
    if not known:
        return
    marks, thumbnails, digests = zip(*known.values(), strict=True)
    with atomic_path(cache) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            paths=np.frombuffer(b"".join(known), np.uint8).reshape(-1, 16),
            marks=np.array(marks),
            thumbnails=np.stack(thumbnails),
            digests=np.stack(digests),
        )
