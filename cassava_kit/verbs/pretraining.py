"""Verbs of self-supervised pretraining: pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.verbs.options import Settings


def pretrain(
    method: Annotated[str, typer.Argument(help="byol, swav, simclr or moco as in its paper, or a recipe of one.")],
    data: Annotated[
        Path | None, typer.Option(help="Competition folder; all its training images are used, labels unseen.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of further images; may be repeated.")] = None,
    backbone: Annotated[str | None, typer.Option(help="timm:NAME instead of the recipe's backbone.")] = None,
    init: Annotated[Path | None, typer.Option(help="Weights to start from.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder; the backbone is backbone.safetensors in it.")] = Path(
        "runs/pretrain"
    ),
    settings: Settings = None,
) -> None:
    """Pretrain a backbone on images without labels, and export it as plain timm weights for train --weights."""
    from cassava_kit.ssl.folder import pretrain_folders

    print(pretrain_folders(method, data, images or [], backbone=backbone, init=init, out=out, settings=settings or []))
