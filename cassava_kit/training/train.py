"""Training from a DataFrame: `train_fold`, a part of the public API."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cassava_kit.competition import Competition
from cassava_kit.data.folds import Folds
from cassava_kit.data.listing import IMAGE_SUFFIXES
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.files import path_inside
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.recipes import recipe as named_recipe
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.run_dir import FoldResult

# Stands where a slug must; checkpoints do not carry it, because a DataFrame names no competition.
TABLE_SLUG = "table"


def train_fold(
    table: pd.DataFrame,
    fold: int,
    recipe: str | RunConfig = "small_resnet",
    *,
    image_dir: str | Path,
    out: str | Path = "runs",
    weights: str | Path | None = None,
    settings: Sequence[str] | Mapping[str, Any] | None = None,
    id_column: str = "image_id",
    label_column: str = "label",
) -> FoldResult:
    """Train a network on all folds of a table but one, and predict that one.

    `table` has one row an image: its file's name in `image_dir` (with or without suffix), its label (a number or text)
    and its `fold`, as `make_folds` returns it; rows of fold -1 are always trained on, rows of fold -2 never read.
    Class k is the k-th label in sorted order. `recipe` is a recipe's name, `timm:NAME` for any model of timm, or a
    configuration; `settings` changes it: "name=value" or a dict. `weights` are the initial weights: a .safetensors or
    .pth file of the same timm model. The folder is `out/<recipe>--<changes>/fold<k>`; a finished run in it is reused.

    Returns:
        The run: `.checkpoint` and `.oof_file` (paths), `.oof` (DataFrame `image_id`, `p0` .. `p<K-1>`, `fold`, a row an
        image of the fold), `.score` (accuracy on these rows).

    Raises:
        UserError: A column or an image is missing, the fold is not in the table, a setting or weights do not fit, or a
            finished run that differs is in the folder.

    Example::

        folds = make_folds(pd.read_csv("train.csv"), n_splits=5)
        result = train_fold(folds, 0, "timm:resnet18", image_dir="train_images", settings={"epochs": 3})
        print(result.score)
    """
    config = recipe if isinstance(recipe, RunConfig) else named_recipe(recipe)
    if isinstance(settings, Mapping):
        settings = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    config = config.with_settings(settings or [])
    data = table_data(table, Path(image_dir), id_column=id_column, label_column=label_column)
    options = TrainOptions(weights=None if weights is None else Path(weights))
    return fit_fold(config, data, fold, Path(out), options=options)


def table_data(table: pd.DataFrame, image_dir: Path, *, id_column: str, label_column: str) -> TrainData:
    """Return a table with folds as what a run learns from; labels become 0..K-1 in their sorted order.

    Raises:
        UserError: A column, a value or an image is missing, or there are fewer than two classes.
    """
    wanted = (id_column, label_column, "fold")
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise UserError(
            f"expected the columns {', '.join(wanted)}, got {', '.join(map(str, table.columns))}; {missing[0]!r} is "
            "missing: name it by id_column= or label_column=, or make the folds with make_folds"
        )
    rows = table[list(wanted)].reset_index(drop=True)
    for column in wanted:
        if rows[column].isna().any():
            raise UserError(f"{column} has no value in row {int(rows[column].isna().to_numpy().argmax())}")
    classes = sorted(rows[label_column].unique())
    if len(classes) < 2:
        raise UserError(f"expected two or more classes in {label_column}, got {', '.join(map(str, classes))}")
    frame = pd.DataFrame(
        {
            "image_id": image_names(rows[id_column].astype(str), image_dir),
            "label": pd.Categorical(rows[label_column], categories=classes).codes.astype(int),
            "fold": rows["fold"].astype(int),
        }
    )
    if frame["image_id"].duplicated().any():
        raise UserError(f"{id_column} names {frame['image_id'][frame['image_id'].duplicated()].iloc[0]} more than once")
    frame = frame.sort_values("image_id", kind="stable").reset_index(drop=True)
    competition = Competition(TABLE_SLUG, "A table of images", tuple(map(str, classes)), id_column=id_column)
    folds = Folds(frame, method="given")  # of no competition that the kit knows, and so are its out-of-fold files
    return TrainData(TrainTable(frame[["image_id", "label"]], image_dir, ()), folds, competition, slug_known=False)


def image_names(ids: pd.Series, image_dir: Path) -> pd.Series:
    """Return the file names of images, with the suffix that they have on disk.

    Raises:
        UserError: An image is not there, or its name or link leads out of the folder.
    """
    suffix = next((s for s in ("", *IMAGE_SUFFIXES) if (image_dir / f"{ids.iloc[0]}{s}").is_file()), "")
    names = ids + suffix
    absent = [name for name in names if not path_inside(image_dir, name).is_file()]
    if absent:
        raise UserError(f"{len(absent)} images of the table are not in {image_dir} (first: {absent[0]})")
    return names
