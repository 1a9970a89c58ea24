"""Train one fold: configuration, table and folds in; checkpoint and out-of-fold predictions out."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from rich.progress import Progress
from torch.utils.data import DataLoader, RandomSampler

from cassava_kit import __version__
from cassava_kit.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.config import RunConfig
from cassava_kit.data.cache import open_cache
from cassava_kit.data.dataset import ImageDataset, collate
from cassava_kit.data.images import load_image, quick_check, read_image
from cassava_kit.data.table import TrainTable
from cassava_kit.data.transforms import train_transform
from cassava_kit.files import read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.folds import Folds
from cassava_kit.inference.predict import predict_images
from cassava_kit.models import WeightsReport, load_weights
from cassava_kit.oof import Score, accuracy, join_folds
from cassava_kit.predictions import Header, Predictions, Source, make_predictions, read_predictions, write_predictions
from cassava_kit.training.callbacks import RESUME_FILE, Bar, KeepBest, Metrics, Resume
from cassava_kit.training.module import Classifier

CHECKPOINT_FILE = "best.safetensors"
OOF_FILE = "oof.csv"
DONE_FILE = "run.json"


@dataclass(frozen=True)
class TrainData:
    """What a run learns from: the competition's table with its image folder, and the split."""

    table: TrainTable
    folds: Folds
    competition: Competition = CASSAVA

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
    """What a run is given beside its configuration: first weights, row limit, loader processes, pixel cache, talk."""

    weights: Path | None = None
    limit: int | None = None
    workers: int = 0
    cache: Path | None = None
    progress: Progress | None = None
    tell: Callable[[str], None] = print


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


def check_table(data: TrainData) -> None:
    """The fold file must be of this very table: same images, same labels."""
    table = data.table.frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    split = data.folds.frame
    unknown = np.setdiff1d(table["image_id"], split["image_id"])
    absent = np.setdiff1d(split["image_id"], table["image_id"])
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


def train_fold(
    config: RunConfig, data: TrainData, fold: int, out: Path, *, session: Session | None = None
) -> FoldResult:
    """Train on all folds but one, predict that one, and write `out/<recipe>/fold<k>/` by contract.

    A run that is already there and finished, with the same configuration, rows, split and first weights, is reused; an
    unfinished one goes on from its last finished epoch.
    """
    session = session or Session()
    check_table(data)
    training, validation, broken = usable_rows(data, fold, session.limit)
    run_dir = out / config.recipe / f"fold{fold}"
    print_of_run = fingerprint(config, data, fold, session)
    done = _finished(run_dir, print_of_run)
    if done is not None:
        return done
    if broken:
        session.tell(f"{len(broken)} unreadable images take no part in training (first: {broken[0]})")
    started = time.perf_counter()
    prepare_run_dir(run_dir, config, print_of_run)
    model = fit(config, data, run_dir, rows=(training, validation), session=session)
    info = checkpoint_info(config, data, fold, model=model, training=training)
    if config.select == "last":
        save_checkpoint(run_dir / CHECKPOINT_FILE, model.inference_model.state_dict(), info)
    score = write_oof(run_dir, info, data, fold)
    seconds = time.perf_counter() - started
    finish(run_dir, info, score, print_of_run=print_of_run, seconds=seconds)
    return FoldResult(run_dir, score, seconds, reused=False)


def usable_rows(data: TrainData, fold: int, limit: int | None) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Training rows (without unreadable images, at most `limit`), validation rows (all), and the unreadable images."""
    training, validation = data.folds.training(fold), data.folds.validation(fold)
    bad = np.array([quick_check(path) is not None for path in data.paths(training)])
    broken = training["image_id"][bad].tolist()
    training = training[~bad].reset_index(drop=True)
    if training.empty:
        raise ValueError(f"no readable training image in {data.table.image_dir}; check the download")
    if limit is not None and limit < len(training):
        training = training.sample(limit, random_state=0).sort_index().reset_index(drop=True)
    return training, validation, broken


def fingerprint(config: RunConfig, data: TrainData, fold: int, session: Session) -> str:
    """A hash of all that decides a run's outcome, the images' contents included."""
    parts = {
        "config": config.model_dump(mode="json"),
        "folds": data.folds.hash,
        "fold": fold,
        "images": data.images_hash,
        "weights": sha256_file(session.weights) if session.weights else None,
        "limit": session.limit,
        "kit": __version__,
    }
    return sha256_bytes(json.dumps(parts, sort_keys=True).encode())


def _content_hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return ""


def _finished(run_dir: Path, print_of_run: str) -> FoldResult | None:
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
    write_json(run_dir / "config.json", config.model_dump(mode="json"))
    write_json(state, {"fingerprint": print_of_run})


def fit(
    config: RunConfig,
    data: TrainData,
    run_dir: Path,
    *,
    rows: tuple[pd.DataFrame, pd.DataFrame],
    session: Session,
) -> Classifier:
    """Run Lightning's Trainer over the rows (training, validation) and return the trained module."""
    quiet_lightning()
    training, validation = rows
    L.seed_everything(config.seed, workers=True, verbose=False)
    train_loader = loader(config, data, training, session=session, train=True)
    valid_loader = loader(config, data, validation, session=session, train=False)
    module = Classifier(config, data.competition.n_classes, steps_per_epoch(config, len(train_loader)))
    if session.weights is not None:
        report: WeightsReport = load_weights(module.model, session.weights)
        if module.ema is not None:
            module.ema.set(module.model)
        session.tell(f"{session.weights.name}: {report}")
    fold_label = f"{config.recipe} {run_dir.name}"
    callbacks: list[L.Callback] = [
        Metrics(run_dir, data.competition.classes, lambda text: session.tell(f"{fold_label}: {text}"))
    ]
    if config.select == "best":
        info = checkpoint_info(config, data, None, model=module, training=training)
        callbacks.append(
            KeepBest(lambda: save_checkpoint(run_dir / CHECKPOINT_FILE, module.inference_model.state_dict(), info))
        )
    if config.early_stopping:
        callbacks.append(
            L.pytorch.callbacks.EarlyStopping("val_loss", patience=config.early_stopping, check_finite=True)
        )
    callbacks.append(Resume(run_dir))
    if session.progress is not None:
        callbacks.append(Bar(session.progress, fold_label))
    trainer = make_trainer(config, callbacks)
    resume = run_dir / RESUME_FILE
    trainer.fit(module, train_loader, valid_loader, ckpt_path=str(resume) if resume.is_file() else None)
    failed = len(train_loader.dataset.failed)
    if failed:
        session.tell(f"{fold_label}: {failed} training images could not be decoded and were shown as gray")
    return module


def make_trainer(config: RunConfig, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer with the kit's callbacks in place of its own files and bars."""
    return L.Trainer(
        max_epochs=config.epochs,
        accelerator="auto",
        devices=1,
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def steps_per_epoch(config: RunConfig, batches: int) -> int:
    """Optimiser steps in an epoch of so many batches; Lightning steps after the last one whatever is left."""
    return -(-batches // config.accumulate)


def loader(config: RunConfig, data: TrainData, rows: pd.DataFrame, *, session: Session, train: bool) -> DataLoader:
    """Batches of (uint8 images, labels, indices): shuffled and augmented to train, plain and in order to validate."""
    size = (config.image_size, config.image_size)
    load = pixels(data, config.train_pixels if train else size, session.cache)
    transform = train_transform(config.augmentation, size) if train else None
    dataset = ImageDataset(data.paths(rows), rows["label"].to_numpy(), load, transform=transform, seed=config.seed)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=EpochSampler(dataset, config.seed) if train else None,
        drop_last=train and len(rows) > config.batch_size,
        num_workers=session.workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )


def fill_cache(config: RunConfig, data: TrainData, cache: Path) -> None:
    """Decode all the table's images into the cache, with a progress bar, unless they are there."""
    if config.train_pixels is None:
        raise ValueError(
            "a pixel cache holds all images at one size: say which, e.g. with --set train_pixels=[384,512]; "
            f"recipe {config.recipe} trains on images as they are"
        )
    for size in (config.train_pixels, (config.image_size, config.image_size)):
        open_cache(cache, data.paths(data.folds.frame), size)


def pixels(data: TrainData, size: tuple[int, int] | None, cache: Path | None) -> Callable[[Path], np.ndarray]:
    """What gives an image's pixels at `size` (None: its own) by path: from the cache's folder if there is one.

    One cache of all the table's images serves every fold; the pixels are the same with and without it.
    """
    if size is None:
        return read_image
    if cache is None:
        return partial(load_image, size=size)
    return open_cache(cache, data.paths(data.folds.frame), size, progress=False).load


class EpochSampler(RandomSampler):
    """A shuffle that depends on the seed and the epoch alone, so that a resumed run sees the same batches."""

    def __init__(self, dataset: ImageDataset, seed: int) -> None:
        super().__init__(dataset, generator=torch.Generator())
        self.dataset = dataset
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; the data set's augmentation follows."""
        self.generator.manual_seed(self.seed * 1_000_003 + epoch)
        self.dataset.set_epoch(epoch)


def checkpoint_info(
    config: RunConfig, data: TrainData, fold: int | None, *, model: Classifier, training: pd.DataFrame
) -> CheckpointInfo:
    """The header of a checkpoint of this run; the score is added once it is known."""
    counts = np.bincount(training["label"], minlength=data.competition.n_classes)
    return CheckpointInfo(
        model=config.model,
        model_args=config.model_args,
        head=config.head,
        n_classes=data.competition.n_classes,
        input_size=(config.image_size, config.image_size),
        mean=model.mean,
        std=model.std,
        recipe=config.recipe,
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
    source = Source(name=info.name, fold=fold, fold_hash=data.folds.hash)
    header = Header(name=info.name, kind="oof", fold_hash=data.folds.hash, sources=(source,))
    folds_column = np.full(len(rows), fold)
    write_predictions(
        run_dir / OOF_FILE,
        make_predictions(rows["image_id"].to_numpy(), probabilities, header=header, fold=folds_column),
    )
    return accuracy(rows["label"].to_numpy(), probabilities)


def finish(run_dir: Path, info: CheckpointInfo, score: Score, *, print_of_run: str, seconds: float) -> None:
    """Put the score into the checkpoint's header and mark the run as finished."""
    from cassava_kit.checkpoint import load_tensors

    path = run_dir / CHECKPOINT_FILE
    scored = info.model_copy(update={"oof_accuracy": score.accuracy, "oof_rows": score.n})
    save_checkpoint(path, load_tensors(path), scored)
    result: dict[str, Any] = {
        "fingerprint": print_of_run,
        "checkpoint_sha256": sha256_file(path),
        "oof_accuracy": score.accuracy,
        "oof_standard_error": score.standard_error,
        "oof_rows": score.n,
        "labels": "given",
        "seconds": round(seconds, 3),
    }
    write_json(run_dir / DONE_FILE, result)
    (run_dir / RESUME_FILE).unlink(missing_ok=True)


def join_runs(results: list[FoldResult], folds: Folds, out: Path, recipe: str) -> tuple[Path, Predictions]:
    """Join the folds' predictions to `out/<recipe>/oof.csv`."""
    whole = join_folds([read_predictions(result.oof) for result in results], folds, recipe)
    path = out / recipe / OOF_FILE
    write_predictions(path, whole)
    return path, whole


def quiet_lightning() -> None:
    """Keep Lightning's device lines and loader advice off the terminal; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
