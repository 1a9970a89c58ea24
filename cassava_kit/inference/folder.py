"""The verb predict: checkpoints and a folder of images in, one prediction file out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cassava_kit.competition import current
from cassava_kit.data.folds import Folds, read_folds
from cassava_kit.data.table import list_images
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import measure, told
from cassava_kit.evidence.oof import refuse_in_sample
from cassava_kit.evidence.predictions import Header, Predictions, Source, make_predictions, write_predictions
from cassava_kit.files import header_path
from cassava_kit.inference.predict import predict_images
from cassava_kit.models.checkpoint import read_info


def predict_folder(
    members: Sequence[Path], images: Path, *, views: str = "none", folds: Path | None = None, out: Path
) -> str:
    """Write the mean probabilities of `members` for every image in a folder; returns what to tell the user.

    With a fold file the result is scored on its labels, which is refused (UserError, before any image is read) where a
    member was trained on one of the images. An image that cannot be read gets the members' mean training class shares.
    """
    header_path(out)
    infos = [read_info(path) for path in members]
    widths = {info.n_classes for info in infos}
    if len(widths) != 1:
        raise UserError(f"members must predict the same classes, got {sorted(widths)} of them")
    split = read_folds(folds) if folds is not None else None
    names = list_images(images)
    if not names:
        raise UserError(f"no image in {images}")
    sources = tuple(Source(name=info.name, fold=info.fold, fold_hash=info.fold_hash) for info in infos)
    header = Header(name="+".join(info.name for info in infos), kind="images", sources=sources)
    n_classes = widths.pop()
    blank = make_predictions(np.array(names), np.full((len(names), n_classes), 1 / n_classes), header=header)
    if split is not None:
        refuse_in_sample(blank, split, str(images))
    per_member, failed = predict_images(members, [images / name for name in names], views=views)
    probabilities = np.asarray(per_member, np.float64).mean(axis=0)
    unread = np.isin(names, list(failed))
    probabilities[unread] = np.mean([info.prior or [1 / n_classes] * n_classes for info in infos], axis=0)
    result = make_predictions(np.array(names), probabilities, header=header)
    write_predictions(out, result)
    lines = [f"{len(names)} images, {len(infos)} members, views {views}: {out}"]
    if failed:
        lines.append(f"{len(failed)} unreadable images got the training class shares (first: {sorted(failed)[0]})")
    if split is not None:
        lines.append(scored(result, split))
    return "\n".join(lines)


def scored(predictions: Predictions, split: Folds) -> str:
    """The competition's metric on the labelled images among the predicted ones, in words."""
    labels = split.frame.set_index("image_id")["label"].reindex(predictions.ids)
    known = labels.notna().to_numpy()
    if not known.any():
        return "none of these images is in the fold file: nothing to score"
    score = measure(current().metric, labels[known].to_numpy(int), predictions.probabilities[known])
    return f"{told(score)} on {score.n} given labels, none of them seen in training"
