"""Members of the results on real photographs: each one's out-of-fold file, made or reused by the kit's own run folders.

Everything here is seen out of fold: whatever is chosen (a penalty, weights) is chosen without the rows it is scored on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from results_probe import mean_over_views, nested_probe

from cassava_kit.competition import current
from cassava_kit.data.duplicates import find_duplicates
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition
from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.clean import clean_labels
from cassava_kit.evidence.noise.decisions import write_noise_report
from cassava_kit.evidence.oof import average_members, fold_predictions, join_folds, make_evidence, read_evidence
from cassava_kit.evidence.predictions import Predictions, read_predictions, write_predictions
from cassava_kit.files import read_json, sha256_bytes, sha256_file, write_json
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.ssl.methods import SSL_METHODS

SEED, N_SPLITS = 42, 5
# The mobilenet recipe made smaller, so that all variants of it fit into less than an hour of two CPU cores.
SMALLER = ("image_size=128", "train_pixels=[144,192]", "epochs=6", "ema=None")
PROBE = "frozen"
FINETUNED = "finetuned"


@dataclass(frozen=True)
class Plan:
    """Competition folder, the recipe of the ImageNet backbone with its weights, and where runs are kept.

    `only`: members to make (with what they need); `settings` change every supervised recipe (sizes: the
    ImageNet backbone's alone), `ssl_settings` every pretraining.
    """

    data: Path
    weights: tuple[str, Path]
    work: Path
    only: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    ssl_settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A member's out-of-fold predictions, the seconds they took when they were made, its checkpoints by fold."""

    predictions: Predictions
    seconds: float
    checkpoints: tuple[Path, ...] = ()


@dataclass
class Shop:
    """The plan with its data and split, and the members made so far."""

    plan: Plan
    data: TrainData
    grouped: int
    made: dict[str, Made] = field(default_factory=dict)

    @property
    def labels(self) -> np.ndarray:
        """Given labels (N,) in the split's order."""
        return self.data.folds.frame["label"].to_numpy()

    @property
    def fold(self) -> np.ndarray:
        """Fold (N,) in which each row is held out."""
        return self.data.folds.frame["fold"].to_numpy()

    @property
    def paths(self) -> list[Path]:
        """Image files in the split's order."""
        return self.data.paths(self.data.folds.frame)

    @property
    def n_classes(self) -> int:
        """Classes of the competition."""
        return self.data.competition.n_classes


@dataclass(frozen=True)
class Member:
    """A row of the table: its name, what it is, how it is made, and the members it is made from."""

    name: str
    about: str
    make: Callable[[Shop], Made]
    needs: tuple[str, ...] = ()


def open_shop(plan: Plan) -> Shop:
    """Read the folder and split it in five; near-duplicates, where there are any, stay in one fold."""
    if current().metric != "accuracy":
        raise UserError(f"these results are judged by accuracy, got the metric {current().metric} of {current().slug}")
    table = read_competition(plan.data)
    groups = find_duplicates([table.image_dir / name for name in table.frame["image_id"]], progress=False)
    grouped = len(groups) - len(np.unique(groups))
    split = split_folds(table.frame, n_splits=N_SPLITS, seed=SEED, groups=groups if grouped else None)
    write_folds(plan.work / "folds.csv", split)
    return Shop(plan, TrainData(table, split), grouped)


def timed(shop: Shop, name: str, function: Callable[[], Any], *, settings: Sequence[str] = ()) -> tuple[Any, float]:
    """The function's result and the longest it took with these settings: what is reused costs nothing a second time."""
    file, name = shop.plan.work / "seconds.json", " ".join([name, *settings])
    started = time.perf_counter()
    result = function()
    known = read_json(file) if file.is_file() else {}
    known[name] = max(known.get(name, 0.0), round(time.perf_counter() - started, 1))
    write_json(file, known)
    return result, known[name]


def joined(shop: Shop, name: str, of_fold: Callable[[int], np.ndarray]) -> Predictions:
    """Out-of-fold predictions from a function that answers the rows of fold k, (n, K)."""
    split = shop.data.folds
    parts = [fold_predictions(split, k, of_fold(k), f"{name}-fold{k}") for k in range(split.n_splits)]
    return join_folds(parts, split, name)


def majority(shop: Shop) -> Made:
    """The training rows' class shares for every image."""

    def shares(k: int) -> np.ndarray:
        held_out = shop.fold == k
        counts = np.bincount(shop.labels[~held_out], minlength=shop.n_classes)
        return np.tile(counts / counts.sum(), (held_out.sum(), 1))

    return Made(joined(shop, "majority", shares), 0.0)


def logreg(shop: Shop) -> Made:
    """The kit's baseline on small pixels."""
    from cassava_kit.training.baseline import train_baseline

    runs = shop.plan.work / "runs"
    _, seconds = timed(shop, "logreg", lambda: train_baseline(shop.data, runs, progress=False))
    return Made(read_predictions(runs / "logreg" / "oof.csv"), seconds)


def train(
    shop: Shop, config: RunConfig, *, weights: Path | None = None, clean: Path | None = None, action: str = "drop"
) -> Made:
    """All folds of a configuration, from the kit's run folders where they lie there finished."""
    from cassava_kit.training.recipe_run import train_recipe

    cache = shop.plan.work / "pixels" if config.train_pixels else None
    options = TrainOptions(weights=weights, clean=clean, clean_action=action, cache=cache)
    data = shop.data
    result = train_recipe(config, data.table, data.folds, shop.plan.work / "runs", options=options)
    assert result.oof_file is not None  # all folds were asked for
    seconds = sum(fold.seconds for fold in result.folds)
    return Made(read_predictions(result.oof_file), seconds, tuple(fold.checkpoint for fold in result.folds))


def small_config(name: str, shop: Shop) -> RunConfig:
    """A small recipe with the plan's settings but for sizes, which are the ImageNet backbone's: the ViT has its own."""
    return recipe(name).with_settings(
        [each for each in shop.plan.settings if each.partition("=")[0] not in ("image_size", "train_pixels")]
    )


def small(name: str, shop: Shop) -> Made:
    """A small recipe from random weights."""
    return train(shop, small_config(name, shop))


def finetuned_config(shop: Shop) -> RunConfig:
    """What all variants of the ImageNet backbone share."""
    name = shop.plan.weights[0]
    return recipe(name).with_settings([*(SMALLER if name == "mobilenet" else ()), *shop.plan.settings])


def finetuned(shop: Shop, name: str = FINETUNED, *, pretrained: bool = True, **changes: Any) -> Made:
    """The ImageNet backbone finetuned with something changed, or the same network from random weights."""
    config = replace(finetuned_config(shop), recipe=name, **changes)
    return train(shop, config, weights=shop.plan.weights[1] if pretrained else None)


def cleaned(shop: Shop, name: str, action: str) -> Made:
    """Finetuned on what confident learning leaves, by the finetuned member's and the probe's mean."""
    names = (FINETUNED, PROBE)
    evidence = make_evidence([shop.made[each].predictions for each in names], shop.data.folds, names)
    suspects = shop.plan.work / "suspects.csv"
    write_predictions(suspects, average_members(evidence, np.full(2, 0.5)))
    report = shop.plan.work / "clean.csv"
    write_noise_report(report, clean_labels(read_evidence([suspects], shop.data.folds)).report)
    config = replace(finetuned_config(shop), recipe=name)
    return train(shop, config, weights=shop.plan.weights[1], clean=report, action=action)


def features(shop: Shop, size: int, views: str) -> tuple[np.ndarray, float]:
    """Features (N, D) of the frozen ImageNet backbone at a size, the mean over views, and what they cost when made."""
    from cassava_kit.inference.features import Pixels, extract_features
    from cassava_kit.inference.tta import make_views
    from cassava_kit.models.network import create_model, image_statistics
    from cassava_kit.models.weights import load_weights

    config = finetuned_config(shop)
    backbone = create_model(config.model, 0, model_args=config.model_args)
    load_weights(backbone, shop.plan.weights[1])
    pixels = Pixels(size, *image_statistics(backbone))
    mean = mean_over_views(backbone, make_views(views))
    cache = shop.plan.work / "features" / views
    name = f"features of {sha256_file(shop.plan.weights[1])[:12]} at {size}, {views}"
    return timed(shop, name, lambda: extract_features(mean, shop.paths, pixels, cache=cache))


def probe(shop: Shop, name: str = PROBE, *, size: int | None = None, views: str = "none") -> Made:
    """Logistic regression on the frozen backbone's features, at the finetuned size unless another is given."""
    x, paid = features(shop, size or finetuned_config(shop).image_size, views)

    def fit() -> Predictions:
        answers = nested_probe(x, shop.labels, shop.fold, n_classes=shop.n_classes)
        return joined(shop, name, lambda k: answers[shop.fold == k])

    made, seconds = timed(shop, name, fit, settings=shop.plan.settings)
    return Made(made, seconds + paid)


def pretrained(method: str, shop: Shop) -> Made:
    """The small ResNet from a backbone pretrained by the method on all photographs, no label seen."""
    from cassava_kit.training.ssl.pretrain import pretrain
    from cassava_kit.training.ssl.recipes import pretrain_recipe

    config = pretrain_recipe(f"small_{method}").with_settings(["on_collapse=warn", *shop.plan.ssl_settings])
    out = shop.plan.work / "pretrain" / method

    def run() -> Path:
        return pretrain(config, shop.paths, out, existing="replace")

    weights, seconds = timed(shop, f"pretrain {method}", run, settings=shop.plan.ssl_settings)
    made = train(shop, replace(small_config("small_resnet", shop), recipe=method), weights=weights)
    return Made(made.predictions, made.seconds + seconds, made.checkpoints)


def with_views(name: str, views: str, shop: Shop) -> Made:
    """A member's checkpoints once more, each on the rows it never saw, through the views of a preset.

    Reused by the checkpoints' hashes; a member without checkpoints is answered as it is.
    """
    from cassava_kit.inference.predict import predict_images

    made = shop.made[name]
    if not made.checkpoints:
        return made
    key = sha256_bytes(" ".join(map(sha256_file, made.checkpoints)).encode())[:12]
    path = shop.plan.work / "views" / f"{name}-{views}-{key}.csv"

    def of_fold(k: int) -> np.ndarray:
        paths = shop.data.paths(shop.data.folds.validation(k))
        return predict_images([made.checkpoints[k]], paths, views=views, progress=False)[0][0].astype(np.float64)

    def predict() -> None:
        if not path.is_file():
            write_predictions(path, joined(shop, f"{name}-{views}", of_fold))

    _, seconds = timed(shop, f"{name}, {views}", predict, settings=shop.plan.settings)
    return Made(read_predictions(path), seconds, made.checkpoints)


MEMBERS = (
    Member("majority", "class shares of the training rows", majority),
    Member("logreg", "logistic regression on 32x32 pixels", logreg),
    Member("small_resnet", "small ResNet, random weights", partial(small, "small_resnet")),
    Member("small_vit", "small ViT, random weights", partial(small, "small_vit")),
    *(Member(each, f"small ResNet, {each} pretraining", partial(pretrained, each)) for each in SSL_METHODS),
    Member("random", "the finetuned network from random weights", partial(finetuned, name="random", pretrained=False)),
    Member(PROBE, "ImageNet backbone frozen, linear probe", probe),
    Member(FINETUNED, "ImageNet backbone finetuned, smoothing .1", finetuned),
    Member("unsmoothed", "finetuned without smoothing", partial(finetuned, name="unsmoothed", label_smoothing=0.0)),
    Member("mixup", "finetuned with mixup .4", partial(finetuned, name="mixup", mixup=0.4)),
    Member(
        "dropped",
        "finetuned without the 3 % most suspicious rows",
        partial(cleaned, name="dropped", action="drop"),
        (FINETUNED, PROBE),
    ),
    Member(
        "cleaned",
        "finetuned, suspicious labels softened",
        partial(cleaned, name="cleaned", action="soften"),
        (FINETUNED, PROBE),
    ),
    Member("finetuned, flips", "4 views", partial(with_views, FINETUNED, "flips"), (FINETUNED,)),
    Member("finetuned, d4", "8 views", partial(with_views, FINETUNED, "d4"), (FINETUNED,)),
)
NETWORKS = ("small_resnet", "small_vit", *SSL_METHODS, PROBE, FINETUNED, "unsmoothed", "mixup", "dropped", "cleaned")
