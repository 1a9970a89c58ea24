"""The runs of a report as members of one ensemble; entry points `judge_together`, `together_values`."""

from __future__ import annotations

from typing import Any

import numpy as np

from cassava_kit.evidence.blend import BlendReport, blend_report, describe_effect
from cassava_kit.evidence.metrics import format_score
from cassava_kit.evidence.oof import Evidence
from cassava_kit.report.runs_gather import Report

MOST_MEMBERS = 12  # more than an ensemble has, and more than a table of correlations shows well


def judge_together(report: Report) -> BlendReport | None:
    """Judge the runs that hold out every row as members of an ensemble; None for fewer than two, or for too many."""
    folds = report.folds
    whole = [] if folds is None else [one for one in report.scored if len(one.rows) == len(folds.scored)]
    if folds is None or folds.n_splits < 2 or not 2 <= len(whole) <= MOST_MEMBERS:
        return None
    first = whole[0]
    evidence = Evidence(
        names=tuple(one.name for one in whole),
        image_ids=folds.frame["image_id"].to_numpy()[first.rows],
        labels=first.labels,
        fold=first.fold,
        pred_probs=np.stack([one.probabilities for one in whole]),
        fold_hash=folds.hash,
        metric=report.task.metric,
        task=report.task,
    )
    return blend_report(evidence)


def together_values(report: Report) -> dict[str, Any]:
    """Return the values that the template shows of the ensemble; `together` is None where there is none."""
    judged = judge_together(report)
    if judged is None:
        return {"together": None}
    names = list(judged.names)
    rows = [
        [
            name,
            format_score(judged.members[name]),
            f"{_mean_of_others(judged, m):.2f}",
            describe_effect(judged.adds[name]),
        ]
        for m, name in enumerate(names)
    ]
    correlations = [
        [name, *(f"{value:.2f}" for value in row)] for name, row in zip(names, judged.error_correlation, strict=True)
    ]
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in judged.weights.items())
    return {
        "together": {
            "advice": judged.advice.sentence,
            "score": format_score(judged.score),
            "weights": "equal weights" if judged.method == "mean" else f"{judged.method} weights ({weights})",
            "tempering": str(judged.judgement.tempering),
            "moves": judged.judgement.tempering.calibration.moves,
            "rows": rows,
            "names": names,
            "correlations": correlations,
        }
    }


def _mean_of_others(judged: BlendReport, m: int) -> float:
    """Return the mean correlation of a member's errors with those of the others."""
    return float(np.delete(judged.error_correlation[m], m).mean())
