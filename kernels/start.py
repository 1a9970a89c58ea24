# ruff: noqa: F821 - the cell that includes this file defines SETTINGS
import os
import time
from pathlib import Path

STARTED = time.time()
INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR") or "/kaggle/input")
OUTPUT = Path(os.environ.get("KAGGLE_WORKING_DIR") or "/kaggle/working")
# Seconds after which the notebook ends itself, before Kaggle does.
TIME_LIMIT = float(os.environ.get("CASSAVA_KIT_TIME_LIMIT") or SETTINGS["time_limit"])


def input_folders():
    """Yield the folders up to three levels below the input: <slug> (old layout), datasets/<owner>/<slug> (new)."""
    level = [INPUT]
    for _ in range(3):
        level = sorted(Path(entry) for folder in level for entry in os.scandir(folder) if entry.is_dir())
        yield from level


def competition_folder(*names):
    """Return the folder of the attached competition, found by the files that it holds, in either mount layout."""
    for folder in input_folders():
        if all((folder / name).exists() for name in names):
            return folder
    raise FileNotFoundError(f"no folder with {' and '.join(names)} in {INPUT}; attach the competition to the notebook")
