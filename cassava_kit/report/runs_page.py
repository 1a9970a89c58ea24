"""The page of the verb `report`: runs compared, what is proved, and each run alone; entry point `write_report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, Task, common_task, current
from cassava_kit.data.folds import Folds
from cassava_kit.data.table import read_table
from cassava_kit.errors import UserError
from cassava_kit.evidence.calibration import BINS
from cassava_kit.evidence.compare import Comparison
from cassava_kit.evidence.metrics import LESS_IS_BETTER, METRIC_NAMES, format_score, gain
from cassava_kit.report import charts
from cassava_kit.report.charts import Chart
from cassava_kit.report.page import check_out, number, short_names, slug, write_page
from cassava_kit.report.runs import Run, differing_settings, find_runs, findings
from cassava_kit.report.runs_scores import (
    ScoredRun,
    compare_pairs,
    majority_of,
    read_split,
    recalls,
    score_run,
    worst_mistakes,
)
from cassava_kit.report.thumbnails import thumbnails
from cassava_kit.training.findings import ONE_CLASS_SHARE

MISTAKES = 24
INTERVAL_Z = 1.96


@dataclass(frozen=True)
class Report:
    """Runs and, where labels are known, their scores; `baseline` answers the majority class on all their rows."""

    runs: list[Run]
    folds: Folds | None
    scored: list[ScoredRun]
    baseline: ScoredRun | None
    pairs: list[Comparison]
    task: Task
    title: str

    @property
    def metric_name(self) -> str:
        """Return what runs are ranked by, in words."""
        return METRIC_NAMES[self.task.metric]


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    folds: Path | None = None,
    data: Path | None = None,
    competition: Competition | None = None,
) -> str:
    """Read, check and score runs, write the page and its PNGs, and return a line for the user."""
    competition = competition or current()
    check_out(out)
    image_dir = None if data is None else data / competition.train_images
    if image_dir is not None and not image_dir.is_dir():
        raise FileNotFoundError(f"no folder {image_dir}; --data must be the competition folder")
    report = gather_report(runs, folds=folds, data=data, competition=competition)
    keys = unique_slugs([run.name for run in report.runs])
    made = report_charts(report, keys)
    return write_page(out, "report.html", made, page_values(report, keys, image_dir))


def gather_report(
    runs: Sequence[Path], *, folds: Path | None = None, data: Path | None = None, competition: Competition | None = None
) -> Report:
    """Score runs on the rows they held out, and the majority class on the same rows; compare every pair.

    Without fold file and competition folder no label is known: the page then has what the runs say of themselves.
    """
    competition = competition or current()
    found = find_runs(runs)
    table = None if data is None else read_table(data / competition.train_csv, competition)
    split = read_split(found, folds, table)
    task = _task(found, split) or competition.task
    title = competition.title if competition.slug == task.competition else task.competition
    if split is None:
        return Report(found, None, [], None, [], task, title)
    _check_labels(split, table)
    scored = [one for run in found if (one := score_run(run, split, task.metric)) is not None]
    if not scored:
        return Report(found, split, [], None, [], task, title)
    widths = {one.name: one.probabilities.shape[1] for one in scored}
    if len(set(widths.values())) > 1:
        shown = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise UserError(f"the runs must predict the same classes, got {shown}; report runs of one competition together")
    rows = np.unique(np.concatenate([one.rows for one in scored]))
    baseline = majority_of(split, rows, scored[0].probabilities.shape[1], task.metric)
    return Report(found, split, scored, baseline, compare_pairs([baseline, *scored]), task, title)


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


def unique_slugs(names: Sequence[str]) -> list[str]:
    """Return a distinct name for each run that is safe in file names and anchors."""
    keys: list[str] = []
    for name in names:
        key, n = slug(name), 2
        while key.lower() in (known.lower() for known in keys):
            key, n = f"{slug(name)}-{n}", n + 1
        keys.append(key)
    return keys


def report_charts(report: Report, keys: Sequence[str]) -> list[Chart]:
    """Draw the scores of all runs, then each run's curves, confusion, recall and calibration."""
    made = [_scores_chart(report)] if report.scored else []
    by_name = {one.name: one for one in report.scored}
    for run, key in zip(report.runs, keys, strict=True):
        if run.metrics:
            columns = {k: {str(c): m[c].tolist() for c in m if c != "note"} for k, m in run.metrics.items()}
            made.append(charts.curves(f"{key}-curves", f"Loss and accuracy of {run.name} by epoch.", columns))
        if run.name in by_name:
            made += _score_charts(by_name[run.name], key, _class_names(report, by_name[run.name]))
    return made


def _scores_chart(report: Report) -> Chart:
    assert report.baseline is not None
    scores = [(one.name, one.score) for one in report.scored]
    half = [INTERVAL_Z * score.standard_error for _, score in scores]
    values = np.array([(s.value, s.value - h, s.value + h) for (_, s), h in zip(scores, half, strict=True)])
    better = ", less is better" if report.task.metric in LESS_IS_BETTER else ""
    alt = f"Out-of-fold {report.metric_name} with 95 % intervals{better}; the broken line is the majority's."
    return charts.intervals("scores", alt, [n for n, _ in scores], values, zero=report.baseline.score.value)


def _score_charts(one: ScoredRun, key: str, names: Sequence[str]) -> list[Chart]:
    right = one.predicted == one.labels
    confidence = one.probabilities.max(axis=1)
    on = f"{one.name}, {len(one.rows):,} out-of-fold rows"
    confusion = f"Confusion matrix of {on}; shares of each row."
    recall = f"Recall of each class with 95 % intervals: {on}."
    calibration = f"Accuracy at each confidence: {on}. Points on the broken line are true."
    return [
        charts.confusion_matrix(f"{key}-confusion", confusion, names, one.confusion),
        charts.intervals(f"{key}-recall", recall, names, recalls(one)),
        charts.reliability(f"{key}-calibration", calibration, confidence, right, bins=BINS),
    ]


def _class_names(report: Report, one: ScoredRun) -> list[str]:
    """Return short class names; numbers for classes that the competition does not have."""
    names = short_names(report.task.classes)
    return [names[k] if k < len(names) else f"class {k}" for k in range(one.probabilities.shape[1])]


def labels_seen(runs: Sequence[Run]) -> list[str]:
    """Return, for each run, how labels of the rows that it is scored on came into it, as its files say."""
    files = [(run.name, file) for run in runs for file in (*run.parts.values(), *([run.whole] if run.whole else []))]
    notes = [f"{name}: {text}" for name, file in files if file.header for text in file.header.labels_seen]
    return list(dict.fromkeys(notes))


def page_values(report: Report, keys: Sequence[str], image_dir: Path | None) -> dict[str, Any]:
    """Return the values that the template shows."""
    by_name = {one.name: one for one in report.scored}
    mistakes = {one.name: mistakes_of(report, one) for one in report.scored}
    wanted = [name for rows in mistakes.values() for name in rows["image_id"]]
    return {
        "report": report,
        "runs": list(zip(report.runs, keys, strict=True)),
        "scored": by_name,
        "head": headline(report),
        "score_rows": score_rows(report),
        "labels_seen": labels_seen(report.runs),
        "shown_score": {one.name: format_score(one.score) for one in report.scored},
        "stored_rows": stored_rows(report),
        "pair_rows": [_pair_row(pair) for pair in report.pairs],
        "settings": differing_settings([run for run in report.runs if run.configs]),
        "configured": [run.name for run in report.runs if run.configs],
        "findings": {run.name: findings(run) for run in report.runs},
        "one_class": {one.name: find_collapsed_class(one) for one in report.scored},
        "never": {one.name: never_predicted(report, one) for one in report.scored},
        "last_rows": {run.name: _last_rows(run) for run in report.runs},
        "recall_rows": {one.name: _recall_rows(report, one) for one in report.scored},
        "calibrations": {one.name: one.calibration for one in report.scored},
        "mistakes": {name: rows.to_dict("records") for name, rows in mistakes.items()},
        "pictures": None if image_dir is None else thumbnails(image_dir, wanted),
        "classes": _class_names(report, report.scored[0]) if report.scored else short_names(report.task.classes),
    }


def mistakes_of(report: Report, one: ScoredRun) -> pd.DataFrame:
    """Return the run's worst mistakes."""
    assert report.folds is not None
    return worst_mistakes(one, report.folds, MISTAKES)


def headline(report: Report) -> str:
    """Return the page's first sentences: classes never predicted, then the best run and whether that is proved."""
    if report.baseline is None:
        return "No run has finished a fold whose labels are known, so that nothing is scored here."
    metric = report.task.metric
    ranked = sorted(report.scored, key=lambda one: -gain(metric, 0.0, one.score.value))
    best = ranked[0]
    missing = [f"{one.name} never predicts {text}" for one in ranked if (text := never_predicted(report, one))]
    first = f"{'; '.join(missing)}. " if missing else ""
    text = f"{best.name} has the best {report.metric_name}, {_figure(best)} on {best.score.n:,} out-of-fold rows"
    others = [one.name for one in ranked[1:2]] + [report.baseline.name]
    verdicts = [_against(report, best.name, other) for other in others]
    return f"{first}{text}: {', and '.join(filter(None, verdicts))}."


def never_predicted(report: Report, one: ScoredRun) -> str:
    """Return the classes that have rows and no prediction, with their rows; empty for a run that predicts them all."""
    names, given, predicted = _class_names(report, one), one.confusion.sum(axis=1), one.confusion.sum(axis=0)
    missing = np.flatnonzero((predicted == 0) & (given > 0))
    return ", ".join(f"{names[k]} ({number(int(given[k]), 'row')})" for k in missing)


def _against(report: Report, best: str, other: str) -> str:
    """Return in words whether the pair's difference is proved."""
    for pair in report.pairs:
        if set(pair.names) == {best, other}:
            shown = pair if pair.names[1] == best else pair.reverse()
            way = "better" if shown.difference >= 0 else "worse"
            return f"{'proved' if shown.proved else 'not proved'} {way} than {other} ({shown.verdict().split(':')[0]})"
    return f"with no row in common with {other}"


def find_collapsed_class(one: ScoredRun) -> tuple[int, float] | None:
    """Return the class of nearly all predictions and its share; None for a run without one."""
    counts = one.confusion.sum(axis=0)
    share = float(counts.max() / counts.sum())
    return (int(counts.argmax()), share) if share >= ONE_CLASS_SHARE else None


def _figure(one: ScoredRun) -> str:
    """Return a run's score and its standard error, without the metric's name."""
    return f"{one.score.value:.4f} ± {one.score.standard_error:.4f}"


def score_rows(report: Report) -> list[dict[str, str]]:
    """Return a row a run by heading, the majority class last: score, other figures, rows, folds and time."""
    seconds = {run.name: run.seconds for run in report.runs}
    rows = []
    for one in [*report.scored, *([report.baseline] if report.baseline else [])]:
        beside = {"accuracy": f"{(one.predicted == one.labels).mean():.4f}", "log loss": f"{one.logloss:.4f}"}
        time = f"{seconds.get(one.name, 0) / 60:.1f} min" if seconds.get(one.name) else "–"
        figures = {
            **{name: figure for name, figure in beside.items() if name != report.metric_name},
            "ECE": f"{one.ece:.4f}",
            "mean recall": f"{np.nanmean(recalls(one)[:, 0]):.4f}",
            "rows": f"{one.score.n:,}",
            "folds": ", ".join(map(str, np.unique(one.fold))),
        }
        rows.append({"run": one.name, f"{report.metric_name} ± s.e.": _figure(one), **figures, "training": time})
    return rows


def stored_rows(report: Report) -> list[list[str]]:
    """Return the figures in the finished folds' `run.json`: run, fold, accuracy ± standard error, rows."""
    return [
        [run.name, str(k), f"{done['oof_accuracy']:.4f} ± {done['oof_standard_error']:.4f}", f"{done['oof_rows']:,}"]
        for run in report.runs
        for k, done in run.done.items()
        if {"oof_accuracy", "oof_standard_error", "oof_rows"} <= done.keys()
    ]


def _pair_row(pair: Comparison) -> list[str]:
    low, high = pair.interval
    return [
        f"{pair.names[1]} against {pair.names[0]}",
        f"{pair.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        *([f"{pair.only_b:,} : {pair.only_a:,}"] if pair.only_a is not None else []),
        f"{pair.p_value:.3g}",
        f"{pair.adjusted_p:.3g}",
        f"{pair.a.n:,}",
        "proved" if pair.proved else "not proved",
    ]


def _last_rows(run: Run) -> list[list[str]]:
    """Return a row a fold: number of epochs, and the figures of the last one."""
    columns = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return [
        [f"fold {k}", str(len(m)), *(f"{m[column].iloc[-1]:.4f}" if column in m else "–" for column in columns)]
        for k, m in run.metrics.items()
    ]


def _recall_rows(report: Report, one: ScoredRun) -> list[list[str]]:
    """Return a row a class: recall with its interval, precision, rows, predictions."""
    confusion, rows = one.confusion, []
    for k, (name, (recall, low, high)) in enumerate(zip(_class_names(report, one), recalls(one), strict=True)):
        given, predicted = int(confusion[k].sum()), int(confusion[:, k].sum())
        precision = f"{confusion[k, k] / predicted:.3f}" if predicted else "–"
        shown = f"{recall:.3f} ({low:.3f} to {high:.3f})" if given else "–"
        rows.append([name, shown, precision, f"{given:,}", f"{predicted:,}"])
    return rows
