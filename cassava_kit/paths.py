"""Names of the kit's files, and the folder of what can be made again; start at `cache_dir`."""

from __future__ import annotations

import os
import sys
import tempfile
from functools import cache
from pathlib import Path

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
