"""Verbs that write a page: `eda_command`, `report_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli.options import Data


def eda_command(
    data: Data,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Page to write; its PNGs go beside it.")] = Path("eda.html"),
) -> None:
    """Write a page on the images: classes, samples, test beside training, statistics, copies, broken files."""
    from cassava_kit.report.eda_page import write_eda

    print(write_eda(data, out))


def report_command(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, a folder of them, or out-of-fold files of other models.")
    ],
    folds: Annotated[Path | None, typer.Option(help="Fold file on which the runs were made.")] = None,
    data: Annotated[Path | None, typer.Option(help="Competition folder: worst mistakes are shown as pictures.")] = None,
    out: Annotated[Path, typer.Option(dir_okay=False, help="Page to write; its PNGs go beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """Write a page on runs, the best first: what is proved, curves, findings, confusion, recall, mistakes."""
    from cassava_kit.report.runs_page import write_report

    print(write_report(runs, out, folds=folds, data=data))
