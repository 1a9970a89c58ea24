"""Files that are either whole or not there, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# The kit's version, which every file that it writes names; `pyproject.toml` reads it here.
KIT_VERSION = "0.1.0"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` on success and vanishes on failure."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON that is the same bytes for the same value, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def header_path(path: str | Path) -> Path:
    """Where a table's header lies: `<stem>.json` beside it; ValueError for a table that would have this name itself."""
    path = Path(path)
    if path.suffix == ".json":
        raise ValueError(f"{path}: expected a name that ends in .csv, got one that the table's own header takes")
    return path.with_suffix(".json")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing file raises FileNotFoundError, a broken one a ValueError naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); make it again") from None


def csv_text(frame: pd.DataFrame) -> str:
    """Return a table as CSV with Unix line ends, which `read_csv` reads back: the same text for the same rows."""
    import csv

    # pandas leaves a lone carriage return unquoted, and takes it for the end of a row when it reads.
    texts = (column for _, column in frame.items() if column.dtype.kind not in "biuf")
    odd = any(column.astype(str).str.contains("\r", regex=False).any() for column in texts)
    if odd:
        return frame.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return frame.to_csv(index=False, lineterminator="\n")


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """`pandas.read_csv` of a file whose errors name it: ValueError for an empty one, or for rows of unequal width."""
    import pandas as pd

    try:
        return pd.read_csv(path, **options)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty; make it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table of comma-separated values ({error}); make it again") from None


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


KIT_MANIFEST = "KIT_MANIFEST.json"


WEIGHTS_MANIFEST = "WEIGHTS_MANIFEST.json"


# What a fold's run leaves in its folder.
CHECKPOINT_FILE, OOF_FILE, DONE_FILE, CONFIG_FILE = "best.safetensors", "oof.csv", "run.json", "config.json"


def cache_dir() -> Path:
    """Return the folder for what can be made again: `$CASSAVA_KIT_CACHE`, else `~/.cache/cassava_kit`.

    Where it cannot be made or written, e.g. for a user without a home, it is a folder in the system's temporary folder,
    and standard error says so once.
    """
    named = os.environ.get("CASSAVA_KIT_CACHE")
    try:
        return _writable_folder(Path(named) if named else Path.home() / ".cache" / "cassava_kit")
    except RuntimeError:  # neither $HOME nor an entry for this user
        return _writable_folder(Path(os.devnull) / "cassava_kit")


@cache
def _writable_folder(wanted: Path) -> Path:
    """`wanted`, made if it is not there, or where that fails this user's own folder among the temporary ones."""
    reason = _unwritable(wanted)
    if reason is None:
        return wanted
    other = Path(tempfile.gettempdir()) / f"cassava_kit-{os.getuid()}"
    if _unwritable(other) is not None or other.is_symlink() or other.stat().st_uid != os.getuid():
        other = Path(tempfile.mkdtemp(prefix="cassava_kit-"))
    print(f"the cache folder {wanted} cannot be written ({reason}); using {other}", file=sys.stderr)
    return other


def _unwritable(folder: Path) -> str | None:
    """Why no file can be made in `folder`, which is made if it is not there; None where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
