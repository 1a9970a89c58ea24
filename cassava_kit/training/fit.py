"""Train one fold: configuration, table and folds in; checkpoint and out-of-fold predictions out."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from cassava_kit.evidence.noise.decisions import WEIGHTED
from cassava_kit.files import CHECKPOINT_FILE
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import free_stages, image_statistics
from cassava_kit.models.weights import load_weights
from cassava_kit.training.averaging import renew_statistics
from cassava_kit.training.callbacks import RESUME_FILE, Bar, KeepBest, Metrics, Resume, StopEarly
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import is_main, make_strategy, whole_state
from cassava_kit.training.diverged import DivergedError, StopDiverged
from cassava_kit.training.loaders import Batches, pixels, training_set, validation_set
from cassava_kit.training.module import Classifier
from cassava_kit.training.recipes import run_name
from cassava_kit.training.rows import Session, TrainData, cleaned_rows, usable_rows
from cassava_kit.training.run_dir import (
    FoldResult,
    checkpoint_info,
    fingerprint,
    finish,
    finished,
    mark_failed,
    prepare_run_dir,
    reusable,
    write_oof,
)


def train_fold(
    config: RunConfig, data: TrainData, fold: int, out: Path, *, session: Session | None = None
) -> FoldResult:
    """Train on all folds but one, predict that one, and write `out/<run name>/fold<k>/` by contract.

    A run that is already there and finished, with the same configuration, rows, split and first weights, is reused; an
    unfinished one goes on from its last finished epoch. With several processes each calls this; the first one writes.

    Raises:
        UserError: Something cannot be trained, or a finished run would be replaced (see `Session.existing`).
        DivergedError: The loss became NaN or infinite; the folder is marked as failed, and holds no checkpoint.
    """
    session = session or Session()
    if not is_main():
        session = replace(session, progress=None, tell=lambda _: None)
    check_run(config, data, [fold], session)
    training, validation, broken = usable_rows(data, fold, session.limit)
    training = cleaned_rows(training, session)
    run_dir = out / run_name(config) / f"fold{fold}"
    wanted = fingerprint(config, data, fold, session)
    done = reusable(run_dir, wanted, session)
    if done is not None:
        return done
    if broken:
        session.tell(f"{len(broken)} unreadable images take no part in training (first: {broken[0]})")
    started = time.perf_counter()
    if is_main():
        prepare_run_dir(run_dir, config, wanted)
    batches = make_batches(config, data, (training, validation), session)
    module = make_module(config, data, batches, training=training, session=session)
    info = checkpoint_info(config, data, fold, statistics=image_statistics(module.model), training=training)
    try:
        trainer = fit(module, batches, run_dir, info=info, session=session)
    except DivergedError as error:
        if is_main():
            mark_failed(run_dir, str(error))
        raise
    if is_main():
        score = write_oof(run_dir, info, data, fold)
        seconds = round(time.perf_counter() - started, 3)
        facts = {"fingerprint": wanted, "seconds": seconds, "given": session.given()}
        finish(run_dir, info, score, facts=facts)
    trainer.strategy.barrier()
    result = finished(run_dir)
    assert result is not None
    return replace(result[0], reused=False)


def make_batches(
    config: RunConfig, data: TrainData, rows: tuple[pd.DataFrame, pd.DataFrame], session: Session
) -> Batches:
    """The loaders' rows (training, validation), from files or from the pixel cache."""
    every = data.paths(data.folds.frame)
    size = (config.image_size, config.image_size)
    (training, validation), cache = rows, session.cache
    return Batches(
        config,
        training_set(config, data.paths(training), training["label"], pixels(every, config.train_pixels, cache)),
        validation_set(data.paths(validation), validation["label"], pixels(every, size, cache)),
        workers=session.workers,
    )


def make_module(
    config: RunConfig, data: TrainData, batches: Batches, *, training: pd.DataFrame, session: Session
) -> Classifier:
    """The module with its first weights: drawn from the seed, or from the session's file."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    weighted = session.clean is not None and session.clean_action in WEIGHTED
    module = Classifier(
        config,
        data.competition.classes,
        batches.steps_per_epoch(session.devices.processes),
        devices=session.devices,
        row_weights=torch.tensor(training["weight"].to_numpy(), dtype=torch.float32) if weighted else None,
    )
    if session.weights is not None:
        report = load_weights(module.model, session.weights, partial=session.partial_weights)
        for average in (module.ema, module.swa):
            if average is not None:
                average.module.load_state_dict(module.model.state_dict())
        session.tell(f"{session.weights.name}: {report}")
    return module


def fit(module: Classifier, batches: Batches, run_dir: Path, *, info: CheckpointInfo, session: Session) -> L.Trainer:
    """Run Lightning's Trainer, from the last finished epoch if there is one, and keep the weights in the folder."""
    config = module.config
    label = f"{run_name(config)} {run_dir.name}"

    def save() -> None:
        state = whole_state(module.inference_model)
        if is_main():
            save_checkpoint(run_dir / CHECKPOINT_FILE, state, info)

    metrics = Metrics(run_dir, module.classes, lambda text: session.tell(f"{label}: {text}"))
    callbacks: list[L.Callback] = [StopDiverged(), metrics]
    if config.select == "best":
        callbacks.append(KeepBest(save))
    if config.early_stopping:
        callbacks.append(StopEarly(config.early_stopping))
    callbacks.append(Resume(run_dir))
    if session.progress is not None:
        callbacks.append(Bar(session.progress, label))
    trainer = make_trainer(config, callbacks, run_dir, session)
    resume = run_dir / RESUME_FILE
    trainer.fit(module, datamodule=batches, ckpt_path=str(resume) if resume.is_file() else None)
    if module.swa is not None:
        finish_average(module, batches, trainer.strategy.root_device)
    if config.select == "last":
        save()
    failed = len(batches.training.failed)
    if failed:
        session.tell(f"{label}: {failed} training images could not be decoded and were shown as gray")
    return trainer


def finish_average(module: Classifier, batches: Batches, device: torch.device) -> None:
    """Give the plain average (SWA) BatchNorm statistics of its own, where it learnt; the same after a restart."""
    assert module.swa is not None
    average, config = module.swa.module.to(device), module.config
    if config.unfreeze_every:
        free_stages(average, (config.epochs - 1) // config.unfreeze_every)
    torch.manual_seed(config.seed)
    renew_statistics(average, batches.train_dataloader(), module.training_pictures)


def make_trainer(config: RunConfig, callbacks: list[L.Callback], run_dir: Path, session: Session) -> L.Trainer:
    """Lightning's Trainer with the kit's callbacks in place of its own files and bars."""
    quiet_lightning()
    devices = session.devices
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    precision = config.precision
    if accelerator == "cpu" and precision == "16-mixed":
        precision = "32-true"
        session.tell("16-mixed needs a GPU: this CPU trains in 32-true")
    logger: Any = False
    if session.tensorboard:
        logger = L.pytorch.loggers.TensorBoardLogger(run_dir, name="tensorboard", version="")
    return L.Trainer(
        max_epochs=config.epochs,
        accelerator=accelerator,
        devices=devices.devices,
        num_nodes=devices.num_nodes,
        strategy=make_strategy(devices),
        # The samplers of `loaders` deal the rows out themselves, each once.
        use_distributed_sampler=False,
        # A CPU cannot; models with BatchNorm keep the statistics of each process's own batches there.
        sync_batchnorm=accelerator == "gpu" and devices.processes > 1,
        precision=precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def quiet_lightning() -> None:
    """Keep Lightning's device lines and loader advice off the terminal; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
