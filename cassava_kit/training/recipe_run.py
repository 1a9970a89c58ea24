"""A recipe trained over folds, its out-of-fold predictions joined: `train_recipe`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from cassava_kit.competition import Competition, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.metrics import Score, accuracy, baseline, format_score, score
from cassava_kit.training.callbacks import training_bar
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import is_main
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.loaders import fill_cache
from cassava_kit.training.recipes import initial_weights, run_name
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.run_dir import FoldResult, find_reusable, join_runs, run_fingerprint

PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False}


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's folds and, where all were trained, its joined out-of-fold file and score."""

    config: RunConfig
    folds: tuple[FoldResult, ...]
    oof_file: Path | None
    score: Score | None
    seconds: float

    @property
    def reused(self) -> bool:
        """Whether nothing had to be trained."""
        return all(result.reused for result in self.folds)


def train_recipe(
    config: RunConfig,
    table: TrainTable,
    split: Folds,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    competition: Competition | None = None,
    options: TrainOptions | None = None,
) -> RecipeResult:
    """Train a recipe on each of `folds` (default: all), and print a line a fold.

    Makes the options' progress bar, and prints beside it.
    """
    options = options or TrainOptions()
    console = Console(stderr=True, file=sys.stderr, quiet=not is_main())
    numbers = list(range(split.n_splits)) if folds is None else list(folds)
    data = TrainData(table, split, competition or current())
    check_run(config, data, numbers, options)
    wanted = initial_weights(config)
    if options.weights is None and wanted is not None:
        console.print(f"{config.recipe} starts from random weights, not from {wanted}: give --weights FILE", **PLAIN)
    results = []
    name = run_name(config)
    for fold in numbers:  # all refusals before the first fold is trained
        find_reusable(out / name / f"fold{fold}", run_fingerprint(config, data, fold, options), options)
    if options.cache is not None:
        fill_cache(config, data.paths(split.frame), options.cache)
    with training_bar(console) as progress:
        tell = partial(progress.console.print, **PLAIN)
        options = replace(options, progress=progress, tell=tell)
        for fold in numbers:
            result = fit_fold(config, data, fold, out, options=options)
            how = "reused" if result.reused else f"{result.seconds:.0f} s"
            shown = str(result.score) if data.competition.metric == "accuracy" else format_score(result.score)
            tell(f"{name} fold {fold}: {shown} out of fold ({how})")
            results.append(result)
    seconds = sum(0.0 if result.reused else result.seconds for result in results)
    if len(numbers) < split.n_splits or not is_main():
        return RecipeResult(config, tuple(results), None, None, seconds)
    path, whole = join_runs(results, split, out, name)
    labels = split.scored["label"].to_numpy()
    right = accuracy(labels, whole.probabilities)
    found = score(labels, whole.probabilities, data.competition.metric)
    least = baseline(data.competition.metric, labels, whole.probabilities.shape[1])
    majority = f"majority class {least}"
    console.print(f"{name}: OOF {format_score(found)} on {found.n} given labels ({majority}): {path}", **PLAIN)
    return RecipeResult(config, tuple(results), path, right, seconds)
