"""Refuse what cannot be trained, before slow work; start at `check_run`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pandas as pd

from cassava_kit.competition import VARIABLE, class_name
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.decisions import ACTIONS, WEIGHTED, check_noise_report, read_noise_report
from cassava_kit.models.checkpoint import labels_learnt, may_share_labels
from cassava_kit.models.network import args_for_size, meta_model, stages
from cassava_kit.models.weights import find_weights_file, match_weights
from cassava_kit.training.config import NetworkSettings, RunConfig
from cassava_kit.training.cost import count_operations
from cassava_kit.training.devices import check_devices
from cassava_kit.training.losses import make_loss
from cassava_kit.training.rows import TrainData, TrainOptions


def check_run(config: RunConfig, data: TrainData, folds: Sequence[int], options: TrainOptions) -> None:
    """Refuse a run of these folds that would fail, or prove nothing, before any image is read.

    Raises:
        UserError: The fold file is of another table, or the model, loss, devices, weights, noise report or log do not
            fit.
        FileNotFoundError: A file of the options is missing.
    """
    check_options(config, data, options)
    make_loss(config)
    if options.weights is not None:
        check_weights(config, data, folds, options.weights, partial=options.partial_weights)


def check_weights(
    config: NetworkSettings, data: TrainData, folds: Sequence[int], weights: Path, *, partial: bool = False
) -> None:
    """Refuse initial weights that do not fit the model, or that know labels on which these folds are scored.

    Raises:
        UserError: They do not fit, or may know a label.
    """
    check_fit(config, weights, partial=partial)
    refuse_seen_labels(weights, data, folds)


def check_fit(config: NetworkSettings, weights: Path, *, partial: bool = False) -> None:
    """Refuse a file of initial weights that is damaged or does not fit the model; UserError says why."""
    args = args_for_size(config.model, config.image_size, config.model_args)
    model, _ = meta_model(config.model, config.image_size, model_args=args, head=config.head)
    match_weights(model, weights, partial=partial)


def refuse_seen_labels(weights: Path, data: TrainData, folds: Sequence[int]) -> None:
    """Refuse weights that were trained, or may have been, on the label of a row on which these folds are scored.

    Weights of the same split that were trained without the fold are taken, and weights of another competition; where
    it is not known, weights of other classes.

    Raises:
        UserError: Names the fold, its first row, and what the weights were trained on.
    """
    info = labels_learnt(weights)
    if info is None:
        return
    same_split = info.fold_hash == data.folds.hash
    if not (same_split or may_share_labels(info, data.competition, slug_known=data.slug_known)):
        return
    seen = [fold for fold in folds if not (same_split and fold == info.fold)]
    if not seen:
        return
    row = data.folds.validation(seen[0])["image_id"].iloc[0]
    if info.fold is not None and same_split:
        what, remedy = f"it was trained on the labels of all folds but {info.fold}", f", --fold {info.fold} alone"
    elif info.fold is None:
        what, remedy = "it was trained on the labels of all rows", ""
    else:
        what, remedy = "it was trained on labels of another split, this one perhaps among them", ""
    raise UserError(
        f"{weights} must not have seen the labels of fold {seen[0]} (first row: {row}), which is scored: {what}; give "
        f"weights trained on none of them (ImageNet's, or pretrain's){remedy}"
    )


# Characters: a socket in it may have a path of 107, and a longer one is waited for without end.
LONGEST_TEMPORARY = 70


def check_table(data: TrainData) -> None:
    """Refuse a fold file of another competition or table.

    Raises:
        UserError: Classes, images or labels differ; the message names the first row.
    """
    task, competition = data.folds.task, data.competition
    if task is not None and (task.competition, task.classes) != (competition.slug, competition.classes):
        raise UserError(
            f"the fold file is of {task.competition} ({len(task.classes)} classes), the competition at hand is "
            f"{competition.slug} ({competition.n_classes} classes); give its own fold file, or name the other "
            f"competition's file by ${VARIABLE}"
        )
    table = data.table.frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    split = data.folds.frame
    unknown = pd.Index(table["image_id"]).difference(split["image_id"])
    absent = pd.Index(split["image_id"]).difference(table["image_id"])
    if len(unknown) or len(absent):
        raise UserError(
            f"the fold file must have the table's images: {len(unknown)} images of the table are not in it"
            f"{f' (first: {unknown[0]})' if len(unknown) else ''}, {len(absent)} of its images are not in the table"
            f"{f' (first: {absent[0]})' if len(absent) else ''}; make it again with: python -m cassava_kit folds"
        )
    differs = table["label"].to_numpy() != split["label"].to_numpy()
    if differs.any():
        row = int(np.argmax(differs))
        says, given = (class_name(frame["label"].iloc[row], data.competition.task) for frame in (split, table))
        raise UserError(
            f"the fold file says {says} for {split['image_id'].iloc[row]}, the table says {given}; make the fold file "
            "again with: python -m cassava_kit folds"
        )


def check_options(config: RunConfig, data: TrainData, options: TrainOptions) -> None:
    """Refuse a table, model size, device, file or log that cannot be used (see `check_run`)."""
    check_table(data)
    count_operations(config.model, config.image_size, config.model_args, config.head)  # refuses the image size
    check_stages(config)
    check_devices(options.devices, config)
    if options.weights is not None:
        find_weights_file(options.weights)
    if options.clean_action not in ACTIONS:
        raise UserError(f"--clean-action must be one of {', '.join(ACTIONS)}, got {options.clean_action!r}")
    if options.clean is not None:
        check_noise_report(read_noise_report(options.clean), data.folds.frame, data.competition.n_classes)
        check_row_weights(config, options.clean_action)
    if options.workers and len(gettempdir()) > LONGEST_TEMPORARY:
        raise UserError(
            f"--workers needs a temporary folder of at most {LONGEST_TEMPORARY} characters, for the sockets of its "
            f"processes, got {gettempdir()}; set TMPDIR=/tmp"
        )
    if options.tensorboard:
        from importlib.util import find_spec

        if find_spec("tensorboard") is None:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard")


def check_stages(config: RunConfig) -> None:
    """Refuse `keep_stages` that would train every stage, and settings by stage where timm names none.

    Raises:
        UserError: The message has the number of stages.
    """
    if config.keep_stages is None and config.layer_decay == 1 and not config.unfreeze_every:
        return
    args = args_for_size(config.model, config.image_size, config.model_args)
    n = len(stages(meta_model(config.model, config.image_size, model_args=args)[0]))
    if config.keep_stages is not None and config.keep_stages >= n:
        raise UserError(
            f"keep_stages must be less than the {n} stages of {config.model}, got {config.keep_stages}; leave it out "
            "to train them all"
        )


def check_row_weights(config: RunConfig, action: str) -> None:
    """Refuse a noise report that gives rows weights where the recipe mixes rows."""
    if action in WEIGHTED and (config.mixup or config.cutmix):
        raise UserError(
            f"weights of rows do not go with mixup or cutmix, got --clean-action {action}; use drop or flip, or "
            "--set mixup=0 --set cutmix=0"
        )
