"""What a run learns from: the table with its images, the split, and the session's choices; the rows that are left."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import Literal

import numpy as np
import pandas as pd
from rich.progress import Progress

from cassava_kit.competition import Competition, current
from cassava_kit.config import RunConfig
from cassava_kit.data.images import quick_check
from cassava_kit.data.table import TrainTable
from cassava_kit.files import sha256_file
from cassava_kit.folds import Folds
from cassava_kit.models import check_size, sized_args
from cassava_kit.noise.decisions import ACTIONS, WEIGHTED, apply_report, check_report, read_report
from cassava_kit.training.devices import Devices, check_devices

LONGEST_TEMPORARY = 70  # a socket's path may have 107 characters; longer ones are waited for in vain


@dataclass(frozen=True)
class TrainData:
    """What a run learns from: the competition's table with its image folder, and the split."""

    table: TrainTable
    folds: Folds
    competition: Competition = field(default_factory=current)

    @cached_property
    def images_hash(self) -> str:
        """SHA-256 over all the table's images, names and contents; one that cannot be read counts as empty."""
        digest = hashlib.sha256()
        for path in self.paths(self.folds.frame):
            digest.update(f"{path.name} {_content_hash(path)}\n".encode())
        return digest.hexdigest()

    def paths(self, rows: pd.DataFrame) -> list[Path]:
        """Image files of rows."""
        return [self.table.image_dir / name for name in rows["image_id"]]


@dataclass(frozen=True)
class Session:
    """What a run is given beside its configuration.

    First weights and whether they may leave tensors of the backbone random, a limit of rows, a noise report for the
    training rows and what to do with it, the devices, loader processes, a folder for decoded pixels, whether to write
    TensorBoard's log, what to do with a finished run that differs (refuse, replace it, or keep it where only the code
    differs), and where to print.
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
    progress: Progress | None = None
    tell: Callable[[str], None] = print

    def given(self) -> dict[str, object]:
        """What decides the run's outcome, in words: files by name and hash."""
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


def check_table(data: TrainData) -> None:
    """The fold file must be of this very table: same images, same labels."""
    table = data.table.frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    split = data.folds.frame
    unknown = pd.Index(table["image_id"]).difference(split["image_id"])
    absent = pd.Index(split["image_id"]).difference(table["image_id"])
    if len(unknown) or len(absent):
        raise ValueError(
            f"the fold file must have the table's images: {len(unknown)} images of the table are not in it"
            f"{f' (first: {unknown[0]})' if len(unknown) else ''}, {len(absent)} of its images are not in the table"
            f"{f' (first: {absent[0]})' if len(absent) else ''}; make it again with: python -m cassava_kit folds"
        )
    differs = table["label"].to_numpy() != split["label"].to_numpy()
    if differs.any():
        row = int(np.argmax(differs))
        raise ValueError(
            f"the fold file says label {split['label'].iloc[row]} for {split['image_id'].iloc[row]}, the table says "
            f"{table['label'].iloc[row]}; make the fold file again with: python -m cassava_kit folds"
        )


def check_session(config: RunConfig, data: TrainData, session: Session) -> None:
    """Everything that can be refused before slow work: table, model, devices, first weights, noise report, log."""
    check_table(data)
    check_size(config.model, config.image_size, sized_args(config.model, config.image_size, config.model_args))
    check_devices(session.devices, config)
    if session.weights is not None and not session.weights.is_file():
        raise FileNotFoundError(f"no weights file {session.weights}")
    if session.clean_action not in ACTIONS:
        raise ValueError(f"--clean-action must be one of {', '.join(ACTIONS)}, got {session.clean_action!r}")
    if session.clean is not None:
        check_report(read_report(session.clean), data.folds.frame, data.competition.n_classes)
        check_row_weights(config, session.clean_action)
    if session.workers and len(gettempdir()) > LONGEST_TEMPORARY:
        raise ValueError(
            f"--workers needs a temporary folder of at most {LONGEST_TEMPORARY} characters, for the sockets of its "
            f"processes, got {gettempdir()}; set TMPDIR=/tmp"
        )
    if session.tensorboard:
        from importlib.util import find_spec

        if find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs the package tensorboard: pip install tensorboard")


def check_row_weights(config: RunConfig, action: str) -> None:
    """ValueError where a noise report would give rows weights, and the recipe mixes rows."""
    if action in WEIGHTED and (config.mixup or config.cutmix):
        raise ValueError(
            f"weights of rows do not go with mixup or cutmix, got --clean-action {action}; use drop or flip, or "
            "--set mixup=0 --set cutmix=0"
        )


def usable_rows(data: TrainData, fold: int, limit: int | None) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Training rows (without unreadable images, at most `limit`), validation rows (all), and the unreadable images."""
    training, validation = data.folds.training(fold), data.folds.validation(fold)
    bad = np.array([quick_check(path) is not None for path in data.paths(training)])
    broken = training["image_id"][bad].tolist()
    training = training[~bad].reset_index(drop=True)
    if training.empty:
        raise ValueError(f"no readable training image in {data.table.image_dir}; check the download")
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


def cleaned_rows(training: pd.DataFrame, session: Session) -> pd.DataFrame:
    """Training rows after the noise report: dropped, flipped, weighted, softened; validation rows are never touched."""
    if session.clean is None:
        return training
    rows = apply_report(training, read_report(session.clean), action=session.clean_action)
    return rows.reset_index(drop=True)


def _content_hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return ""
