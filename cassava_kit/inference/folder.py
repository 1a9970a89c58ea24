"""Checkpoints and a folder of images: `predict_folder` gives a table, `write_folder_predictions` the verb's file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import Task, common_task, current, read_task
from cassava_kit.data.folds import Folds, read_folds
from cassava_kit.data.table import list_images
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import format_score, score
from cassava_kit.evidence.oof import refuse_in_sample, task_fields
from cassava_kit.evidence.predictions import Header, Predictions, Source, make_predictions, write_predictions
from cassava_kit.files import check_apart, header_path
from cassava_kit.inference.options import check_device
from cassava_kit.inference.predict import predict_images
from cassava_kit.models.checkpoint import CheckpointInfo, fold_checkpoints, read_info


def predict_folder(
    checkpoints: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    views: str = "none",
    image_ids: Sequence[str] | None = None,
    device: str = "auto",
) -> pd.DataFrame:
    """Return the mean class probabilities of checkpoints for the images of a folder.

    Args:
        checkpoints: one file that the kit wrote, several, or a folder of runs (`runs/RECIPE`) or of such files.
        folder: where the image files are.
        views: test-time views, as `make_views` names them.
        image_ids: file names in the folder, in the order wanted; None takes all images, sorted.
        device: `auto`, `cpu`, `cuda` or `cuda:0`.

    Returns:
        One row an image: `image_id`, `p0` to `p{K-1}`; rows sum to 1. An image that cannot be read has the mean class
        shares of the training labels, and its name is in `.attrs["unreadable"]`.

    Raises:
        UserError: the checkpoints are of different competitions or classes, or none is given, an image is not in the
            folder, or there is none, or there is no such device.
        FileNotFoundError: a checkpoint or the folder is not there.

    Example:
        >>> table = predict_folder("runs/small_resnet", "test_images", views="flips")  # doctest: +SKIP
        >>> table.columns.tolist()  # doctest: +SKIP
        ['image_id', 'p0', 'p1', 'p2', 'p3', 'p4']
    """
    check_device(device)
    files = find_checkpoints(checkpoints)
    infos, _ = _read_headers(files)
    folder, names = Path(folder), _image_names(folder, image_ids)
    per_member, failed = predict_images(files, [folder / name for name in names], views=views, device=device)
    probabilities = np.asarray(per_member, np.float64).mean(axis=0)
    columns = {f"p{k}": probabilities[:, k] for k in range(infos[0].n_classes)}
    table = pd.DataFrame({"image_id": pd.Series(names, dtype=str), **columns})
    table.attrs["unreadable"] = sorted(failed)
    return table


def write_folder_predictions(
    checkpoints: Sequence[Path],
    folder: Path,
    out: Path,
    *,
    views: str = "none",
    folds: Path | None = None,
    test_part: bool = False,
) -> str:
    """Write `predict_folder`'s table as a prediction file; returns lines for the user.

    With a fold file the result is scored on its labels. `test_part` predicts and scores the test part of its split
    alone.

    Raises:
        UserError: a checkpoint was trained on an image that is to be scored (before any image is read), or `test_part`
            is asked for without a fold file that has one.
    """
    check_apart([out, header_path(out)], [*checkpoints, *([] if folds is None else [folds])])
    infos, task = _read_headers(checkpoints)
    split = read_folds(folds) if folds is not None else None
    names = _image_names(folder, _test_names(split, folds) if test_part else None)
    sources = tuple(Source(name=info.name, fold=info.fold, fold_hash=info.fold_hash) for info in infos)
    if split is not None and split.task is not None:
        task = common_task({str(folds): split.task, "the checkpoints": task})
    fields = task_fields(task)
    header = Header(name="+".join(info.name for info in infos), kind="images", sources=sources, **fields)
    if split is not None:
        even = np.full((len(names), infos[0].n_classes), 1 / infos[0].n_classes)
        refuse_in_sample(make_predictions(np.array(names), even, header=header), split, str(folder))
    table = predict_folder(checkpoints, folder, views=views, image_ids=names)
    result = make_predictions(table["image_id"].to_numpy(), table.drop(columns="image_id").to_numpy(), header=header)
    write_predictions(out, result)
    lines = [f"{len(names)} images, {len(infos)} checkpoints, views {views}: {out}"]
    if failed := table.attrs["unreadable"]:
        lines.append(f"{len(failed)} unreadable images got the training class shares (first: {failed[0]})")
    if split is not None:
        lines.append(describe_score(result, split))
    return "\n".join(lines)


def find_checkpoints(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return checkpoint files from files and folders: of runs (`fold*/`), or of `.safetensors` files.

    Raises:
        FileNotFoundError: a folder holds none.
    """
    found: list[Path] = []
    if not isinstance(given, str | Path | Sequence):
        raise UserError(f"checkpoints must be files or folders, got {given!r}")
    for path in map(Path, [given] if isinstance(given, str | Path) else given):
        beside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        found += beside or fold_checkpoints(path)
    return found


def describe_score(predictions: Predictions, split: Folds) -> str:
    """Return in words the metric of the predicted images that have a label in the split."""
    labels = split.frame.set_index("image_id")["label"].reindex(predictions.ids)
    known = labels.notna().to_numpy()
    if not known.any():
        return "none of these images is in the fold file: nothing to score"
    metric = split.task.metric if split.task is not None else current().metric
    found = score(labels[known].to_numpy(int), predictions.probabilities[known], metric)
    return f"{format_score(found)} on {found.n} given labels, none of them seen in training"


def _read_headers(files: Sequence[Path]) -> tuple[list[CheckpointInfo], Task | None]:
    """Return headers and the one task that they name, if any; UserError for checkpoints that do not go together."""
    if not files:
        raise UserError("expected one checkpoint or more, got none; give a file, or a folder of runs")
    infos = [read_info(path) for path in files]
    widths = sorted({info.n_classes for info in infos})
    if len(widths) != 1:
        raise UserError(f"checkpoints must predict the same classes, got {widths}; give those of one competition")
    named = {str(path): read_task(info.model_dump(), str(path)) for path, info in zip(files, infos, strict=True)}
    task = common_task(named) if any(named.values()) else None
    for path, info in zip(files, infos, strict=True):
        if info.classes and (first := next(one.classes for one in infos if one.classes)) != info.classes:
            raise UserError(
                f"checkpoints must predict the same classes, expected {', '.join(first)}, "
                f"got {', '.join(info.classes)} of {path}; give those of one competition"
            )
    return infos, task


def _image_names(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    """The images of a folder, or the wanted ones; UserError for one that is not there, or where there is none."""
    names = list_images(folder)
    if wanted is not None:
        missing = sorted(set(map(str, wanted)) - set(names))
        if missing:
            raise UserError(f"{folder} lacks {len(missing)} of the images (first: {missing[0]}); give their file names")
        names = [str(name) for name in wanted]
    if not names:
        raise UserError(f"no image in {folder}")
    return names


def _test_names(split: Folds | None, folds: Path | None) -> list[str]:
    if split is None:
        raise UserError("--test-part needs the fold file that has one; add --folds FILE")
    if split.test.empty:
        raise UserError(f"{folds} has no test part; make one with folds --holdout 60-20-20")
    return [str(name) for name in split.test["image_id"]]
