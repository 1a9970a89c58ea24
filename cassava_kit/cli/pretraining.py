"""Verbs of self-supervised pretraining: `pretrain_command` and `ssl_report_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli.app import named_file
from cassava_kit.cli.options import Data, FoldFile, SettingChanges, Weights
from cassava_kit.errors import UserError
from cassava_kit.training.ssl.methods import SSL_METHODS


def pretrain_command(
    method: Annotated[str, typer.Argument(help=f"{', '.join(SSL_METHODS)} as in its paper, or a recipe of one.")],
    data: Annotated[
        Path | None, typer.Option(help="Competition folder; all its training images are used, labels unseen.")
    ] = None,
    images: Annotated[list[Path] | None, typer.Option(help="Folder of further images; may be repeated.")] = None,
    model: Annotated[str | None, typer.Option(help="timm:NAME instead of the recipe's backbone.")] = None,
    weights: Weights = None,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Run folder; the backbone is backbone.safetensors in it.")
    ] = Path("runs/pretrain"),
    settings: SettingChanges = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a run that differs, finished or not.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep, or go on with, a run of another version of the code.")
    ] = False,
) -> None:
    """Pretrain a backbone on images without labels, and export it as plain timm weights for train --weights."""
    from cassava_kit.training.ssl.folder import pretrain_folders

    if replace and keep:
        raise UserError("give --replace or --keep, not both")
    said = pretrain_folders(
        method,
        data,
        images or [],
        backbone=model,
        init=weights,
        out=out,
        settings=settings or [],
        existing="replace" if replace else "keep" if keep else "refuse",
    )
    print(said)


def ssl_report_command(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe that finetunes every backbone.")],
    data: Data,
    folds: FoldFile,
    weights: Annotated[
        list[str],
        typer.Option(metavar="NAME=FILE", help="First weights to compare with random ones; repeat for each."),
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of the report and its runs.")] = Path(
        "runs/ssl-report"
    ),
    shares: Annotated[str, typer.Option(help="Shares of the labels, with commas.")] = "0.01,0.1,1",
    finetune: Annotated[bool, typer.Option(help="Finetune as well, not only probe frozen features.")] = True,
    settings: SettingChanges = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace finetuned runs that differ.")] = False,
) -> None:
    """Measure whether pretraining helped: probes and finetuning of each backbone, same folds, labels and budget."""
    from cassava_kit.training.recipes import recipe

    named = [named_file(text, "--weights takes NAME=FILE") for text in weights]
    starts = dict(named)
    if len(starts) < len(named):
        raise UserError(f"--weights: names must differ, got {', '.join(name for name, _ in named)}")
    parts = _parts(shares)
    config = recipe(name).with_settings(settings or [])
    from cassava_kit.data.folds import read_folds
    from cassava_kit.data.table import read_competition
    from cassava_kit.training.rows import TrainData, TrainOptions
    from cassava_kit.training.ssl.report import ssl_report

    split = TrainData(read_competition(data), read_folds(folds))
    options = TrainOptions(existing="replace" if replace else "refuse")
    report = ssl_report(config, split, starts, out, shares=parts, finetune=finetune, options=options)
    print(report.verdict)
    print(out / "ssl_report.md")


def _parts(text: str) -> list[float]:
    """Return the numbers between commas."""
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise UserError(f"--shares takes numbers up to 1 with commas, e.g. 0.01,0.1,1, got {text!r}") from None
