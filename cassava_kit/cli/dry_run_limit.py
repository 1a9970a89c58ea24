"""A dry run within a time limit: which members are trained, when training ends: `fit_members`, `until`.

Members are taken by the rule of `training.plan`: one of each family first, those that take the least time first.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cassava_kit.cli.dry_run_plan import format_seconds
from cassava_kit.errors import Stopped, UserError
from cassava_kit.inference.clock import Clock
from cassava_kit.training.config import RunConfig
from cassava_kit.training.plan import WeekCandidate, by_rule, family_of
from cassava_kit.training.recipe_run import PlannedRecipe

# Of the limit, what is kept for the notebook, which labels the test images within it; the rest trains.
NOTEBOOK_SHARE = 0.15
# Training may take longer than a few timed steps say: members are chosen as if it took so many times as long.
SLOWER = 1.25


@dataclass(frozen=True)
class Fitted:
    """Recipes to train, in their order, each with its expected seconds, and the names of those left out."""

    recipes: tuple[PlannedRecipe, ...]
    seconds: tuple[float, ...]
    left_out: tuple[str, ...]
    fewer_epochs: bool = False

    def jobs(self, wanted: Mapping[str, float], n_splits: int) -> dict[str, float]:
        """Return the expected seconds of their jobs alone, out of those of all recipes that were `wanted`."""
        kept = {label for one in self.recipes for label in _labels(one, n_splits)}
        return {label: seconds for label, seconds in wanted.items() if label in kept}

    def __str__(self) -> str:
        rows = zip(self.recipes, self.seconds, strict=True)
        listed = ", ".join(f"{one.name} {format_seconds(each)}" for one, each in rows)
        lines = [f"trained within the limit: {listed}"]
        if self.fewer_epochs:
            lines.append(f"fewer epochs than the recipe's: {self.recipes[0].config.epochs}, for lack of time")
        if self.left_out:
            lines.append(f"left out for lack of time: {', '.join(self.left_out)}")
        return "; ".join(lines)


def training_seconds(clock: Clock) -> float:
    """Return the seconds that are left for training; infinite without a limit."""
    return float("inf") if clock.limit is None else clock.limit * (1 - NOTEBOOK_SHARE) - clock.used


def notebook_minutes(clock: Clock) -> float | None:
    """Return the minutes that the notebooks have, at least one; None without a limit."""
    return None if clock.limit is None else max(1.0, round(clock.left / 60, 1))


def fit_members(
    recipes: Sequence[PlannedRecipe], jobs: Mapping[str, float], available: float, *, n_splits: int, at_once: int
) -> Fitted:
    """Return the recipes that fit into `available` seconds of training.

    Args:
        recipes: those that are wanted.
        jobs: expected seconds of each job that is still to be done, by its label; a recipe's pretraining is one.
        available: seconds.
        n_splits: folds of each recipe.
        at_once: jobs that run at the same time.

    Raises:
        UserError: not even one epoch of the shortest recipe fits.
    """
    whole = {one.name: _seconds(one, jobs, n_splits) / at_once for one in recipes}
    # The rule compares hours alone, so the share of the processes changes nothing of the order.
    listed = [
        WeekCandidate(one.name, family_of(one.config), whole[one.name] / 3600, tuple(range(n_splits)), "")
        for one in recipes
    ]
    by_name = {one.name: one for one in recipes}
    chosen: list[str] = []
    left = available / SLOWER
    for each in by_rule(listed):
        if whole[each.name] <= left:
            chosen.append(each.name)
            left -= whole[each.name]
    if chosen:
        rest = tuple(one.name for one in recipes if one.name not in chosen)
        return Fitted(tuple(by_name[name] for name in chosen), tuple(whole[name] for name in chosen), rest)
    shortest = min(recipes, key=lambda one: whole[one.name])
    return _shorten(shortest, whole[shortest.name], available, [one.name for one in recipes if one is not shortest])


def _seconds(one: PlannedRecipe, jobs: Mapping[str, float], n_splits: int) -> float:
    """Return the seconds of a recipe's folds and of what they wait for, on one process."""
    return sum(jobs.get(label, 0.0) for label in _labels(one, n_splits))


def _labels(one: PlannedRecipe, n_splits: int) -> list[str]:
    """Return the labels of a recipe's folds and of what they wait for."""
    return [*(one.label(fold) for fold in range(n_splits)), *([one.after] if one.after else [])]


def _shorten(one: PlannedRecipe, seconds: float, available: float, left_out: Sequence[str]) -> Fitted:
    """Return the recipe with as many epochs as fit; a changed recipe starts from nothing, so all its folds count."""
    epoch = seconds / one.config.epochs
    epochs = int(max(0.0, available) / SLOWER / epoch)
    if epochs < 1:
        raise UserError(
            f"one epoch of {one.name}, the shortest recipe, takes about {format_seconds(epoch)} over all folds, and "
            f"{format_seconds(max(0.0, available))} are left for training: give a larger --time-limit"
        )
    fitted = replace(one, config=with_epochs(one.config, epochs))
    return Fitted((fitted,), (epoch * epochs,), tuple(left_out), fewer_epochs=True)


def with_epochs(config: RunConfig, epochs: int) -> RunConfig:
    """Return a shorter run: what is counted in epochs (warm-up, averaging, plain epochs) shrinks in proportion."""
    share = epochs / config.epochs
    names = ("warmup_epochs", "swa_epochs", "plain_epochs", "unfreeze_every")
    counted = {name: getattr(config, name) for name in names}
    shrunk = {name: value * share if name == "warmup_epochs" else int(value * share) for name, value in counted.items()}
    changes = [f"{name}={value:g}" for name, value in shrunk.items() if counted[name]]
    return config.with_settings([f"epochs={epochs}", *changes])


def is_time_up(stopped: Stopped) -> bool:
    """Return whether `until` ended the block, and not the user."""
    return stopped.number == signal.SIGALRM


@contextmanager
def until(seconds: float) -> Iterator[None]:
    """Raise `Stopped` in the block after so many seconds, as Ctrl-C does; in the main thread alone."""

    def stop(number: int, _: object) -> None:
        raise Stopped("the time for training is over", number=number)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
