"""Verbs of supervised training: `recipes_command` and `train_command`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cassava_kit.cli.options import CleanAction, Data, FoldFile, GpuFile, Jobs, SettingChanges, Weights
from cassava_kit.cli.output import AsJson, Result, print_result
from cassava_kit.errors import UserError

if TYPE_CHECKING:
    from cassava_kit.data.folds import Folds
    from cassava_kit.training.config import RunConfig
    from cassava_kit.training.cost import Gpu
    from cassava_kit.training.ssl.config import PretrainConfig


ASSUMED_SPEED = "with an assumed speed of 9.5 TFLOP/s (--gpu FILE takes a measured one)"
PROBE = "probe"


def recipes_command(
    name: Annotated[str | None, typer.Argument(help="Recipe to print in full.")] = None,
    hours: Annotated[
        bool, typer.Option(help="Estimate hours of Kaggle's two T4s for all folds, from counted operations.")
    ] = False,
    n_images: Annotated[
        int | None, typer.Option(min=1, help="With --hours: training images; default: the competition's.")
    ] = None,
    n_splits: Annotated[int | None, typer.Option(min=2, help="With --hours: folds; default: 5.")] = None,
    gpu: GpuFile = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes of train and of pretrain, or print one recipe's full configuration, or with --hours its cost."""
    from cassava_kit.competition import current

    if not hours and any(each is not None for each in (n_images, n_splits, gpu)):
        raise UserError("--n-images, --n-splits and --gpu go with --hours")
    images, n_splits = n_images or current().training_images, n_splits or 5
    speed, source = speed_of_t4(gpu)

    def hours_of(each: str) -> float:
        return _hours(each, images, n_splits, speed)

    def listed() -> Result:
        if name is None:
            return _list_recipes(hours_of if hours else None, source)
        if hours:
            found = hours_of(name)
            return Result(f"{name}: {found:.1f} h of two T4s, {source}", {"name": name, "hours": round(found, 2)})
        values = _configuration(name)
        return Result(json.dumps(values, indent=2, ensure_ascii=False), values)

    print_result(listed, as_json=as_json)


def _list_recipes(hours_of: Callable[[str], float] | None, source: str) -> Result:
    """Return the recipes of train and of pretrain, each with its sentence and, where it is asked for, its hours."""
    from cassava_kit.training.baseline import LogReg
    from cassava_kit.training.recipes import recipe, recipe_names
    from cassava_kit.training.ssl.recipes import PRETRAIN_RECIPES

    abouts = {
        "train": {LogReg.recipe: LogReg.about} | {each: recipe(each).about for each in recipe_names()},
        "pretrain": {function.__name__: (function.__doc__ or "").splitlines()[0] for function in PRETRAIN_RECIPES},
    }
    lines = [] if hours_of is None else [f"Hours of two T4s, {source}."]
    values: dict[str, list[dict[str, Any]]] = {}
    for verb, recipes in abouts.items():
        lines.append(f"{verb}:")
        values[verb] = [{"name": each, "about": about} for each, about in recipes.items()]
        for row in values[verb]:
            cost = ""
            if hours_of is not None and row["name"] != LogReg.recipe:
                found = hours_of(row["name"])
                cost, row["hours"] = f"{found:5.1f} h  ", round(found, 2)
            lines.append(f"  {row['name']:18} {cost}{row['about']}")
    return Result("\n".join(lines), values)


def _configuration(name: str) -> dict[str, Any]:
    """Return a recipe's settings as values that JSON can hold."""
    from cassava_kit.training.baseline import LogReg

    return asdict(LogReg()) if name == LogReg.recipe else _recipe(name).model_dump(mode="json")


def speed_of_t4(file: Path | None) -> tuple[Gpu, str]:
    """Return the speed of a T4, assumed or by a file of gpu-check, and in words where it comes from."""
    from cassava_kit.training.cost import T4

    if file is None:
        return T4, ASSUMED_SPEED
    from cassava_kit.training.gpu_check.t4 import read_t4

    return read_t4(file)


def _hours(name: str, images: int, n_splits: int, gpu: Gpu) -> float:
    """Return the hours of two T4s that a recipe takes: for training all folds, for pretraining once."""
    from cassava_kit.training.baseline import LogReg
    from cassava_kit.training.cost import train_hours
    from cassava_kit.training.ssl.config import PretrainConfig
    from cassava_kit.training.ssl.cost import pretrain_hours

    if name == LogReg.recipe:
        raise UserError(f"{name} needs no GPU; --hours estimates the other recipes")
    config = _recipe(name)
    if isinstance(config, PretrainConfig):
        return pretrain_hours(config, images, gpu=gpu)
    return train_hours(config, images, n_splits, gpu=gpu)


def _recipe(name: str) -> RunConfig | PretrainConfig:
    from cassava_kit.training.recipes import recipe
    from cassava_kit.training.ssl.recipes import PRETRAIN_RECIPES, pretrain_recipe

    return pretrain_recipe(name) if name in [function.__name__ for function in PRETRAIN_RECIPES] else recipe(name)


def train_command(
    name: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, timm:NAME, logreg, or probe.")],
    data: Data,
    folds: FoldFile,
    fold: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Number of a fold to hold out; may be repeated. Default: each fold in turn."),
    ] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder of runs.")] = Path("runs"),
    weights: Weights = None,
    partial_weights: Annotated[
        bool, typer.Option("--partial-weights", help="Let tensors of the backbone that the file lacks stay random.")
    ] = False,
    settings: SettingChanges = None,
    keep_stages: Annotated[
        int | None,
        typer.Option(
            "--keep-stages",
            min=0,
            help="Train the head and this number of top stages alone (of a ViT: blocks); those below stay frozen.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="timm:NAME", help="With probe: the network, as timm:NAME or a recipe's name."),
    ] = None,
    run_name: Annotated[
        str | None,
        typer.Option("--name", help="Name of the run's folder; default: the recipe's, with the settings changed."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a run that differs, finished or not.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep, or go on with, a run of another version of the code.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Train on at most this many images; all are still validated.")
    ] = None,
    clean: Annotated[Path | None, typer.Option(help="Noise report of the verb clean, for the training rows.")] = None,
    clean_action: CleanAction = None,
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
    jobs: Jobs = None,
) -> None:
    """Train a recipe once for each fold held out; write checkpoints and out-of-fold predictions."""
    from cassava_kit.data.folds import read_folds
    from cassava_kit.data.table import read_competition
    from cassava_kit.training.recipes import recipe

    spread = devices > 1 or num_nodes > 1 or strategy != "auto"
    no_network: tuple[object, ...] = (partial_weights, limit, clean, clean_action, cache, workers, tensorboard, spread)
    no_network += (jobs, keep_stages is not None)
    if replace and keep:
        raise UserError("give --replace or --keep, not both")
    if model is not None and name != PROBE:
        raise UserError("--model goes with train probe; a recipe's network is changed by --set model=NAME")
    if name == PROBE:
        if any(no_network):
            raise UserError(
                "train probe takes --model, --weights, --data, --folds, --fold, --out, --set, --name, --replace and "
                "--keep alone: its network stays frozen"
            )
        if model is None or weights is None:
            raise UserError("train probe needs --model timm:NAME and --weights FILE, the network and its weights")
        from cassava_kit.settings import replace as with_name
        from cassava_kit.training.recipe_run import PlannedProbe, train_recipes
        from cassava_kit.training.recipes import probe_of
        from cassava_kit.training.rows import TrainData, TrainOptions

        split, probe = read_folds(folds), probe_of(model).with_settings(settings or [])
        planned = PlannedProbe(
            probe if run_name is None else with_name(probe, name=run_name),
            TrainOptions(weights=weights, existing="replace" if replace else "keep" if keep else "refuse"),
        )
        train_recipes([planned], TrainData(read_competition(data), split), out, folds=_fold_numbers(fold, split))
        return
    if name == "logreg":
        if any((settings, weights, run_name, keep, *no_network)):
            raise UserError(
                "train logreg takes --data, --folds, --fold, --out and --replace alone: it trains no network"
            )
        from cassava_kit.evidence.metrics import format_score
        from cassava_kit.training.baseline import train_baseline
        from cassava_kit.training.rows import TrainData

        split = read_folds(folds)
        score = train_baseline(
            TrainData(read_competition(data), split), out, folds=_fold_numbers(fold, split), replace=replace
        )
        print(f"logreg: OOF {format_score(score)} on {score.n} given labels: {out / 'logreg'}")
        return
    if clean_action is not None and clean is None:
        raise UserError("--clean-action goes with --clean FILE")
    if partial_weights and weights is None:
        raise UserError("--partial-weights goes with --weights FILE")
    from cassava_kit.settings import replace as with_fields

    chosen = [] if keep_stages is None else [f"keep_stages={keep_stages}"]
    config = recipe(name).with_settings([*(settings or []), *chosen])
    if run_name is not None:
        config = with_fields(config, name=run_name)
    from cassava_kit.training.devices import Devices
    from cassava_kit.training.recipe_run import train_recipe
    from cassava_kit.training.rows import TrainOptions

    split = read_folds(folds)
    options = TrainOptions(
        weights=weights,
        partial_weights=partial_weights,
        limit=limit,
        clean=clean,
        clean_action=clean_action or "drop",
        devices=Devices(devices, strategy, num_nodes),
        workers=workers,
        cache=cache,
        tensorboard=tensorboard,
        existing="replace" if replace else "keep" if keep else "refuse",
    )
    numbers = _fold_numbers(fold, split)
    train_recipe(config, read_competition(data), split, out, folds=numbers, options=options, jobs=jobs)


def _fold_numbers(given: list[int] | None, split: Folds) -> list[int]:
    """Return the folds that `--fold` names, all of them without it."""
    return [split.check_fold(number) for number in sorted(set(given))] if given else list(range(split.n_splits))
