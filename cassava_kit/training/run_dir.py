"""What lies in a run's folder: its fingerprint, checkpoint, out-of-fold predictions and result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.data.folds import Folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import Score, accuracy, score, score_record
from cassava_kit.evidence.oof import fold_predictions, join_folds
from cassava_kit.evidence.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.files import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    DONE_FILE,
    METRICS_FILE,
    OOF_FILE,
    RESUME_FILE,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)
from cassava_kit.inference.precision import half_verdict
from cassava_kit.inference.predict import predict_images
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import args_for_size
from cassava_kit.models.weights import load_tensors
from cassava_kit.training.config import NAMES, ProbeConfig, RunConfig
from cassava_kit.training.recipes import run_name
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.sources import ROOTS, Roots, learning_code_hash

Statistics = tuple[tuple[float, float, float], tuple[float, float, float]]
Fingerprint = dict[str, str]
STATE_FILE, FAILED_FILE = "state.json", "failed.json"


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
    def oof_file(self) -> Path:
        """The file of the fold's out-of-fold predictions."""
        return self.run_dir / OOF_FILE

    @cached_property
    def oof(self) -> pd.DataFrame:
        """Out-of-fold predictions, a row an image of the fold: `image_id`, `p0` .. `p<K-1>`, `fold`."""
        return read_predictions(self.oof_file).frame


def run_fingerprint(
    config: RunConfig | ProbeConfig, data: TrainData, fold: int, options: TrainOptions, *, roots: Roots = ROOTS
) -> Fingerprint:
    """Return all that decides a run's outcome, by what the user calls it; what is large is hashed.

    `roots` are the names from which the code that it was trained by is followed.
    """
    settings = config.model_dump(mode="json", exclude=set(NAMES))
    return {
        "settings": sha256_bytes(json.dumps(settings, sort_keys=True).encode()),
        "folds": f"{data.folds.hash} {fold}",
        "images": data.images_hash,
        "weights": sha256_file(options.weights) if options.weights else "",
        "limit": str(options.limit or ""),
        "noise report": f"{sha256_file(options.clean)} {options.clean_action}" if options.clean else "",
        "number of processes": str(options.devices.processes),
        "classes": str(data.competition.n_classes),
        "code": learning_code_hash(roots=roots),
    }


def read_finished(run_dir: Path) -> tuple[FoldResult, Fingerprint] | None:
    """Return the result of the finished run in a folder, with its fingerprint; None where there is no whole one."""
    files = [run_dir / name for name in (DONE_FILE, CHECKPOINT_FILE, OOF_FILE)]
    if not all(file.is_file() for file in files):
        return None
    done = read_json(files[0])
    if done.get("checkpoint_sha256") != sha256_file(files[1]):
        return None
    score = Score(done["oof_accuracy"], done["oof_standard_error"], done["oof_rows"])
    known = done.get("fingerprint")
    return FoldResult(run_dir, score, done["seconds"], reused=True), known if isinstance(known, dict) else {}


def read_unfinished(run_dir: Path) -> Fingerprint | None:
    """Return the fingerprint of the run that a folder holds unfinished; None where it has no epoch, or has failed."""
    if (run_dir / FAILED_FILE).is_file():
        return None
    if not any((run_dir / name).is_file() for name in (RESUME_FILE, CHECKPOINT_FILE, METRICS_FILE)):
        return None
    state = run_dir / STATE_FILE
    known = read_json(state).get("fingerprint") if state.is_file() else None
    return known if isinstance(known, dict) else {}


def find_reusable(run_dir: Path, wanted: Fingerprint, options: TrainOptions) -> FoldResult | None:
    """Return the finished run in a folder where it is the one that is wanted, None where it is to be trained.

    Raises:
        UserError: There is a run that differs, finished or not, and the options do not say what to do with it.
    """
    found = read_finished(run_dir)
    result, known = found or (None, read_unfinished(run_dir))
    differs = [] if known is None else differing(known, wanted)
    if not differs or (differs == ["code"] and options.existing == "keep"):
        return result
    if options.existing == "replace":
        return None
    if differs == ["code"]:
        what, keep = ("was trained by", "keep it") if result else ("holds an unfinished run of", "go on with it")
        raise UserError(
            f"{run_dir} {what} another version of the code; {keep} with --keep, train it anew with --replace, or train "
            "beside it with --name NAME"
        )
    kind = "a finished" if result else "an unfinished"
    what = f"with other {', '.join(differs)}" if known else "of an earlier version of the kit"
    raise UserError(
        f"{run_dir} holds {kind} run {what}; train beside it with --name NAME, or replace it with --replace"
    )


def differing(known: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Return the parts in which a run differs from the one that is wanted."""
    return [part for part in wanted if known.get(part) != wanted[part]]


def prepare_run_dir(
    run_dir: Path, config: RunConfig | ProbeConfig, wanted: Fingerprint, *, keep: bool = False
) -> Fingerprint:
    """Make the folder; an unfinished run of the same fingerprint stays to be resumed, all else is deleted.

    With `keep` a run of other code stays too. Returns the fingerprint of what is trained: the old one where it stays.
    """
    known = read_unfinished(run_dir)
    if known is None or differing(known, wanted) not in ([], ["code"] if keep else []):
        known = wanted
        # What marks a run as failed goes last: until then the rest is nobody's loss.
        for name in (RESUME_FILE, CHECKPOINT_FILE, OOF_FILE, DONE_FILE, METRICS_FILE, "oof.json", FAILED_FILE):
            (run_dir / name).unlink(missing_ok=True)
        for name in (OOF_FILE, "oof.json"):  # joined from folds of which this one is no longer
            (run_dir.parent / name).unlink(missing_ok=True)
    write_json(run_dir / CONFIG_FILE, config.model_dump(mode="json"))
    write_json(run_dir / STATE_FILE, {"fingerprint": known})
    return known


def mark_failed(run_dir: Path, reason: str) -> None:
    """Write why a run failed, and delete what could be mistaken for a run to resume or to use."""
    write_json(run_dir / FAILED_FILE, {"reason": reason})
    for name in (RESUME_FILE, CHECKPOINT_FILE):
        (run_dir / name).unlink(missing_ok=True)


def checkpoint_info(
    config: RunConfig | ProbeConfig,
    data: TrainData,
    fold: int,
    *,
    statistics: Statistics,
    training: pd.DataFrame,
) -> CheckpointInfo:
    """The header of a checkpoint of this run, with the inputs' mean and std; the score is added once it is known."""
    # A softened row is there twice, and counts once in all.
    counts = np.bincount(training["label"], training.get("weight"), minlength=data.competition.n_classes)
    return CheckpointInfo(
        model=config.model,
        model_args=args_for_size(config.model, config.image_size, config.model_args),
        head=config.head,
        n_classes=data.competition.n_classes,
        input_size=(config.image_size, config.image_size),
        mean=statistics[0],
        std=statistics[1],
        recipe=run_name(config),
        **(data.competition.task.header() | ({} if data.slug_known else {"competition": None})),
        fold=fold,
        n_splits=data.folds.n_splits,
        fold_hash=data.folds.hash,
        prior=tuple((counts / counts.sum()).tolist()),
        config=config.model_dump(mode="json"),
    )


def write_fold_oof(
    run_dir: Path, info: CheckpointInfo, data: TrainData, fold: int, *, labels_seen: tuple[str, ...] = ()
) -> Score:
    """Predict the fold's own rows with the kept weights, as the submission would, and write `oof.csv`.

    An image that cannot be read gets the training rows' class shares, as in a submission. `labels_seen` says in the
    header how labels of these rows came into the training.
    """
    rows = data.folds.validation(fold)
    paths = data.paths(rows)
    members, failed = predict_images([run_dir / CHECKPOINT_FILE], paths, views="none", progress=False)
    probabilities = np.asarray(members[0], np.float64)
    unread = np.isin(rows["image_id"].to_numpy(), list(failed))
    probabilities[unread] = info.prior
    return write_oof_answers(run_dir, info, data, probabilities, labels_seen=labels_seen)


def write_oof_answers(
    run_dir: Path,
    info: CheckpointInfo,
    data: TrainData,
    probabilities: np.ndarray,
    *,
    labels_seen: tuple[str, ...] = (),
) -> Score:
    """Write the answers (n, K) to a checkpoint's held-out rows as its fold's `oof.csv`; return their accuracy."""
    assert info.fold is not None
    predictions = fold_predictions(data.folds, info.fold, probabilities, info.name, labels_seen=labels_seen)
    write_predictions(run_dir / OOF_FILE, predictions)
    return accuracy(data.folds.validation(info.fold)["label"].to_numpy(), probabilities)


def finish(
    run_dir: Path, info: CheckpointInfo, score: Score, *, held_out: Sequence[Path], facts: dict[str, Any]
) -> None:
    """Put score and verdict on float16 into the checkpoint's header, and mark the run as finished, with its facts.

    `held_out` are image files of the fold, by which a GPU judges float16; a CPU claims nothing.
    """
    path = run_dir / CHECKPOINT_FILE
    found = {"oof_accuracy": score.accuracy, "oof_rows": score.n, "fp16": half_verdict(path, held_out)}
    scored = info.model_copy(update=found)
    save_checkpoint(path, load_tensors(path), scored)
    write_json(run_dir / DONE_FILE, {"checkpoint_sha256": sha256_file(path), **score_record(score), **facts})
    (run_dir / RESUME_FILE).unlink(missing_ok=True)


def score_fold(result: FoldResult, data: TrainData) -> Score:
    """Return a finished fold's score by the competition's metric; `result.score` is its accuracy."""
    if data.competition.metric == "accuracy":
        return result.score
    predictions = read_predictions(result.oof_file)
    labels = data.folds.frame.set_index("image_id")["label"].loc[predictions.ids]
    return score(labels.to_numpy(), predictions.probabilities, data.competition.metric)


def join_runs(results: list[FoldResult], folds: Folds, out: Path, name: str) -> tuple[Path, Predictions]:
    """Join the folds' predictions to `out/<run name>/oof.csv`."""
    whole = join_folds([read_predictions(result.oof_file) for result in results], folds, name)
    path = out / name / OOF_FILE
    write_predictions(path, whole)
    return path, whole
