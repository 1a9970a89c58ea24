"""Submission runs over small members, and what their files must say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.inference.clock import Clock
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.report import RunReport
from cassava_kit.inference.run import run_submission
from cassava_kit.inference.submission import check_answers

ROOT = Path(__file__).parents[2]
CPU = {"device": "cpu", "batch_size": 4, "progress": False}


class FakeClock(Clock):
    """A clock that stands still but for what a test adds to `now`, the seconds used."""

    def __post_init__(self) -> None:
        self.now = 0.0

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.now


def run_python(arguments: list[str]) -> str:
    """Standard output of another Python that finds the package."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def submit(images: Path, weights: Path, out: Path, **changes: object) -> tuple[pd.Series, RunReport]:
    """Run, check the file, and return its labels by image."""
    limits = {key: changes.pop(key) for key in ("time_limit", "started") if key in changes}
    report = run_submission(images, weights, out, options=RunOptions(**(CPU | changes)), **limits)
    check_answers(out, images)
    return read_labels(out), report


def read_labels(path: Path) -> pd.Series:
    return pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False).set_index("image_id")["label"]


def full_ensemble(images: Path, weights: Path) -> np.ndarray:
    """Votes (N, K) of every checkpoint through every view, the slow way."""
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    paths = sorted(images.iterdir())
    total = np.zeros((len(paths), 5))
    for member in ensemble.members:
        files = [weights / name for name in member.checkpoints]
        p, _ = predict_images(files, paths, views=ensemble.views, batch_size=4, device="cpu", progress=False)
        total += member.weight * p.mean(0)
    return total
