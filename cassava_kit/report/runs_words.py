"""The words and table cells of the page on runs; entry points `find_warnings`, `headline` and `score_rows`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cassava_kit.evidence.compare import Comparison
from cassava_kit.report.page import number, percent
from cassava_kit.report.runs import Run, findings
from cassava_kit.report.runs_gather import Report
from cassava_kit.report.runs_scores import ScoredRun, recalls
from cassava_kit.training.findings import ONE_CLASS_SHARE

WARNED_CLASSES = 6  # of classes that are never predicted, so many are named one by one
CONFUSIONS = 10


def find_warnings(report: Report) -> list[str]:
    """Return what is to be said before any score: runs of nearly one class alone, and classes never predicted."""
    lines = []
    names = report.class_names()
    by_class: dict[int, list[ScoredRun]] = {}
    for one in report.scored:
        stuck = find_collapsed_class(one)
        if stuck:
            lines.append(f"{one.name} predicts {names[stuck[0]]} for {percent(stuck[1], 0)} of its rows.")
            continue
        for k in never_predicted(one):
            by_class.setdefault(k, []).append(one)
    for k, runs in sorted(by_class.items())[:WARNED_CLASSES]:
        rows = max(int(one.confusion[k].sum()) for one in runs)
        named = f"{names[k]} ({number(rows, 'row')})"
        if len(runs) == len(report.scored) > 1:
            lines.append(f"No run predicts {named}.")
        else:
            who = "" if len(report.scored) == 1 else f" by {_list_names([one.name for one in runs])}"
            lines.append(f"{named} is never predicted{who}.")
    if len(by_class) > WARNED_CLASSES:
        rest = len(by_class) - WARNED_CLASSES
        lines.append(f"{rest} more {'class is' if rest == 1 else 'classes are'} never predicted by a run.")
    return lines


def _list_names(names: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def never_predicted(one: ScoredRun) -> list[int]:
    """Return the classes that have rows and no prediction."""
    given, predicted = one.confusion.sum(axis=1), one.confusion.sum(axis=0)
    return [int(k) for k in np.flatnonzero((predicted == 0) & (given > 0))]


def find_collapsed_class(one: ScoredRun) -> tuple[int, float] | None:
    """Return the class of nearly all predictions and its share; None for a run without one."""
    counts = one.confusion.sum(axis=0)
    share = float(counts.max() / counts.sum())
    return (int(counts.argmax()), share) if share >= ONE_CLASS_SHARE else None


def run_warnings(report: Report, one: ScoredRun) -> list[str]:
    """Return what is wrong with a run's predictions, in sentences about it."""
    names, lines = report.class_names(), []
    never, stuck = never_predicted(one), find_collapsed_class(one)
    if stuck:
        lines.append(f"It predicts {names[stuck[0]]} for {percent(stuck[1], 0)} of the rows.")
    if never:
        shown = [f"{names[k]} ({number(int(one.confusion[k].sum()), 'row')})" for k in never[:WARNED_CLASSES]]
        shown += [f"{len(never) - WARNED_CLASSES} more"] if len(never) > WARNED_CLASSES else []
        lines.append(f"It never predicts {_list_names(shown)}.")
    return lines


def doctor_says(run: Run, warnings: Sequence[str], *, scored: bool) -> str:
    """Return that nothing is wrong with a run's curves and predictions; empty where something is, or nothing is known.

    What is wrong is said by `findings` and `run_warnings`.
    """
    if not run.metrics or findings(run) or warnings:
        return ""
    if not scored:
        return "Nothing was found amiss in the curves; without labels the predictions are not examined."
    return "Nothing was found amiss: the curves have no finding, and every class is predicted."


def headline(report: Report) -> str:
    """Return which run is best and whether that is proved."""
    if report.baseline is None:
        return "No run has finished a fold whose labels are known, so that nothing is scored here."
    best = report.scored[0]
    text = f"{best.name} has the best {report.metric_name}, {format_figure(best)} on {best.score.n:,} out-of-fold rows"
    others = [one.name for one in report.scored[1:2]] + [report.baseline.name]
    verdicts = [_against(report, best.name, other) for other in others]
    return f"{text}: {', and '.join(verdicts)}."


def _against(report: Report, best: str, other: str) -> str:
    """Return in words whether the pair's difference is proved."""
    for pair in report.pairs:
        if set(pair.names) == {best, other}:
            shown = pair if pair.names[1] == best else pair.reverse()
            way = "better" if shown.difference >= 0 else "worse"
            return f"{'proved' if shown.proved else 'not proved'} {way} than {other} ({shown.verdict().split(':')[0]})"
    return f"with no row in common with {other}"


def format_figure(one: ScoredRun) -> str:
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
        rows.append({"run": one.name, f"{report.metric_name} ± s.e.": format_figure(one), **figures, "training": time})
    return rows


def stored_rows(report: Report) -> list[list[str]]:
    """Return the figures in the finished folds' `run.json`: run, fold, accuracy ± standard error, rows."""
    return [
        [run.name, str(k), f"{done['oof_accuracy']:.4f} ± {done['oof_standard_error']:.4f}", f"{done['oof_rows']:,}"]
        for run in report.runs
        for k, done in run.done.items()
        if {"oof_accuracy", "oof_standard_error", "oof_rows"} <= done.keys()
    ]


def pair_row(pair: Comparison) -> list[str]:
    """Return a comparison's cells: pair, gain, interval, right alone (accuracy), p, p of all, rows, verdict, images."""
    low, high = pair.interval
    alone = " (alone it would be)" if pair.proved_alone else ""
    needed = "–" if pair.proved or pair.images_needed is None else f"{pair.images_needed:,}"
    return [
        f"{pair.names[1]} against {pair.names[0]}",
        f"{pair.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        *([f"{pair.only_b:,} : {pair.only_a:,}"] if pair.only_a is not None else []),
        f"{pair.p_value:.3g}",
        f"{pair.adjusted_p:.3g}",
        f"{pair.a.n:,}",
        "proved" if pair.proved else f"not proved{alone}",
        needed,
    ]


def last_rows(run: Run) -> list[list[str]]:
    """Return a row a fold: number of epochs, and the figures of the last one."""
    columns = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return [
        [f"fold {k}", str(len(m)), *(f"{m[column].iloc[-1]:.4f}" if column in m else "–" for column in columns)]
        for k, m in run.metrics.items()
    ]


def recall_rows(report: Report, one: ScoredRun) -> list[list[str]]:
    """Return a row a class: recall with its interval, precision, rows, predictions."""
    confusion, rows = one.confusion, []
    for k, (name, (recall, low, high)) in enumerate(zip(report.class_names(), recalls(one), strict=True)):
        given, predicted = int(confusion[k].sum()), int(confusion[:, k].sum())
        precision = f"{confusion[k, k] / predicted:.3f}" if predicted else "–"
        shown = f"{recall:.3f} ({low:.3f} to {high:.3f})" if given else "–"
        rows.append([name, shown, precision, f"{given:,}", f"{predicted:,}"])
    return rows


def confusion_rows(report: Report, one: ScoredRun) -> list[list[str]]:
    """Return the most frequent confusions: given label, predicted class, rows, their share of the label's rows."""
    names, wrong = report.class_names(), one.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    cells = [(int(at) // len(wrong), int(at) % len(wrong)) for at in order if wrong.flat[at]]
    given = one.confusion.sum(axis=1)
    return [[names[a], names[b], f"{wrong[a, b]:,}", percent(wrong[a, b] / given[a])] for a, b in cells]
