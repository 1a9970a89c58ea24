"""What lies in a run's folder: its fingerprint, checkpoint, out-of-fold predictions and result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit import __version__
from cassava_kit.checkpoint import CheckpointInfo, load_tensors, save_checkpoint
from cassava_kit.competition import CASSAVA
from cassava_kit.config import RunConfig
from cassava_kit.files import read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.folds import Folds
from cassava_kit.inference.predict import predict_images
from cassava_kit.models import sized_args
from cassava_kit.oof import Score, accuracy, fold_predictions, join_folds, score_record
from cassava_kit.paths import CHECKPOINT_FILE, CONFIG_FILE, DONE_FILE, OOF_FILE
from cassava_kit.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.training.callbacks import RESUME_FILE
from cassava_kit.training.rows import Session, TrainData

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class FoldResult:
    """Where a trained fold lies and what it scored on the rows it never saw."""

    run_dir: Path
    score: Score
    seconds: float
    reused: bool

    @property
    def checkpoint(self) -> Path:
        """The weights' file."""
        return self.run_dir / CHECKPOINT_FILE

    @property
    def oof(self) -> Path:
        """The fold's out-of-fold predictions."""
        return self.run_dir / OOF_FILE


def fingerprint(config: RunConfig, data: TrainData, fold: int, session: Session) -> str:
    """A hash of all that decides a run's outcome, the images' contents included."""
    parts = {
        "config": config.model_dump(mode="json"),
        "folds": data.folds.hash,
        "fold": fold,
        "images": data.images_hash,
        "weights": sha256_file(session.weights) if session.weights else None,
        "limit": session.limit,
        "clean": [sha256_file(session.clean), session.clean_action] if session.clean else None,
        "processes": session.devices.processes,
        "kit": __version__,
    }
    if data.competition.n_classes != CASSAVA.n_classes:
        parts["n_classes"] = data.competition.n_classes
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def finished(run_dir: Path, print_of_run: str) -> FoldResult | None:
    """The result of a finished run of the same fingerprint, if it lies there whole."""
    files = [run_dir / name for name in (DONE_FILE, CHECKPOINT_FILE, OOF_FILE)]
    if not all(file.is_file() for file in files):
        return None
    done = read_json(files[0])
    if done.get("fingerprint") != print_of_run or done.get("checkpoint_sha256") != sha256_file(files[1]):
        return None
    score = Score(done["oof_accuracy"], done["oof_standard_error"], done["oof_rows"])
    return FoldResult(run_dir, score, done["seconds"], reused=True)


def prepare_run_dir(run_dir: Path, config: RunConfig, print_of_run: str) -> None:
    """Make the folder; what another configuration left there goes, what this one left stays to be resumed."""
    state = run_dir / "state.json"
    if not (state.is_file() and read_json(state).get("fingerprint") == print_of_run):
        for name in (RESUME_FILE, CHECKPOINT_FILE, OOF_FILE, DONE_FILE, "metrics.csv", "oof.json"):
            (run_dir / name).unlink(missing_ok=True)
        for name in (OOF_FILE, "oof.json"):  # joined from folds of which this one is no longer
            (run_dir.parent / name).unlink(missing_ok=True)
    write_json(run_dir / CONFIG_FILE, config.model_dump(mode="json"))
    write_json(state, {"fingerprint": print_of_run})


def checkpoint_info(
    config: RunConfig, data: TrainData, fold: int, *, statistics: Statistics, training: pd.DataFrame
) -> CheckpointInfo:
    """The header of a checkpoint of this run, with the inputs' mean and std; the score is added once it is known."""
    # A softened row is there twice, and counts once in all.
    counts = np.bincount(training["label"], training.get("weight"), minlength=data.competition.n_classes)
    return CheckpointInfo(
        model=config.model,
        model_args=sized_args(config.model, config.image_size, config.model_args),
        head=config.head,
        n_classes=data.competition.n_classes,
        input_size=(config.image_size, config.image_size),
        mean=statistics[0],
        std=statistics[1],
        recipe=config.recipe,
        competition=data.competition.slug,
        fold=fold,
        n_splits=data.folds.n_splits,
        fold_hash=data.folds.hash,
        prior=tuple((counts / counts.sum()).tolist()),
        config=config.model_dump(mode="json"),
    )


def write_oof(run_dir: Path, info: CheckpointInfo, data: TrainData, fold: int) -> Score:
    """Predict the fold's own rows with the kept weights, as the submission would, and write `oof.csv`.

    An image that cannot be read gets the training rows' class shares, as in a submission.
    """
    rows = data.folds.validation(fold)
    paths = data.paths(rows)
    members, failed = predict_images([run_dir / CHECKPOINT_FILE], paths, views="none", progress=False)
    probabilities = np.asarray(members[0], np.float64)
    unread = np.isin(rows["image_id"].to_numpy(), list(failed))
    probabilities[unread] = info.prior
    write_predictions(run_dir / OOF_FILE, fold_predictions(data.folds, fold, probabilities, info.name))
    return accuracy(rows["label"].to_numpy(), probabilities)


def finish(run_dir: Path, info: CheckpointInfo, score: Score, *, facts: dict[str, Any]) -> None:
    """Put the score into the checkpoint's header and mark the run as finished, with further facts about it."""
    path = run_dir / CHECKPOINT_FILE
    scored = info.model_copy(update={"oof_accuracy": score.accuracy, "oof_rows": score.n})
    save_checkpoint(path, load_tensors(path), scored)
    write_json(run_dir / DONE_FILE, {"checkpoint_sha256": sha256_file(path), **score_record(score), **facts})
    (run_dir / RESUME_FILE).unlink(missing_ok=True)


def join_runs(results: list[FoldResult], folds: Folds, out: Path, recipe: str) -> tuple[Path, Predictions]:
    """Join the folds' predictions to `out/<recipe>/oof.csv`."""
    whole = join_folds([read_predictions(result.oof) for result in results], folds, recipe)
    path = out / recipe / OOF_FILE
    write_predictions(path, whole)
    return path, whole
