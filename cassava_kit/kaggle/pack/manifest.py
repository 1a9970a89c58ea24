"""Write and check a dataset's manifest, name, size and SHA-256 of every file and one build id: `write_manifest`.

`replace_folder` puts a packed folder in the place of an earlier one.
"""

from __future__ import annotations

import filecmp
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import KIT_MANIFEST, WEIGHTS_MANIFEST, read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.kaggle.pack.config import METADATA_FILE

MANIFESTS = {"kit": KIT_MANIFEST, "weights": WEIGHTS_MANIFEST}
# Further fields of a manifest, each a dict.
FACTS: dict[str, tuple[str, ...]] = {"kit": ("wheels", "tested"), "weights": ()}
# Kaggle strips '+', '~' and non-ASCII from names, refuses '@' and '&', and unpacks archives.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,98}")
UNPACKED_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")


def check_flat(folder: Path) -> None:
    """Check that a folder arrives on Kaggle as it is.

    Raises:
        UserError: it holds a folder, a link, a name that Kaggle changes, or an archive that it unpacks.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is not a plain file; an uploaded dataset must be a flat folder of files")
        if not PLAIN_NAME.fullmatch(path.name) or path.name.lower().endswith(UNPACKED_SUFFIXES):
            raise UserError(
                f"{path.name!r} changes its name or form on Kaggle; "
                "use letters, digits, '.', '_' and '-', and no archives"
            )


def write_manifest(folder: Path, kind: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of a flat folder and return it; the build id is the hash of all its other fields."""
    check_flat(folder)
    aside = (METADATA_FILE, *MANIFESTS.values())
    files = [
        {"name": path.name, "size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.iterdir())
        if path.name not in aside
    ]
    manifest = {"kind": kind, "files": files, **facts}
    manifest["build_id"] = build_id(manifest)
    write_json(folder / MANIFESTS[kind], manifest)
    return manifest


def build_id(manifest: dict[str, Any]) -> str:
    """Return the hash of a manifest without its build id."""
    rest = {key: value for key, value in manifest.items() if key != "build_id"}
    return sha256_bytes(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode())


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """Read a manifest and check its shape, and that it was not edited.

    Raises:
        FileNotFoundError: `folder` has no manifest of this kind.
        UserError: it is not JSON, lacks a field, or its build id differs.
    """
    path = folder / MANIFESTS[kind]
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {path.name}; package it again")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or not _is_listing(manifest.get("files")):
        raise UserError(f"{path} must list its files with name, size and sha256; package it again")
    if missing := [name for name in FACTS[kind] if not isinstance(manifest.get(name), dict)]:
        raise UserError(f"{path} lacks {', '.join(missing)}; package it again")
    if manifest.get("kind") != kind or manifest.get("build_id") != build_id(manifest):
        raise UserError(f"{path} is not the manifest that was packed (its build id differs); package it again")
    return manifest


def _is_listing(files: Any) -> bool:
    entries = files if isinstance(files, list) else [None]
    return all(isinstance(entry, dict) and {"name", "size", "sha256"} <= entry.keys() for entry in entries)


def find_problems(folder: Path, kind: str) -> list[str]:
    """Return how a folder differs from its manifest, one line for each file; manifest and metadata are not counted."""
    manifest = read_manifest(folder, kind)
    listed = {entry["name"]: entry for entry in manifest["files"]}
    present = {path.name for path in folder.iterdir()} - {METADATA_FILE, MANIFESTS[kind]}
    found = [f"{name} is missing" for name in sorted(listed.keys() - present)]
    found += [f"{name} is not in the manifest" for name in sorted(present - listed.keys())]
    for name in sorted(listed.keys() & present):
        path, entry = folder / name, listed[name]
        if path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            found.append(f"{name} is not the file that was packed (its hash differs)")
    return found


@contextmanager
def replace_folder(folder: Path, marker: str) -> Iterator[Path]:
    """Yield a new folder to fill, which then replaces `folder`; a non-empty old one must hold `marker`.

    An old folder with the same bytes is kept, times included: by them the client knows what it has uploaded.

    Raises:
        UserError: `folder` is not a bundle's.
    """
    if folder.exists() and not (folder / marker).is_file() and any(folder.iterdir()):
        raise UserError(f"{folder} is not part of a bundle (no {marker}); choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        fresh = Path(scratch) / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists() and _have_same_files(folder, fresh):
            return
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)


def _have_same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    return not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])
