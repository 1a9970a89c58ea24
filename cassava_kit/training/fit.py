"""One fold trained: configuration, table and folds -> checkpoint and out-of-fold predictions; `fit_fold`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from cassava_kit.data.progress import current_display
from cassava_kit.evidence.noise.decisions import CLEANED_SEEN, WEIGHTED
from cassava_kit.files import CHECKPOINT_FILE
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import free_stages, image_statistics
from cassava_kit.models.precision import half_is_risky
from cassava_kit.models.weights import load_weights
from cassava_kit.training.averaging import renew_statistics
from cassava_kit.training.callbacks import RESUME_FILE, Bar, KeepBest, Metrics, Resume, StopEarly
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import device_name, full_state, is_main
from cassava_kit.training.diverged import DivergedError, StopDiverged
from cassava_kit.training.loaders import Batches, pixels, training_set, validation_set
from cassava_kit.training.module import Classifier
from cassava_kit.training.recipes import run_name
from cassava_kit.training.rows import TrainData, TrainOptions, clean_rows, usable_rows
from cassava_kit.training.run_dir import (
    FoldResult,
    checkpoint_info,
    find_reusable,
    finish,
    mark_failed,
    prepare_run_dir,
    read_finished,
    run_fingerprint,
    write_fold_oof,
)
from cassava_kit.training.side_by_side import fold_threads
from cassava_kit.training.trainer import make_trainer, quiet_lightning, run_fit


def fit_fold(
    config: RunConfig, data: TrainData, fold: int, out: Path, *, options: TrainOptions | None = None
) -> FoldResult:
    """Train on all folds but one, predict that one, and write `out/<run name>/fold<k>/`.

    A finished run of the same fingerprint is reused; an unfinished one is resumed after its last finished epoch. With
    several processes each calls this; the first one writes.

    Raises:
        UserError: Something cannot be trained, or another run would be replaced (see `TrainOptions.existing`).
        DivergedError: The loss became NaN or infinite; the folder is marked as failed, and holds no checkpoint.
    """
    options = options or TrainOptions()
    if not is_main():
        options = replace(options, tell=lambda _: None)
    check_run(config, data, [fold], options)
    training, validation, broken = usable_rows(data, fold, options.limit)
    training = clean_rows(training, options)
    run_dir = out / run_name(config) / f"fold{fold}"
    wanted = run_fingerprint(config, data, fold, options)
    done = find_reusable(run_dir, wanted, options)
    if done is not None:
        return done
    if broken:
        options.tell(f"unreadable images, which take no part in training: {len(broken)} (first: {broken[0]})")
    started = time.perf_counter()
    if is_main():
        wanted = prepare_run_dir(run_dir, config, wanted, keep=options.existing == "keep")
    with fold_threads(config, options):
        batches = make_batches(config, data, (training, validation), options)
        module = make_classifier(config, data, batches, training=training, options=options)
        info = checkpoint_info(config, data, fold, statistics=image_statistics(module.model), training=training)
        try:
            trainer = run_trainer(module, batches, run_dir, info=info, options=options)
        except DivergedError as error:
            if is_main():
                mark_failed(run_dir, str(error))
            raise
        if is_main():
            seen = (CLEANED_SEEN,) if options.clean is not None else ()
            score = write_fold_oof(run_dir, info, data, fold, labels_seen=seen)
            seconds = round(time.perf_counter() - started, 3)
            place = {"device": device_name(trainer.strategy.root_device), "training_rows": len(training)}
            facts = {"fingerprint": wanted, "seconds": seconds, "given": options.describe(), **place}
            held_out = data.paths(data.folds.validation(fold))
            finish(run_dir, info, score, held_out=held_out, facts=facts)
        trainer.strategy.barrier()
    result = read_finished(run_dir)
    assert result is not None
    return replace(result[0], reused=False)


def make_batches(
    config: RunConfig, data: TrainData, rows: tuple[pd.DataFrame, pd.DataFrame], options: TrainOptions
) -> Batches:
    """Return the loaders of the rows (training, validation), from files or from the pixel cache."""
    every = data.paths(data.folds.frame)
    size = (config.image_size, config.image_size)
    (training, validation), cache = rows, options.cache
    return Batches(
        config,
        training_set(config, data.paths(training), training["label"], pixels(every, config.train_pixels, cache)),
        validation_set(data.paths(validation), validation["label"], pixels(every, size, cache)),
        workers=options.workers,
    )


def make_classifier(
    config: RunConfig, data: TrainData, batches: Batches, *, training: pd.DataFrame, options: TrainOptions
) -> Classifier:
    """Return the module with its initial weights: drawn from the seed, or from the options' file."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    weighted = options.clean is not None and options.clean_action in WEIGHTED
    module = Classifier(
        config,
        data.competition.classes,
        batches.steps_per_epoch(options.devices.processes),
        devices=options.devices,
        row_weights=torch.tensor(training["weight"].to_numpy(), dtype=torch.float32) if weighted else None,
    )
    if options.weights is not None:
        report = load_weights(module.model, options.weights, partial=options.partial_weights)
        for average in (module.ema, module.swa):
            if average is not None:
                average.module.load_state_dict(module.model.state_dict())
        options.tell(f"{options.weights.name}: {report}")
    return module


def run_trainer(
    module: Classifier, batches: Batches, run_dir: Path, *, info: CheckpointInfo, options: TrainOptions
) -> L.Trainer:
    """Run Lightning's Trainer, resumed after the last finished epoch, and keep the weights in the folder."""
    config = module.config
    label = f"{run_name(config)} {run_dir.name}"

    def save() -> None:
        state = full_state(module.inference_model)
        if is_main():
            save_checkpoint(run_dir / CHECKPOINT_FILE, state, info)

    metrics = Metrics(run_dir, module.classes, lambda text: options.tell(f"{label}: {text}"))
    callbacks: list[L.Callback] = [StopDiverged(), metrics]
    if config.select == "best":
        callbacks.append(KeepBest(save))
    if config.early_stopping:
        callbacks.append(StopEarly(config.early_stopping))
    callbacks.append(Resume(run_dir))
    display = current_display()
    if display is not None and is_main():
        callbacks.append(Bar(display, metrics, label=label, column="val_accuracy"))
    resume = run_dir / RESUME_FILE
    with quiet_lightning():
        trainer = make_trainer(config, callbacks, devices=options.devices, logger=make_logger(run_dir, options))
        if trainer.precision != config.precision:
            options.tell(f"{config.precision} needs a GPU: this CPU trains in {trainer.precision}")
        elif config.precision == "16-mixed" and half_is_risky(config.model):
            options.tell(
                f"{config.model} may overflow in half precision: if its loss is not a number, precision=32-true"
            )
        run_fit(trainer, module, datamodule=batches, ckpt_path=str(resume) if resume.is_file() else None)
    if module.swa is not None:
        finish_average(module, batches, trainer.strategy.root_device)
    if config.select == "last":
        save()
    failed = len(batches.training.failed)
    if failed:
        options.tell(f"{label}: {failed} training images could not be decoded and were shown as gray")
    return trainer


def finish_average(module: Classifier, batches: Batches, device: torch.device) -> None:
    """Compute the plain average's (SWA) own BatchNorm statistics, in layers that were trained."""
    assert module.swa is not None
    average, config = module.swa.module.to(device), module.config
    if config.unfreeze_every:
        free_stages(average, (config.epochs - 1) // config.unfreeze_every)
    torch.manual_seed(config.seed)
    renew_statistics(average, batches.train_dataloader(), module.augment_images)


def make_logger(run_dir: Path, options: TrainOptions) -> Any:
    """Return TensorBoard's logger where the options ask for one, else False."""
    if not options.tensorboard:
        return False
    return L.pytorch.loggers.TensorBoardLogger(run_dir, name="tensorboard", version="")
