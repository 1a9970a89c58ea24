"""Verbs on predictions and labels: predict, ensemble, compare, clean, review."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.verbs.options import Data, FoldFile


def predict(
    members: Annotated[list[Path], typer.Option(help="Checkpoint; may be repeated, their mean is written.")],
    images: Annotated[Path, typer.Option(help="Folder of images.")],
    out: Annotated[Path, typer.Option(help="Prediction file to write; its .json header goes beside it.")],
    views: Annotated[str, typer.Option(help="Test-time views: none, flips, d4 or d4+zoom.")] = "none",
    folds: Annotated[Path | None, typer.Option(help="With --labels: score only rows the members never saw.")] = None,
) -> None:
    """Predict every image of a folder with one or more checkpoints; with --folds, score them out of sample."""
    from cassava_kit.inference.folder import predict_folder

    summary = predict_folder(members, images, views=views, folds=folds, out=out)
    print(summary)


def ensemble(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(help="Weights file to write.")] = Path("runs/ensemble-weights.json"),
) -> None:
    """Weigh members by their out-of-fold predictions; the plain mean stays unless another is proved better."""
    from cassava_kit.blend import weigh_files

    print(weigh_files(oof, folds, out))


def compare(
    a: Annotated[Path, typer.Argument(help="Out-of-fold prediction file.")],
    b: Annotated[Path, typer.Argument(help="The one that may be better.")],
    folds: FoldFile,
) -> None:
    """Compare two members on the same rows: paired bootstrap interval, McNemar's test, and whether it is proved."""
    from cassava_kit.compare import compare_files

    print(compare_files(a, b, folds))


def clean(
    oof: Annotated[list[Path], typer.Option(help="Out-of-fold prediction file of a member; repeat for each.")],
    folds: FoldFile,
    out: Annotated[Path, typer.Option(help="Noise report to write, most suspicious row first.")] = Path("clean.csv"),
    cap: Annotated[float, typer.Option(help="Largest share of all rows to leave out of training.")] = 0.03,
    decisions: Annotated[Path | None, typer.Option(help="Decisions exported from the review page.")] = None,
) -> None:
    """Find wrong labels by out-of-fold predictions; validation keeps every row and its given label."""
    from cassava_kit.noise.clean import clean_files
    from cassava_kit.noise.decisions import Caps

    print(clean_files(oof, folds, out, caps=Caps(overall=cap), decisions=decisions))


def review(
    report: Annotated[Path, typer.Argument(metavar="CLEAN.CSV", help="Noise report of the verb clean.")],
    data: Data,
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("review.html"),
    oof: Annotated[list[Path] | None, typer.Option(help="Members whose votes are shown; may be repeated.")] = None,
    folds: Annotated[Path | None, typer.Option(help="Fold file of those members.")] = None,
) -> None:
    """Make one page for the eyes: suspicious pictures, their labels and votes, keep/drop/relabel by keyboard."""
    from cassava_kit.report.review import review_files

    print(review_files(report, data, out, oof=oof or [], folds=folds))
