"""Pretraining on folders: `pretrain_folders`, the verb `pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cassava_kit.competition import Competition, current
from cassava_kit.data.table import list_images, read_competition
from cassava_kit.errors import UserError
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.pretrain import pretrain
from cassava_kit.training.ssl.recipes import pretrain_recipe

UNKNOWN = -1


def pretrain_folders(
    method: str,
    data: Path | None,
    images: Sequence[Path],
    *,
    backbone: str | None = None,
    init: Path | None = None,
    out: Path,
    settings: Sequence[str] = (),
    existing: Literal["refuse", "replace", "keep"] = "refuse",
) -> str:
    """Pretrain on a competition's training images and further folders, and return what to tell the user.

    The table's labels go to the kNN probe alone. Unlisted images are used like any other.

    Raises:
        UserError: neither folder is given, or one has no image.
    """
    config = configure_run(method, backbone, settings)
    if data is None and not images:
        raise UserError("give --data DIR, or --images DIR, or both")
    paths, labels = gather_images(data, images, current())
    known = labels if any(label != UNKNOWN for label in labels) else None
    path = pretrain(config, paths, out, init=init, labels=known, existing=existing)
    return f"{config.method} on {len(paths)} images: {path}"


def configure_run(method: str, backbone: str | None, settings: Sequence[str]) -> PretrainConfig:
    """Return the recipe with the backbone and the settings of the command line."""
    config = pretrain_recipe(method)
    if backbone is not None:
        name = backbone.removeprefix("timm:")
        config = config.with_settings([f'backbone="{name}"', "model_args={}"])
    return config.with_settings(settings)


def gather_images(data: Path | None, images: Sequence[Path], competition: Competition) -> tuple[list[Path], list[int]]:
    """Return image files and their labels, -1 where there is none."""
    paths: list[Path] = []
    labels: list[int] = []
    if data is not None:
        table = read_competition(data, competition)
        label_of = dict(zip(table.frame["image_id"], table.frame["label"], strict=True))
        names = sorted([*label_of, *table.unlisted])
        paths += [table.image_dir / name for name in names]
        labels += [int(label_of.get(name, UNKNOWN)) for name in names]
    for folder in images:
        names = list_images(folder)
        if not names:
            raise UserError(f"no image in {folder}")
        paths += [folder / name for name in names]
        labels += [UNKNOWN] * len(names)
    return paths, labels
