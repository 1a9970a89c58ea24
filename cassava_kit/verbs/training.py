"""Verbs of supervised training: recipes, train."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cassava_kit.verbs.options import Data, FoldFile, Settings

if TYPE_CHECKING:
    from cassava_kit.folds import Folds


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to print in full.")] = None,
    hours: Annotated[
        bool, typer.Option(help="Estimate hours of Kaggle's two T4s for all folds, from counted operations.")
    ] = False,
    images: Annotated[
        int | None, typer.Option(min=1, help="With --hours: training images; default: the competition's.")
    ] = None,
    n_splits: Annotated[int, typer.Option(min=2, help="With --hours: folds.")] = 5,
) -> None:
    """List the recipes of train and of pretrain, or print one recipe's full configuration."""
    from cassava_kit.competition import current
    from cassava_kit.cost import pretrain_hours, train_hours
    from cassava_kit.recipes import recipe, recipe_names
    from cassava_kit.ssl.recipes import RECIPES as PRETRAINING
    from cassava_kit.ssl.recipes import recipe as pretraining

    images = images or current().training_images
    selfsupervised = {function.__name__: (function.__doc__ or "").splitlines()[0] for function in PRETRAINING}
    if name is not None:
        print((pretraining(name) if name in selfsupervised else recipe(name)).model_dump_json(indent=2))
        return
    for title, costs in (
        ("train", {each: train_hours(recipe(each), images, n_splits) if hours else 0 for each in recipe_names()}),
        ("pretrain", {each: pretrain_hours(pretraining(each), images) if hours else 0 for each in selfsupervised}),
    ):
        print(f"{title}:")
        if title == "train":
            print("  logreg             Logistic regression on small pixels, the baseline (published: .50).")
        for each, cost in costs.items():
            about = selfsupervised.get(each) or recipe(each).about
            print(f"  {each:18} {f'{cost:5.1f} h  ' if hours else ''}{about}")


def train(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, timm:NAME, or logreg.")],
    data: Data,
    folds: FoldFile,
    fold: Annotated[str, typer.Option(help="Number of the fold to hold out, or 'all'.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder of runs.")] = Path("runs"),
    weights: Annotated[
        Path | None, typer.Option(help="First weights: .safetensors, or .pth with tensors alone.")
    ] = None,
    settings: Settings = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train on at most so many images; all are still validated.")
    ] = None,
    clean: Annotated[Path | None, typer.Option(help="Noise report of the verb clean, for the training rows.")] = None,
    clean_action: Annotated[
        str, typer.Option(help="drop, flip or weight the rows it would not keep, or soften every doubtful label.")
    ] = "drop",
    devices: Annotated[int, typer.Option(min=1, help="GPUs, or processes where there is none.")] = 1,
    strategy: Annotated[
        str, typer.Option(help="auto, ddp, ddp_sharded (optimiser spread, ZeRO-1) or fsdp (weights spread too, FSDP2).")
    ] = "auto",
    num_nodes: Annotated[
        int, typer.Option(min=1, help="Machines; each runs this command, with MASTER_ADDR and NODE_RANK set.")
    ] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes; 0 loads in the main process.")] = 0,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for decoded pixels, made once (needs the setting train_pixels).")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard's log into the run.")] = False,
) -> None:
    """Train a recipe on all folds but one, and write checkpoint and out-of-fold predictions; 'all' joins the folds."""
    from cassava_kit.data.table import read_competition
    from cassava_kit.folds import read_folds
    from cassava_kit.recipes import recipe

    if name == "logreg":
        given = (settings, weights, limit, clean, cache, workers, tensorboard, devices > 1)
        if any(given):
            raise ValueError("train logreg takes --data, --folds, --fold and --out alone: it trains no network")
        from cassava_kit.baseline import train_logreg
        from cassava_kit.metrics import told

        split = read_folds(folds)
        score = train_logreg(read_competition(data), split, out, folds=_fold_numbers(fold, split))
        print(f"logreg: OOF {told(score)} on {score.n} given labels: {out / 'logreg'}")
        return
    config = recipe(name).with_settings(settings or [])
    from cassava_kit.training.devices import Devices
    from cassava_kit.training.recipe_run import train_recipe
    from cassava_kit.training.rows import Session

    split = read_folds(folds)
    session = Session(
        weights=weights,
        limit=limit,
        clean=clean,
        clean_action=clean_action,
        devices=Devices(devices, strategy, num_nodes),
        workers=workers,
        cache=cache,
        tensorboard=tensorboard,
    )
    train_recipe(config, read_competition(data), split, out, folds=_fold_numbers(fold, split), session=session)


def _fold_numbers(text: str, split: Folds) -> list[int]:
    """The folds that `--fold` names."""
    if text == "all":
        return list(range(split.n_splits))
    if not text.isdigit():
        raise ValueError(f"--fold must be a whole number or 'all', got {text!r}")
    return [split.check_fold(int(text))]
