"""What a run starts from: its loss, and its first weights, which must not know the labels that it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cassava_kit.checkpoint import METADATA_KEY, CheckpointInfo, read_info
from cassava_kit.config import RunConfig
from cassava_kit.losses import make_loss
from cassava_kit.models import match_weights, shapes_alone, sized_args
from cassava_kit.training.rows import Session, TrainData, check_session


def check_run(config: RunConfig, data: TrainData, folds: Sequence[int], session: Session) -> None:
    """All that can be refused before the slow work of training these folds, as ValueError or FileNotFoundError."""
    check_session(config, data, session)
    check_start(config, data, folds, session.weights, partial=session.partial_weights)


def check_start(
    config: RunConfig, data: TrainData, folds: Sequence[int], weights: Path | None, *, partial: bool = False
) -> None:
    """ValueError, before any image is read, for a loss or first weights with which these folds cannot be trained."""
    make_loss(config)
    if weights is not None:
        args = sized_args(config.model, config.image_size, config.model_args)
        model, _ = shapes_alone(config.model, config.image_size, model_args=args, head=config.head)
        match_weights(model, weights, partial=partial)
        refuse_seen_labels(weights, data, folds)


def refuse_seen_labels(weights: Path, data: TrainData, folds: Sequence[int]) -> None:
    """ValueError where weights have learnt, or may have learnt, the label of a row that these folds are scored on.

    Weights of the same split that were trained without the fold have not; those of another competition cannot have.
    """
    info = labels_learnt(weights)
    if info is None or info.competition not in (None, data.competition.slug):
        return
    same_split = info.fold_hash == data.folds.hash
    seen = [fold for fold in folds if not (same_split and fold == info.fold)]
    if not seen:
        return
    row = data.folds.validation(seen[0])["image_id"].iloc[0]
    if info.fold is not None and same_split:
        what, remedy = f"it learnt the labels of all folds but {info.fold}", f", --fold {info.fold} alone"
    elif info.fold is None:
        what, remedy = "it learnt the labels of all rows", ""
    else:
        what, remedy = "it learnt labels of another split, and may know this one", ""
    raise ValueError(
        f"{weights} must not have seen the labels of fold {seen[0]} (first row: {row}), which is scored: {what}; give "
        f"weights that learnt none of them (ImageNet's, or pretrain's){remedy}"
    )


def labels_learnt(weights: Path) -> CheckpointInfo | None:
    """The header of the kit's own weights where they learnt labels, themselves or by what they started from."""
    if weights.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    with safe_open(weights, framework="numpy") as file:
        if METADATA_KEY not in (file.metadata() or {}):
            return None
    info = read_info(weights)
    return info if info.n_classes or info.config.get("init") else None
