"""Write files atomically, read and hash them, and name them. Entry points: `atomic_path`, `write_json`, `cache_dir`."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cassava_kit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

# The kit's version, which every file that it writes names; `pyproject.toml` reads it here.
KIT_VERSION = "0.2.0"
KIT_MANIFEST = "KIT_MANIFEST.json"
WEIGHTS_MANIFEST = "WEIGHTS_MANIFEST.json"
# The submissions that were made, in the current folder; `make clean` keeps it.
LEDGER_FILE = "submissions.json"
# What a fold's run leaves in its folder.
CHECKPOINT_FILE, OOF_FILE, DONE_FILE, CONFIG_FILE = "best.safetensors", "oof.csv", "run.json", "config.json"
METRICS_FILE, RESUME_FILE = "metrics.csv", "last.ckpt"


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; it replaces `path` on success and is removed on failure."""
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


@contextmanager
def hold_lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file for this process until the block, or the process, ends; others wait for it.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is off; the error's text says which.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            raise BlockingIOError(file.read().strip() or "another process") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def leaves_folder(name: str) -> bool:
    """Return whether a file name that a table or a setting gives leads out of the folder that it is meant in.

    It does where it is an absolute path (also of Windows), has a part `..`, or is no name that a system takes.

    Example:
        >>> [leaves_folder(name) for name in ("rose/1.jpg", "../1.jpg", "/etc/passwd", "C:/1.jpg")]
        [False, True, True, True]
    """
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ".." in parts or parts[0][1:2] == ":" or "\0" in name if name else False


def path_inside(folder: str | Path, name: str) -> Path:
    """Return the path of a file that a table names in a folder.

    Raises:
        UserError: The name, or the link that it names, leads out of the folder.
    """
    path = Path(folder) / name
    if leaves_folder(name):
        raise UserError(f"{name!r} leads out of {folder}; expected the name of a file in this folder")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{path} is a link to {os.path.realpath(path)}, outside {folder}; put the file itself there")
    return path


def check_names(names: Iterable[object], path: str | Path) -> None:
    """Refuse a table in which an image's name leads out of its folder; UserError names the table."""
    for name in names:
        if isinstance(name, str) and leaves_folder(name):
            raise UserError(f"{path} names {name!r}, which leads out of the images' folder; make the table again")


def check_writable(path: str | Path) -> None:
    """Refuse an output that could not be written, before slow work: a file, or a folder, there or to be made.

    Raises:
        UserError: The message names the folder and the reason.
    """
    path = Path(path).absolute()
    folder = path if path.is_dir() else next(parent for parent in path.parents if parent.exists())
    reason = "it is a file" if not folder.is_dir() else _unwritable(folder)
    if reason is not None:
        raise UserError(f"nothing can be written in {folder} ({reason}); give another --out")


def find_file(path: str | Path, what: str, remedy: str) -> Path:
    """Return the path of a file that is there.

    Raises:
        FileNotFoundError: It is not. The message names what is there instead, and ends with `remedy`, what to do.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no {what} {path}{_there_instead(path)}; {remedy}")
    return path


def find_folder(path: str | Path, remedy: str, *, what: str = "folder") -> Path:
    """Return the path of a folder that is there; FileNotFoundError as of `find_file` where it is not."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no {what} {path}{_there_instead(path)}; {remedy}")
    return path


def _there_instead(path: Path) -> str:
    """Return in brackets why a path is missing: it is of another kind, its folder is missing, or a name is alike."""
    if path.exists():
        return " (it is a folder)" if path.is_dir() else " (it is a file)"
    parent = path.parent
    if not parent.is_dir():
        return f" (there is no folder {parent})"
    names = sorted(each.name for each in parent.iterdir() if not each.name.startswith("."))
    alike = get_close_matches(path.stem, {Path(name).stem for name in names})
    near = [name for name in names if Path(name).stem in alike]
    near = [name for name in near if Path(name).suffix == path.suffix] or near
    return f" (did you mean {' or '.join(near[:3])}?)" if near else ""


def check_apart(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write an output over one of the files that it is made from, or over such a table's header.

    Raises:
        UserError: The message names the file.
    """
    taken = {path.resolve() for given in map(Path, inputs) for path in (given, given.parent / f"{given.stem}.json")}
    for path in map(Path, outputs):
        if path.resolve() in taken:
            raise UserError(f"the output would be written over {path}, which it is made from; give --out another name")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically: the same bytes for the same value."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def header_path(path: str | Path) -> Path:
    """Return the path of a table's header, `<stem>.json` beside it.

    Raises:
        UserError: The table itself has this name.
    """
    path = Path(path)
    if path.suffix == ".json":
        raise UserError(f"{path}: expected a name that ends in .csv, got the name of the table's own header")
    return path.with_suffix(".json")


def read_json(path: str | Path) -> Any:
    """Read JSON; FileNotFoundError for a missing file, UserError for a damaged one."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); make it again") from None


def read_object(path: str | Path) -> dict[str, Any]:
    """Read a JSON object; FileNotFoundError for a missing file, UserError for another value or a damaged file."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(value).__name__}; make it again")
    return value


def csv_text(frame: pd.DataFrame, float_format: str | None = None) -> str:
    """Return a table as CSV with Unix line ends, which `read_csv` reads back: the same text for the same rows."""
    # pandas leaves a lone carriage return unquoted, and takes it for the end of a row when it reads.
    texts = (column for _, column in frame.items() if column.dtype.kind not in "biuf")
    odd = any(column.astype(str).str.contains("\r", regex=False).any() for column in texts)
    quoting: Literal[0, 2] = 2 if odd else 0  # csv.QUOTE_NONNUMERIC, QUOTE_MINIMAL
    return str(frame.to_csv(index=False, lineterminator="\n", quoting=quoting, float_format=float_format))


def read_csv(path: str | Path, **options: Any) -> pd.DataFrame:
    """Read a table by `pandas.read_csv`; UserError, naming the file, for an empty one or rows of unequal width.

    A header without commas that has another separator is told as such.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, **options)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path} is empty; make it again") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        _check_commas(path)
        why = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(f"{path} is not a table of comma-separated values ({why}); make it again") from None
    if len(frame.columns) == 1:
        _check_commas(path)
    return frame


def _check_commas(path: str | Path) -> None:
    """Refuse a table whose header has another separator than commas."""
    with Path(path).open("rb") as file:
        header = file.readline()
    for mark, name in ((b";", "semicolons"), (b"\t", "tabs"), (b"|", "bars")):
        if mark in header and b"," not in header:
            raise UserError(f"{path} is divided by {name}: expected commas between its cells; save it so")


def sha256_bytes(content: bytes) -> str:
    """Return the hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's content, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_dir() -> Path:
    """Return the cache folder, made if missing: `$CASSAVA_KIT_CACHE`, else `~/.cache/cassava_kit`.

    Where it cannot be written, e.g. for a user without a home, a folder in the system's temporary folder is used, with
    one line on standard error.
    """
    named = os.environ.get("CASSAVA_KIT_CACHE")
    try:
        return _writable_folder(Path(named) if named else Path.home() / ".cache" / "cassava_kit")
    except RuntimeError:  # neither $HOME nor an entry for this user
        return _writable_folder(Path(os.devnull) / "cassava_kit")


@cache
def _writable_folder(wanted: Path) -> Path:
    """Return `wanted`, or this user's own temporary folder where that cannot be written."""
    reason = _unwritable(wanted)
    if reason is None:
        return wanted
    other = Path(tempfile.gettempdir()) / f"cassava_kit-{os.getuid()}"
    if _unwritable(other) is not None or other.is_symlink() or other.stat().st_uid != os.getuid():
        other = Path(tempfile.mkdtemp(prefix="cassava_kit-"))
    print(f"the cache folder {wanted} cannot be written ({reason}); using {other}", file=sys.stderr)
    return other


def _unwritable(folder: Path) -> str | None:
    """Return why no file can be written in `folder`, which is made if missing; None where one can."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)
