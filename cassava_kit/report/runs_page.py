"""The page of the verb `report`: runs ranked, what is proved, and each run alone; entry point `write_report`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.evidence.calibration import BINS
from cassava_kit.evidence.metrics import LESS_IS_BETTER, format_score
from cassava_kit.files import find_folder
from cassava_kit.report import charts, runs_words
from cassava_kit.report.charts import Chart
from cassava_kit.report.page import check_out, slug, write_page
from cassava_kit.report.runs import Run, differing_settings, findings
from cassava_kit.report.runs_gather import Report, gather_report
from cassava_kit.report.runs_scores import ScoredRun, recalls, worst_mistakes
from cassava_kit.report.runs_together import together_values
from cassava_kit.report.thumbnails import thumbnails

MISTAKES = 24
INTERVAL_Z = 1.96
OPEN_PAIRS = 15  # up to so many pairs are shown at once; beyond, the winner's


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    folds: Path | None = None,
    data: Path | None = None,
    competition: Competition | None = None,
) -> str:
    """Read, check and score runs, write the page and its PNGs; return a line for the user, and one on splits."""
    competition = competition or current()
    check_out(out)
    image_dir = None if data is None else data / competition.train_images
    if image_dir is not None:
        find_folder(image_dir, "--data must be the competition folder")
    report = gather_report(runs, folds=folds, data=data, competition=competition)
    keys = unique_slugs([run.name for run in report.runs])
    made = report_charts(report, keys)
    line = write_page(out, "report.html", made, page_values(report, keys, image_dir))
    return "\n".join(filter(None, (report.note, line)))


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
        made += _curve_charts(run, key)
        if run.name in by_name:
            made += _score_charts(by_name[run.name], key, report.class_names())
    return made


def _scores_chart(report: Report) -> Chart:
    assert report.baseline is not None
    scores = [(one.name, one.score) for one in report.scored]
    half = [INTERVAL_Z * score.standard_error for _, score in scores]
    values = np.array([(s.value, s.value - h, s.value + h) for (_, s), h in zip(scores, half, strict=True)])
    better = ", less is better" if report.task.metric in LESS_IS_BETTER else ""
    alt = f"Out-of-fold {report.metric_name} with 95 % intervals{better}; the broken line is the majority's."
    return charts.intervals("scores", alt, [n for n, _ in scores], values, zero=report.baseline.score.value)


def _curve_charts(run: Run, key: str) -> list[Chart]:
    columns = {k: {str(c): m[c].tolist() for c in m if c != "note"} for k, m in run.metrics.items()}
    return [
        charts.curves(f"{key}-{what}", f"{what.capitalize()} of {run.name} by epoch.", columns, quantity=what)
        for what in ("loss", "accuracy")
        if any(f"{part}_{what}" in one for one in columns.values() for part in ("train", "val"))
    ]


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
    warnings = {one.name: runs_words.run_warnings(report, one) for one in report.scored}
    says = {r.name: runs_words.doctor_says(r, warnings.get(r.name, []), scored=r.name in by_name) for r in report.runs}
    return {
        "report": report,
        "runs": list(zip(report.runs, keys, strict=True)),
        "scored": by_name,
        "warnings": runs_words.find_warnings(report),
        "head": runs_words.headline(report),
        "score_rows": runs_words.score_rows(report),
        "labels_seen": labels_seen(report.runs),
        "shown_score": {one.name: format_score(one.score) for one in report.scored},
        "stored_rows": runs_words.stored_rows(report),
        **_pair_values(report),
        **together_values(report),
        "settings": differing_settings([run for run in report.runs if run.configs]),
        "configured": [run.name for run in report.runs if run.configs],
        "findings": {run.name: findings(run) for run in report.runs},
        "run_warnings": warnings,
        "doctor_says": says,
        "last_rows": {run.name: runs_words.last_rows(run) for run in report.runs},
        "recall_rows": {one.name: runs_words.recall_rows(report, one) for one in report.scored},
        "confusion_rows": {one.name: runs_words.confusion_rows(report, one) for one in report.scored},
        "calibrations": {one.name: one.calibration for one in report.scored},
        "mistakes": {name: rows.to_dict("records") for name, rows in mistakes.items()},
        "pictures": None if image_dir is None else thumbnails(image_dir, wanted),
        "classes": report.class_names(),
        "few": charts.FEW,
    }


def _pair_values(report: Report) -> dict[str, list[list[str]]]:
    """Return the rows of the pairs shown at once, and of those that a reader opens."""
    best = report.scored[0].name if report.scored else ""
    rows: dict[str, list[list[str]]] = {"pair_rows": [], "more_pairs": []}
    for pair in report.pairs:
        at_once = len(report.pairs) <= OPEN_PAIRS or best in pair.names
        rows["pair_rows" if at_once else "more_pairs"].append(runs_words.pair_row(pair))
    return rows


def mistakes_of(report: Report, one: ScoredRun) -> pd.DataFrame:
    """Return the run's worst mistakes."""
    assert report.folds is not None
    return worst_mistakes(one, report.folds, MISTAKES)
