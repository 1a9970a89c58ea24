import os
import time
from pathlib import Path

STARTED = time.time()
INPUT = Path(os.environ.get("KAGGLE_INPUT_DIR") or "/kaggle/input")
OUTPUT = Path(os.environ.get("KAGGLE_WORKING_DIR") or "/kaggle/working")


def input_folders():
    """Folders at most three levels below the input: old layout <slug>, new layout datasets/<owner>/<slug>."""
    level = [INPUT]
    for _ in range(3):
        level = sorted(Path(entry) for folder in level for entry in os.scandir(folder) if entry.is_dir())
        yield from level


def competition_folder(*names):
    """The attached competition, known by what it holds, in the old or the new mount layout."""
    for folder in input_folders():
        if all((folder / name).exists() for name in names):
            return folder
    raise FileNotFoundError(f"no folder with {' and '.join(names)} in {INPUT}; attach the competition to the notebook")
