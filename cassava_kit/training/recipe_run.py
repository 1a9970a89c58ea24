"""Recipes and probes over folds, their out-of-fold predictions joined: `train_recipe`, `train_recipes` for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

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
from cassava_kit.training.side_by_side import PROCESS_BYTES, choose_jobs, choose_threads, cpu_share, fold_bytes
from cassava_kit.training.sources import PROBE_ROOTS, ROOTS, Roots
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
class Planned:
    """A recipe or a probe to train, with its options; `after` names a job that makes files of the options."""

    config: RunConfig | ProbeConfig
    options: TrainOptions
    after: str | None = None
    roots: ClassVar[Roots]

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.config)

    def label(self, fold: int) -> str:
        """Return the name of a fold's job and of its bar."""
        return f"{self.name} fold{fold}"

    def find_done(self, data: TrainData, folds: Sequence[int], out: Path) -> dict[str, FoldResult]:
        """Return the folds that are trained already, by label; UserError for what cannot be trained."""
        self.check(data, folds)
        if self.after is not None:  # its weights are not there yet: each fold looks at them itself
            return {}
        found: dict[str, FoldResult] = {}
        for fold in folds:
            fingerprint = run_fingerprint(self.config, data, fold, self.options, roots=self.roots)
            done = find_reusable(out / self.name / f"fold{fold}", fingerprint, self.options)
            found |= {} if done is None else {self.label(fold): done}
        return found

    def jobs(self, data: TrainData, folds: Sequence[int], out: Path, *, at_once: int) -> list[Job]:
        """Return a job for each of `folds`, which can be sent to another process."""
        sent = replace(self, options=replace(self.options, tell=tell, threads=self.threads(at_once)))
        after = () if self.after is None else (self.after,)
        return [Job(self.label(fold), sent.train_fold, (data, fold, out), after) for fold in folds]

    def check(self, data: TrainData, folds: Sequence[int]) -> None:
        """Refuse what cannot be trained, before anything is; files of an earlier job are not looked for."""
        raise NotImplementedError

    def prepare(self, data: TrainData) -> None:
        """Do what all folds need once, in this process."""

    def width(self, n_folds: int) -> int:
        """Return how many of so many folds can be trained at once."""
        return n_folds

    def bytes(self) -> int:
        """Return about how much memory the process of a fold takes."""
        return PROCESS_BYTES

    def threads(self, at_once: int) -> int:
        """Return torch's threads for a fold, of which so many are trained at once."""
        return cpu_share(at_once)

    def train_fold(self, data: TrainData, fold: int, out: Path) -> FoldResult:
        """Train one fold, in whichever process this is called."""
        raise NotImplementedError


@dataclass(frozen=True)
class PlannedRecipe(Planned):
    """A recipe to train, with its options."""

    config: RunConfig
    roots = ROOTS

    def check(self, data: TrainData, folds: Sequence[int]) -> None:
        """Refuse what cannot be trained; say where the first weights are random though the recipe's are not."""
        options = self.options if self.after is None else replace(self.options, weights=None)
        check_run(self.config, data, folds, options)
        wanted = initial_weights(self.config)
        if self.options.weights is None and wanted is not None and _is_first(self.options.devices):
            tell(f"{self.config.recipe} starts from random weights, not from {wanted}: give --weights FILE")

    def prepare(self, data: TrainData) -> None:
        """Decode the images into the recipe's pixel cache, where it has one."""
        if self.options.cache is not None:
            from cassava_kit.training.loaders import fill_cache

            fill_cache(self.config, data.paths(data.folds.frame), self.options.cache)

    def bytes(self) -> int:
        """Return about how much memory the process of a fold takes."""
        return fold_bytes(self.config)

    def threads(self, at_once: int) -> int:
        """Return torch's threads for a fold: one for a small network."""
        return choose_threads(self.config, at_once)

    def train_fold(self, data: TrainData, fold: int, out: Path) -> FoldResult:
        """Train one fold, in whichever process this is called."""
        from cassava_kit.training.fit import fit_fold  # Lightning takes seconds to import: not where nothing is trained

        return fit_fold(self.config, data, fold, out, options=self.options)


@dataclass(frozen=True)
class PlannedProbe(Planned):
    """A probe to fit, with its options: the first fold finds the network's features, the others read them back."""

    config: ProbeConfig
    roots = PROBE_ROOTS

    def jobs(self, data: TrainData, folds: Sequence[int], out: Path, *, at_once: int) -> list[Job]:
        """Return a job for each of `folds`; all wait for the first."""
        listed = super().jobs(data, folds, out, at_once=at_once)
        return [*listed[:1], *(replace(job, after=(*job.after, listed[0].name)) for job in listed[1:])]

    def check(self, data: TrainData, folds: Sequence[int]) -> None:
        """Refuse what cannot be probed, where its weights are there."""
        from cassava_kit.training.probe import check_probe

        if self.after is None:
            check_probe(self.config, data, folds, self.options)

    def width(self, n_folds: int) -> int:
        """Return one: nearly all its time goes into the features."""
        return min(1, n_folds)

    def train_fold(self, data: TrainData, fold: int, out: Path) -> FoldResult:
        """Fit one fold, in whichever process this is called."""
        from cassava_kit.training.probe import fit_probe

        return fit_probe(self.config, data, fold, out, options=self.options)


def train_recipe(
    config: RunConfig,
    table: TrainTable,
    split: Folds,
    out: Path,
    *,
    folds: Sequence[int] | None = None,
    options: TrainOptions | None = None,
    jobs: int | None = None,
) -> RecipeResult:
    """Train a recipe on each of `folds` (default: all), and print a line a fold.

    On a CPU `jobs` folds are trained at once (default: see `choose_jobs`).
    """
    data = TrainData(table, split)
    numbers = list(range(split.n_splits)) if folds is None else list(folds)
    return train_recipes([PlannedRecipe(config, options or TrainOptions())], data, out, folds=numbers, jobs=jobs)[0]


def train_recipes(
    plan: Sequence[Planned],
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
    results = {label: done for one in plan for label, done in one.find_done(data, numbers, out).items()}
    due = [(one, [fold for fold in numbers if one.label(fold) not in results]) for one in plan]
    width = sum(one.width(len(left)) for one, left in due)
    at_once = choose_jobs((one.bytes() for one in plan), width, plan[0].options.devices, jobs)
    with show_progress():
        shown = _is_first(plan[0].options.devices)
        for label, done in results.items() if shown else ():
            _tell_fold(label, done, data)
        for one, left in due:
            if left:
                one.prepare(data)
        waiting = [job for one, left in due for job in one.jobs(data, left, out, at_once=at_once)]
        own = {job.name for job in waiting}

        def ended(name: str, result: Any) -> None:
            if name in own and shown:
                _tell_fold(name, result, data)

        if waiting or first:
            found = run_jobs([*first, *waiting], min(at_once, len(first) + len(waiting)), ended=ended)
            results |= {name: found[name] for name in own}
    return [_join(one, [results[one.label(fold)] for fold in numbers], data, out) for one in plan]


def _is_first(devices: Devices) -> bool:
    """Return whether this process prints and joins: the only one, or the first of a run's."""
    return devices.processes == 1 or is_main()


def _tell_fold(label: str, result: FoldResult, data: TrainData) -> None:
    """Print a fold's score."""
    how = "reused" if result.reused else f"{result.seconds:.0f} s"
    tell(f"{label}: {score_fold(result, data)} out of fold ({how})")


def _join(one: Planned, folds: Sequence[FoldResult], data: TrainData, out: Path) -> RecipeResult:
    """Return the result of a run's folds; where these are all, write, score and print their joined predictions."""
    seconds = sum(0.0 if result.reused else result.seconds for result in folds)
    if len(folds) < data.folds.n_splits or not _is_first(one.options.devices):
        return RecipeResult(one.config, tuple(folds), None, None, seconds)
    path, whole = join_runs(list(folds), data.folds, out, one.name)
    labels, metric = data.folds.scored["label"].to_numpy(), data.competition.metric
    found = score(labels, whole.probabilities, metric)
    least = baseline(metric, labels, whole.probabilities.shape[1])
    tell(f"{one.name}: OOF {format_score(found)} on {found.n} given labels (majority class {least}): {path}")
    return RecipeResult(one.config, tuple(folds), path, accuracy(labels, whole.probabilities), seconds)
