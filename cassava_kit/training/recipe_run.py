"""Recipes and probes over folds, their out-of-fold predictions joined: `train_recipe`, `train_recipes` for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cassava_kit.competition import Competition, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.progress import show_progress, tell
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.metrics import Score, accuracy, baseline, format_score, score
from cassava_kit.training.checks import check_run
from cassava_kit.training.config import ProbeConfig, RunConfig
from cassava_kit.training.devices import Devices, is_main
from cassava_kit.training.recipes import initial_weights, run_name
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.run_dir import FoldResult, find_reusable, join_runs, run_fingerprint, score_fold
from cassava_kit.training.side_by_side import choose_jobs, choose_threads, cpu_share, use_threads
from cassava_kit.training.workers import Job, run_jobs


@dataclass(frozen=True)
class RecipeResult:
    """A recipe's or probe's folds and, where all were trained, its joined out-of-fold file and score."""

    config: RunConfig | ProbeConfig
    folds: tuple[FoldResult, ...]
    oof_file: Path | None
    score: Score | None
    seconds: float

    @property
    def reused(self) -> bool:
        """Whether nothing had to be trained."""
        return all(result.reused for result in self.folds)


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe to train, with its options; `after` names a job whose result the options' files are made by."""

    config: RunConfig
    options: TrainOptions
    after: str | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.config)

    def label(self, fold: int) -> str:
        """Return the name of a fold's job and of its bar."""
        return f"{self.name} fold{fold}"


@dataclass(frozen=True)
class PlannedProbe:
    """A probe to fit, with its options: one job for all its folds, because they share the network's features."""

    config: ProbeConfig
    options: TrainOptions
    after: str | None = None

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.config)


def train_recipe(
    config: RunConfig,
    table: TrainTable,
    split: Folds,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    competition: Competition | None = None,
    options: TrainOptions | None = None,
    jobs: int | None = None,
) -> RecipeResult:
    """Train a recipe on each of `folds` (default: all), and print a line a fold.

    On a CPU `jobs` folds are trained at once (default: see `choose_jobs`).
    """
    data = TrainData(table, split, competition or current())
    numbers = list(range(split.n_splits)) if folds is None else list(folds)
    return train_recipes([PlannedRecipe(config, options or TrainOptions())], data, out, folds=numbers, jobs=jobs)[0]


def train_recipes(
    plan: Sequence[PlannedRecipe | PlannedProbe],
    data: TrainData,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    jobs: int | None = None,
    first: Sequence[Job] = (),
) -> list[RecipeResult]:
    """Train several recipes and probes, each on each of `folds`; all share the processes. Print a line a fold.

    `first` are further jobs, whose names the recipes' `after` may have. What has been trained already is reused.

    Raises:
        UserError: Something cannot be trained, said before the first fold; or folds failed, which are named when the
            others have ended.
    """
    numbers = list(range(data.folds.n_splits)) if folds is None else list(folds)
    recipes = [one for one in plan if isinstance(one, PlannedRecipe)]
    probes = [one for one in plan if isinstance(one, PlannedProbe)]
    for probe in probes:
        _check_probe(probe, data, numbers)
    results = {label: done for one in recipes for label, done in _find_done(one, data, numbers, out).items()}
    due = len(recipes) * len(numbers) - len(results) + len(probes)
    at_once = choose_jobs([one.config for one in recipes], due, plan[0].options.devices, jobs)
    with show_progress():
        shown = _is_first(plan[0].options.devices)
        for label, done in results.items() if shown else ():
            _tell_fold(label, done, data)
        for one in recipes:
            _fill_cache(one, data, [label for fold in numbers if (label := one.label(fold)) not in results])
        waiting = []
        for one, fold in ((one, fold) for one in recipes for fold in numbers if one.label(fold) not in results):
            options = replace(one.options, tell=tell, threads=choose_threads(one.config, at_once))
            after = () if one.after is None else (one.after,)
            waiting.append(Job(one.label(fold), train_fold_job, (one.config, data, fold, out, options), after))
        for probe in probes:
            after = () if probe.after is None else (probe.after,)
            options = replace(probe.options, tell=tell, threads=cpu_share(at_once))
            given = (probe.config, data, out, options, numbers)
            waiting.append(Job(probe.name, train_probe_job, given, after))

        def ended(name: str, result: Any) -> None:
            if isinstance(result, FoldResult) and shown:
                _tell_fold(name, result, data)

        found: dict[str, Any] = {}
        if waiting or first:
            found = run_jobs([*first, *waiting], min(at_once, len(first) + len(waiting)), ended=ended)
            results |= {job.name: found[job.name] for job in waiting if isinstance(found[job.name], FoldResult)}

    def folds_of(one: PlannedRecipe | PlannedProbe) -> list[FoldResult]:
        if isinstance(one, PlannedRecipe):
            return [results[one.label(fold)] for fold in numbers]
        return list(found[one.name])

    return [_join(one, folds_of(one), data, out) for one in plan]


def train_fold_job(config: RunConfig, data: TrainData, fold: int, out: Path, options: TrainOptions) -> FoldResult:
    """Train one fold, in whichever process this is called."""
    from cassava_kit.training.fit import fit_fold  # Lightning takes seconds to import: not where nothing is trained

    return fit_fold(config, data, fold, out, options=options)


def train_probe_job(
    config: ProbeConfig, data: TrainData, out: Path, options: TrainOptions, folds: Sequence[int]
) -> list[FoldResult]:
    """Fit a probe's folds, in whichever process this is called; it says and joins them itself."""
    from cassava_kit.training.probe import train_probe

    with use_threads(options.threads or cpu_share(1)):
        return train_probe(config, data, out, options=options, folds=folds)


def _check_probe(probe: PlannedProbe, data: TrainData, folds: Sequence[int]) -> None:
    """Refuse what cannot be probed, before anything is trained; its weights may come from an earlier job."""
    from cassava_kit.training.probe import check_probe

    if probe.after is None:
        check_probe(probe.config, data, folds, probe.options)


def _fill_cache(one: PlannedRecipe, data: TrainData, due: Sequence[str]) -> None:
    """Decode the images into the recipe's pixel cache, where it has one and folds are due."""
    if one.options.cache is not None and due:
        from cassava_kit.training.loaders import fill_cache

        fill_cache(one.config, data.paths(data.folds.frame), one.options.cache)


def _is_first(devices: Devices) -> bool:
    """Return whether this process prints and joins: the only one, or the first of a run's."""
    return devices.processes == 1 or is_main()


def _find_done(one: PlannedRecipe, data: TrainData, folds: Sequence[int], out: Path) -> dict[str, FoldResult]:
    """Return the folds that are trained already, by label; UserError for what cannot be trained, before any fold is."""
    if one.after is not None:  # its weights are not there yet: each fold looks at them itself
        check_run(one.config, data, folds, replace(one.options, weights=None))
        return {}
    check_run(one.config, data, folds, one.options)
    wanted = initial_weights(one.config)
    if one.options.weights is None and wanted is not None and _is_first(one.options.devices):
        tell(f"{one.config.recipe} starts from random weights, not from {wanted}: give --weights FILE")
    found: dict[str, FoldResult] = {}
    for fold in folds:
        fingerprint = run_fingerprint(one.config, data, fold, one.options)
        done = find_reusable(out / one.name / f"fold{fold}", fingerprint, one.options)
        found |= {} if done is None else {one.label(fold): done}
    return found


def _tell_fold(label: str, result: FoldResult, data: TrainData) -> None:
    """Print a fold's score."""
    how = "reused" if result.reused else f"{result.seconds:.0f} s"
    tell(f"{label}: {score_fold(result, data)} out of fold ({how})")


def _join(one: PlannedRecipe | PlannedProbe, folds: Sequence[FoldResult], data: TrainData, out: Path) -> RecipeResult:
    """Return the result of a run's folds; where these are all, write and score their joined predictions."""
    seconds = sum(0.0 if result.reused else result.seconds for result in folds)
    if len(folds) < data.folds.n_splits or not _is_first(one.options.devices):
        return RecipeResult(one.config, tuple(folds), None, None, seconds)
    path, whole = join_runs(list(folds), data.folds, out, one.name)
    labels = data.folds.scored["label"].to_numpy()
    if isinstance(one, PlannedRecipe):  # a probe has said it
        metric = data.competition.metric
        found = score(labels, whole.probabilities, metric)
        least = baseline(metric, labels, whole.probabilities.shape[1])
        tell(f"{one.name}: OOF {format_score(found)} on {found.n} given labels (majority class {least}): {path}")
    return RecipeResult(one.config, tuple(folds), path, accuracy(labels, whole.probabilities), seconds)
