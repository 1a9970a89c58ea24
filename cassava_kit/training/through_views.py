"""Out-of-fold predictions through the views that an ensemble will see: `predict_through_views`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cassava_kit.data.progress import track
from cassava_kit.evidence.oof import fold_predictions, join_folds
from cassava_kit.evidence.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.files import sha256_bytes, sha256_file
from cassava_kit.inference.predict import predict_images
from cassava_kit.training.rows import TrainData


def predict_through_views(
    name: str, checkpoints: Sequence[Path], data: TrainData, out: Path, *, views: str
) -> Predictions:
    """Return a member's out-of-fold predictions, each fold's rows by its own checkpoint through the views of a preset.

    `checkpoints` are the folds' in their order. Written to `out/<name>-<views>-<hash of the checkpoints>.csv`, and read
    back from there; a checkpoint gives an image that it cannot read its training rows' class shares.
    """
    key = sha256_bytes(" ".join(map(sha256_file, checkpoints)).encode())[:12]
    path = out / f"{name}-{views}-{key}.csv"
    if not path.is_file():
        write_predictions(path, _predict(name, checkpoints, data, views))
    return read_predictions(path)


def _predict(name: str, checkpoints: Sequence[Path], data: TrainData, views: str) -> Predictions:
    """Return the joined predictions, anew."""
    parts = []
    for fold, checkpoint in track(list(enumerate(checkpoints)), f"{name} through views"):
        paths = data.paths(data.folds.validation(fold))
        answers, _ = predict_images([checkpoint], paths, views=views, progress=False)
        parts.append(fold_predictions(data.folds, fold, answers[0].astype(np.float64), f"{name}-fold{fold}"))
    return join_folds(parts, data.folds, name)
