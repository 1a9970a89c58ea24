"""Runs, the best first, with their scores and every pair's comparison; entry point `gather_report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, Task, common_task, current, labels_are_numbers
from cassava_kit.data.folds import Folds
from cassava_kit.data.table import read_labels
from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import Comparison
from cassava_kit.evidence.metrics import METRIC_NAMES, gain
from cassava_kit.report.page import name_classes
from cassava_kit.report.runs import Run, find_runs
from cassava_kit.report.runs_scores import ScoredRun, compare_pairs, majority_of, read_split, score_run


@dataclass(frozen=True)
class Report:
    """Runs and, where labels are known, their scores, both in the order of `rank_runs`.

    `baseline` answers the majority class on all their rows. `pairs` begin with the winner's: each compares a run with
    one ranked below it; the majority's come last. `note` names the runs that other splits part from
    these, in a sentence. `numbered`: the competition's own labels are numbers.
    """

    runs: list[Run]
    folds: Folds | None
    scored: list[ScoredRun]
    baseline: ScoredRun | None
    pairs: list[Comparison]
    task: Task
    title: str
    note: str = ""
    numbered: bool = True

    @property
    def metric_name(self) -> str:
        """Return what runs are ranked by, in words."""
        return METRIC_NAMES[self.task.metric]

    def class_names(self) -> list[str]:
        """Return short class names; numbers for classes that the competition does not have."""
        names = name_classes(self.task.classes, numbered=self.numbered).short
        k = self.scored[0].probabilities.shape[1] if self.scored else len(names)
        return [*names[:k], *(f"class {n}" for n in range(len(names), k))]


def gather_report(
    runs: Sequence[Path], *, folds: Path | None = None, data: Path | None = None, competition: Competition | None = None
) -> Report:
    """Score runs on the rows they held out, and the majority class on the same rows; compare every pair.

    Without fold file and competition folder no label is known: the page then has what the runs say of themselves.
    With a fold file runs of another split are left out where others fit it.

    Raises:
        UserError: No run fits the fold file, or there is none, and the runs to score are of several splits.
    """
    competition = competition or current()
    found = find_runs(runs)
    table = None if data is None else read_labels(data, competition)
    several = _several_splits(found) if folds is None else ""
    if several and table is not None:
        raise UserError(several)
    split = read_split(found, folds, table)
    found, note = (found, several) if folds is None or split is None else _leave_out(found, split)
    task = _task(found, split) or competition.task
    numbered = labels_are_numbers(task, competition)
    title = competition.title if competition.slug == task.competition else task.competition
    if split is None:
        return Report(found, None, [], None, [], task, title, note, numbered)
    _check_labels(split, table)
    scored = rank_runs([one for run in found if (one := score_run(run, split, task.metric)) is not None])
    if not scored:
        return Report(found, split, [], None, [], task, title, note, numbered)
    widths = {one.name: one.probabilities.shape[1] for one in scored}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"the runs must predict the same classes, got {shown}; report runs of one competition together")
    rows = np.unique(np.concatenate([one.rows for one in scored]))
    baseline = majority_of(split, rows, scored[0].probabilities.shape[1], task.metric)
    place = {one.name: n for n, one in enumerate(scored)}
    ordered = sorted(found, key=lambda run: place.get(run.name, len(place)))
    pairs = compare_pairs([baseline, *reversed(scored)])[::-1]
    return Report(ordered, split, scored, baseline, pairs, task, title, note, numbered)


def _several_splits(runs: Sequence[Run]) -> str:
    """Return which runs are of which split, and what to give; empty for runs of one split."""
    of: dict[str, list[Run]] = {}
    for run in runs:
        for hash in sorted(run.splits):
            of.setdefault(hash, []).append(run)
    if len(of) < 2:
        return ""
    shown = "; ".join(f"{', '.join(run.name for run in some)} ({hash[:12]})" for hash, some in of.items())
    named = " ".join(str(run.folder) for run in max(of.values(), key=len))
    return (
        f"expected runs of one split, got {len(of)} splits: {shown}; name the runs of one (report {named}), or give "
        "--folds FILE, which leaves the others out"
    )


def _leave_out(runs: list[Run], split: Folds) -> tuple[list[Run], str]:
    """Return the runs without those of another split, and a sentence that names these; all where none fits."""
    others = [run.name for run in runs if run.splits and split.hash not in run.splits]
    kept = [run for run in runs if run.name not in others]
    if not others or not any(run.parts or run.whole is not None for run in kept):
        return runs, ""
    return kept, f"left out, made on another split than this fold file ({split.hash[:12]}): {', '.join(others)}"


def rank_runs(scored: Sequence[ScoredRun]) -> list[ScoredRun]:
    """Return the runs with the best first; a run that holds out fewer rows than another comes after it."""
    return sorted(scored, key=lambda one: (-len(one.rows), -gain(one.metric, 0.0, one.score.value)))


def _task(runs: Sequence[Run], split: Folds | None) -> Task | None:
    """Return what the fold file and the runs say that they are of; None where no file says it."""
    tasks = {"the fold file": split.task if split else None}
    for run in runs:
        files = {f"{run.name} fold {k}": part for k, part in run.parts.items()}
        files |= {run.name: run.whole} if run.whole is not None else {}
        tasks |= {name: file.header.task for name, file in files.items() if file.header is not None}
    return common_task(tasks) if any(tasks.values()) else None


def _check_labels(split: Folds, table: pd.DataFrame | None) -> None:
    """Refuse a competition folder whose labels differ from the fold file's, or that shares no image with it."""
    if table is None:
        return
    both = split.frame.merge(table, on="image_id", suffixes=("", "_table"))
    differs = both[both["label"] != both["label_table"]]
    if both.empty or len(differs):
        what = f"{differs['image_id'].iloc[0]} has another label there" if len(differs) else "they share no image"
        raise UserError(f"the fold file and --data are of different tables: {what}; give the data of these folds")
