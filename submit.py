"""The whole submission: `python submit.py --ensemble` at home, then `--doctor`, `--push` and `--submit` to Kaggle."""

from __future__ import annotations

import sys
from dataclasses import replace
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
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Run a bundle's notebook offline, in both layouts.")
    ] = False,
    image: Annotated[bool, typer.Option("--image", help="With --rehearse: the versions of Kaggle's image.")] = False,
    doctor: Annotated[bool, typer.Option("--doctor", help="Examine a bundle for what ends other submissions.")] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Upload a bundle, run its notebook on Kaggle, check its file.")
    ] = False,
    send: Annotated[bool, typer.Option("--submit", help="Push, then submit and wait for the score.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --push or --submit: print the calls, make none.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option(help="The bundle that --ensemble packed, for --rehearse, --doctor, --push, --submit.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Competition folder; default: the embedded sample.")] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="First weights of a recipe or timm model, which joins the ensemble."),
    ] = None,
    recipes: Annotated[str, typer.Option(help="Members by recipe, with commas; default: the three small ones.")] = "",
    n_splits: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 42,
    views: Annotated[str, typer.Option(help="Test-time views: none, flips, d4 or d4+zoom.")] = "flips",
    owner: Annotated[str | None, typer.Option(help="Your Kaggle name, in place of dataset-metadata.json's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to work; default: build/<data folder's name>.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show the whole traceback of an error.")] = False,
) -> int:
    """Take an image-classification code competition from the data to a scored submission."""
    if sum((ensemble, rehearse, doctor, push or send)) != 1:
        raise ValueError("say one thing to do: --ensemble, --rehearse, --doctor, --push or --submit (see --help)")
    if dry_run and not (push or send):
        raise ValueError("--dry-run goes with --push or --submit; the dry run at home is --ensemble")
    if image and not rehearse:
        raise ValueError("--image goes with --rehearse")
    if ensemble:
        from cassava_kit.dry_run import DryRun, parse_weights
        from cassava_kit.dry_run import dry_run as whole_road

        chosen = tuple(filter(None, recipes.split(",")))
        plan = DryRun(data, out, recipes=chosen, weights=parse_weights(weights or []), n_splits=n_splits, seed=seed)
        whole_road(replace(plan, views=views, owner=owner))
        return 0
    if bundle is None:
        raise ValueError("give --bundle DIR, as packed by --ensemble, e.g. build/sample-v1/bundle")
    from cassava_kit.kaggle import road

    if rehearse:
        return road.rehearse_bundle(bundle, data, image=image)
    if doctor:
        return road.examine(bundle)
    return road.send(bundle, submit=send, dry_run=dry_run)


if __name__ == "__main__":
    sys.exit(run_app(app, sys.argv[1:]))
