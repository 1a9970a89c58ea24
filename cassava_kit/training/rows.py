"""Rows that a run is trained and validated on: `TrainData`, `TrainOptions`, `usable_rows`, `clean_rows`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.images import quick_check
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import apply_noise_report, read_noise_report
from cassava_kit.files import sha256_file
from cassava_kit.training.devices import Devices


@dataclass(frozen=True)
class TrainData:
    """A competition's table with its image folder, and its split into folds.

    `slug_known` is off for a table of the user's, which names no competition: its slug is a placeholder.
    """

    table: TrainTable
    folds: Folds
    competition: Competition = field(default_factory=current)
    slug_known: bool = True

    @cached_property
    def images_hash(self) -> str:
        """SHA-256 of the names and contents of all images of the table; an unreadable one counts as empty."""
        digest = hashlib.sha256()
        names = self.folds.frame["image_id"]
        for name, path in zip(names, self.paths(self.folds.frame), strict=True):
            digest.update(f"{name} {_content_hash(path)}\n".encode())
        return digest.hexdigest()

    def paths(self, rows: pd.DataFrame) -> list[Path]:
        """Return the image files of rows."""
        return [self.table.image_dir / name for name in rows["image_id"]]


@dataclass(frozen=True)
class TrainOptions:
    """Options of a run beside its configuration.

    `weights` are the initial weights; `partial_weights` allows tensors of the backbone that the file lacks. `limit` is
    the largest number of training rows. `clean` is a noise report for the training rows, `clean_action` what is done
    with it. `workers` are loader processes, `cache` a folder for decoded pixels. `existing` says what is done with a
    run that differs, finished or not: refuse, replace, or keep (where only the code differs). `threads` are torch's on
    a CPU (None: as many as suit one fold alone). `tell` prints a line.
    """

    weights: Path | None = None
    partial_weights: bool = False
    limit: int | None = None
    clean: Path | None = None
    clean_action: str = "drop"
    devices: Devices = field(default_factory=Devices)
    workers: int = 0
    cache: Path | None = None
    tensorboard: bool = False
    existing: Literal["refuse", "replace", "keep"] = "refuse"
    threads: int | None = None
    tell: Callable[[str], None] = print

    def describe(self) -> dict[str, object]:
        """Return the options that decide the run's outcome; files by name and hash."""
        named = {"weights": self.weights, "clean": self.clean}
        files = {key: None if path is None else f"{path.name} {sha256_file(path)[:12]}" for key, path in named.items()}
        action = self.clean_action if self.clean else None
        return {
            **files,
            "clean_action": action,
            "limit": self.limit,
            "strategy": self.devices.strategy,
            "processes": self.devices.processes,
        }


def usable_rows(data: TrainData, fold: int, limit: int | None) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return training rows (readable ones, at most `limit`), all validation rows, and the unreadable images.

    Raises:
        UserError: No training image can be read.
    """
    training, validation = data.folds.training(fold), data.folds.validation(fold)
    bad = np.array([quick_check(path) is not None for path in data.paths(training)])
    broken = training["image_id"][bad].tolist()
    training = training[~bad].reset_index(drop=True)
    if training.empty:
        raise UserError(f"no readable training image in {data.table.image_dir}; check the download")
    if limit is not None and limit < len(training):
        training = draw_rows(training, limit)
    return training, validation, broken


def draw_rows(rows: pd.DataFrame, n: int, *, seed: int = 0) -> pd.DataFrame:
    """Draw `n` rows at random: each class in its share, and every class that `n` leaves room for; row order is kept."""
    counts = rows["label"].value_counts().sort_index()
    ideal = (n * counts / len(rows)).to_numpy()
    quotas = np.zeros(len(counts), int)
    for _ in range(n):
        # The first row of a class comes before the second of any other, in the order of their frequencies.
        quotas[np.argmax(np.where(quotas == 0, len(rows) + ideal, ideal - quotas))] += 1
    shuffled = rows.sample(frac=1, random_state=seed)
    allowed = shuffled["label"].map(dict(zip(counts.index, quotas, strict=True)))
    return shuffled[shuffled.groupby("label").cumcount() < allowed].sort_index().reset_index(drop=True)


def clean_rows(training: pd.DataFrame, options: TrainOptions) -> pd.DataFrame:
    """Return training rows after the noise report: dropped, flipped, weighted or softened."""
    if options.clean is None:
        return training
    rows = apply_noise_report(training, read_noise_report(options.clean), action=options.clean_action)
    return rows.reset_index(drop=True)


def _content_hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return ""
