"""Where things lie, on Kaggle and off it; no other file knows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cassava_kit.competition import Competition, current

KIT_MANIFEST = "KIT_MANIFEST.json"
WEIGHTS_MANIFEST = "WEIGHTS_MANIFEST.json"
# What a fold's run leaves in its folder.
CHECKPOINT_FILE, OOF_FILE, DONE_FILE, CONFIG_FILE = "best.safetensors", "oof.csv", "run.json", "config.json"


def cache_dir() -> Path:
    """Folder for what can be made again: `$CASSAVA_KIT_CACHE`, else `~/.cache/cassava_kit`."""
    return Path(os.environ.get("CASSAVA_KIT_CACHE") or Path.home() / ".cache" / "cassava_kit")


def input_dir() -> Path:
    """Folder under which Kaggle mounts what a kernel reads: `$KAGGLE_INPUT_DIR`, else `/kaggle/input`."""
    return Path(os.environ.get("KAGGLE_INPUT_DIR") or "/kaggle/input")


def working_dir() -> Path:
    """Folder to which a Kaggle kernel writes: `$KAGGLE_WORKING_DIR`, else `/kaggle/working`."""
    return Path(os.environ.get("KAGGLE_WORKING_DIR") or "/kaggle/working")


def mounted_folders(root: Path, *, depth: int = 3) -> Iterator[Path]:
    """Folders at most `depth` levels under `root`, level by level, each level by name (both mount layouts)."""
    level = [root]
    for _ in range(depth):
        level = sorted(child for folder in level if folder.is_dir() for child in folder.iterdir() if child.is_dir())
        yield from level


def find_competition(root: Path | None = None, competition: Competition | None = None) -> Path:
    """The competition's folder under `root`, known by its markers, wherever it is mounted."""
    competition = competition or current()
    root = root or input_dir()
    for folder in mounted_folders(root):
        if (folder / competition.test_images).is_dir() and (folder / competition.sample_submission).is_file():
            return folder
    raise FileNotFoundError(
        f"expected a folder with {competition.test_images}/ and {competition.sample_submission} under {root}, "
        f"found none; attach the competition {competition.slug!r} to the notebook"
    )


def find_marked(marker: str, root: Path | None = None) -> Path:
    """The one folder under `root` that holds the file `marker`, e.g. a manifest."""
    root = root or input_dir()
    found = [folder for folder in mounted_folders(root) if (folder / marker).is_file()]
    if len(found) != 1:
        listed = ", ".join(str(folder) for folder in found) or "none"
        raise FileNotFoundError(
            f"expected exactly one folder with {marker} under {root}, found {listed}; attach the dataset once"
        )
    return found[0]
