"""The whole submission: `python submit.py --ensemble` goes the road from the data to a checked file, at home."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.cli import run_app

app = typer.Typer(name="submit.py", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def submit(
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Train, pack, rehearse offline, check: the dry run.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Competition folder; default: the embedded sample.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="First weights of a recipe or timm model, which joins the ensemble."),
    ] = None,
    recipes: Annotated[str, typer.Option(help="Members by recipe, with commas; default: the three small ones.")] = "",
    n_splits: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the folds and of the pretraining.")] = 42,
    views: Annotated[str, typer.Option(help="Test-time views: none, flips, d4 or d4+zoom.")] = "flips",
    out: Annotated[Path | None, typer.Option(help="Where to work; default: build/<data folder's name>.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Take an image-classification code competition from the data to a checked submission."""
    if not ensemble:
        raise ValueError("say what to do: --ensemble (see --help)")
    from cassava_kit.dry_run import DryRun, dry_run, parse_weights

    dry_run(
        DryRun(
            data=data,
            out=out,
            recipes=tuple(filter(None, recipes.split(","))),
            weights=parse_weights(weights or []),
            n_splits=n_splits,
            seed=seed,
            views=views,
        )
    )


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
