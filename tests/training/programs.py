"""Trainings as programs of their own, which can be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

# No BatchNorm in small_vit: its statistics are of a process's own batch, on a CPU.
SETTINGS = ("epochs=3", "augmentation=none", "image_size=56", "train_pixels=[56,56]", "lr=0.001")


def command(data: Path, folds: Path, out: Path, *more: str, settings: tuple[str, ...] = ()) -> list[str]:
    """A training of small_vit on fold 0."""
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    head = [sys.executable, "-m", "cassava_kit", "train", "small_vit", "--data", str(data), "--folds", str(folds)]
    return [*head, "--fold", "0", "--out", str(out), "--name", "small_vit", *options, *more]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(arguments: list[str]) -> None:
    """Run to the end."""
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def start(arguments: list[str]) -> subprocess.Popen:
    """Start in a process group of its own."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(arguments, env=environment(), stdout=silent, stderr=silent, start_new_session=True)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the program and all it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for(file: Path, process: subprocess.Popen) -> None:
    """Until a file is there; the program must still be running."""
    deadline = time.monotonic() + 240
    while not file.is_file():
        assert process.poll() is None and time.monotonic() < deadline, f"the run ended before it wrote {file.name}"
        time.sleep(0.01)
