"""One recipe over its folds: each fold trained or reused, the scores told, the out-of-fold predictions joined."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cassava_kit.competition import Competition, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.metrics import Score, accuracy, baseline, measure, told
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import is_main
from cassava_kit.training.fit import train_fold
from cassava_kit.training.loaders import fill_cache
from cassava_kit.training.recipes import first_weights, run_name
from cassava_kit.training.rows import Session, TrainData
from cassava_kit.training.run_dir import FoldResult, fingerprint, join_runs, reusable

PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False}


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's folds and, where all were trained, its joined out-of-fold file and score."""

    config: RunConfig
    folds: tuple[FoldResult, ...]
    oof: Path | None
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
    session: Session | None = None,
) -> RecipeResult:
    """Train a recipe on each of `folds` (default: all) and say what came out, a line a fold.

    The session's progress bar and its voice are made here.
    """
    session = session or Session()
    console = Console(stderr=True, file=sys.stderr, quiet=not is_main())
    numbers = list(range(split.n_splits)) if folds is None else list(folds)
    data = TrainData(table, split, competition or current())
    check_run(config, data, numbers, session)
    wanted = first_weights(config)
    if session.weights is None and wanted is not None:
        console.print(f"{config.recipe} starts from random weights, not from {wanted}: give --weights FILE", **PLAIN)
    results = []
    name = run_name(config)
    for fold in numbers:  # all refusals before the first fold is trained
        reusable(out / name / f"fold{fold}", fingerprint(config, data, fold, session), session)
    if session.cache is not None:
        fill_cache(config, data.paths(split.frame), session.cache)
    with training_bar(console) as progress:
        tell = partial(progress.console.print, **PLAIN)
        session = replace(session, progress=progress, tell=tell)
        for fold in numbers:
            result = train_fold(config, data, fold, out, session=session)
            how = "reused" if result.reused else f"{result.seconds:.0f} s"
            right = str(result.score) if data.competition.metric == "accuracy" else told(result.score)
            tell(f"{name} fold {fold}: {right} out of fold ({how})")
            results.append(result)
    seconds = sum(0.0 if result.reused else result.seconds for result in results)
    if len(numbers) < split.n_splits or not is_main():
        return RecipeResult(config, tuple(results), None, None, seconds)
    path, whole = join_runs(results, split, out, name)
    labels = split.scored["label"].to_numpy()
    score = accuracy(labels, whole.probabilities)
    found = measure(data.competition.metric, labels, whole.probabilities)
    least = baseline(data.competition.metric, labels, whole.probabilities.shape[1])
    console.print(f"{name}: OOF {told(found)} on {score.n} given labels (majority class {least}): {path}", **PLAIN)
    return RecipeResult(config, tuple(results), path, score, seconds)


def training_bar(console: Console) -> Progress:
    """The bar of a training: steps, figures of the last epoch, time gone and to come."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
