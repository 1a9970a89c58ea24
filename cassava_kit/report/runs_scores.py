"""Check runs against the split, score them on the rows they held out, and compare every pair: `score_run`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import Metric
from cassava_kit.data.folds import TEST, Folds, read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.calibration import Calibration, calibrate, ece, logloss
from cassava_kit.evidence.compare import Comparison, compare, correct
from cassava_kit.evidence.metrics import Score, score
from cassava_kit.evidence.oof import check_oof, refuse_in_sample
from cassava_kit.evidence.predictions import Predictions
from cassava_kit.report.runs import Run

MAJORITY = "majority"


@dataclass(frozen=True)
class ScoredRun:
    """A run on the rows that it held out: `rows` (n,) are their numbers in the fold file; probabilities (n, K).

    `metric` is what it is judged by.
    """

    name: str
    rows: np.ndarray
    labels: np.ndarray
    fold: np.ndarray
    probabilities: np.ndarray
    metric: Metric = "accuracy"

    @property
    def predicted(self) -> np.ndarray:
        """Return the most probable class of each row; ties go to the lower class."""
        return self.probabilities.argmax(axis=1)

    @cached_property
    def score(self) -> Score:
        """Return the metric's value with its standard error."""
        return score(self.labels, self.probabilities, self.metric)

    @property
    def ece(self) -> float:
        """Return the expected calibration error."""
        return ece(self.labels, self.probabilities)

    @property
    def logloss(self) -> float:
        """Return the mean negative log-probability of the given label."""
        return logloss(self.labels, self.probabilities)

    @property
    def confusion(self) -> np.ndarray:
        """Return the counts (K, K) of given label by predicted class."""
        k = self.probabilities.shape[1]
        return np.bincount(self.labels * k + self.predicted, minlength=k * k).reshape(k, k)

    @property
    def calibration(self) -> Calibration | None:
        """Return the calibration of each fold by the other folds' temperatures; None for a single fold."""
        if len(np.unique(self.fold)) < 2:
            return None
        return calibrate(self.labels, self.probabilities, self.fold)


def read_split(runs: Sequence[Run], folds: Path | None, table: pd.DataFrame | None) -> Folds | None:
    """Return the split on which runs are scored: the fold file, or the table's labels with a complete run's folds.

    None where there are neither; a split made again from a run is checked by its hash like any other.
    """
    if folds is not None:
        return read_folds(folds)
    if table is None:
        return None
    for run in runs:
        parts = list(run.parts.values()) or ([run.whole] if run.whole is not None else [])
        if not parts or not all("fold" in part.frame for part in parts):
            continue
        rows = pd.concat([part.frame[["image_id", "fold"]] for part in parts], ignore_index=True)
        if len(rows) == len(table) and set(rows["image_id"]) == set(table["image_id"]):
            made = table.merge(rows, on="image_id").sort_values("image_id", kind="stable").reset_index(drop=True)
            return Folds(made[["image_id", "label", "fold"]])
    raise UserError("no run predicts every row of the table, so that its folds are not known; give --folds FILE")


def score_run(run: Run, folds: Folds, metric: Metric) -> ScoredRun | None:
    """Return the run on the rows it held out, checked against the split; None where no fold is finished."""
    if run.whole is not None:
        frame = check_oof(run.whole, folds, run.name)
    elif run.parts:
        for k, part in run.parts.items():
            _check_part(run, k, part, folds)
        frame = Predictions(pd.concat([part.frame for part in run.parts.values()], ignore_index=True))
    else:
        return None
    number = pd.Series(np.arange(len(folds.frame)), index=folds.frame["image_id"])
    rows = number.loc[frame.ids].to_numpy()
    order = np.argsort(rows)
    rows = rows[order]
    labels = folds.frame["label"].to_numpy()[rows]
    probabilities = frame.probabilities[order]
    if labels.max() >= probabilities.shape[1]:
        raise UserError(
            f"{run.name} predicts classes 0..{probabilities.shape[1] - 1}, the fold file has label {labels.max()}; "
            "both must be of one competition"
        )
    return ScoredRun(run.name, rows, labels, folds.frame["fold"].to_numpy()[rows], probabilities, metric)


def _check_part(run: Run, k: int, part: Predictions, folds: Folds) -> None:
    """Refuse a fold whose rows are not that fold's rows of the split, or whose checkpoint was trained on them."""
    name = f"{run.name} fold {k}"
    folds.check_fold(k)
    made_on = part.header.fold_hash if part.header is not None else None
    if made_on is not None and made_on != folds.hash:
        raise UserError(
            f"{name} was made on another split ({made_on[:12]}, this fold file is {folds.hash[:12]}); "
            "give the fold file it was trained with"
        )
    refuse_in_sample(part, folds, name)
    expected = set(folds.validation(k)["image_id"])
    differing = expected.symmetric_difference(part.ids)
    if differing:
        raise UserError(
            f"{name}: its {len(part.ids)} rows are not the {len(expected)} of fold {k} of this fold file "
            f"(first that differs: {min(differing)}); give the fold file it was trained with"
        )


def majority_of(folds: Folds, rows: np.ndarray, n_classes: int, metric: Metric) -> ScoredRun:
    """Return the baseline of every comparison: the class shares of the split's labels for every row."""
    labels = folds.frame["label"].to_numpy()
    known = labels[folds.frame["fold"].to_numpy() != TEST]
    shares = np.tile(np.bincount(known, minlength=n_classes) / len(known), (len(rows), 1))
    return ScoredRun(MAJORITY, rows, labels[rows], folds.frame["fold"].to_numpy()[rows], shares, metric)


def compare_pairs(scored: Sequence[ScoredRun]) -> list[Comparison]:
    """Compare every pair on the rows both held out, the later against the earlier, corrected for their number.

    The verb `compare` says the same of a pair that is given in this order. Pairs without common rows are left out.
    """
    found = []
    for a, b in combinations(scored, 2):
        common, in_a, in_b = np.intersect1d(a.rows, b.rows, assume_unique=True, return_indices=True)
        if not len(common):
            continue
        both = a.probabilities[in_a], b.probabilities[in_b]
        found.append(compare(a.labels[in_a], *both, metric=a.metric, names=(a.name, b.name)))
    return correct(found)


def recalls(scored: ScoredRun) -> np.ndarray:
    """Return each class's recall with its 95 % interval (Wilson 1927), (K, 3); nan for a class without rows."""
    from scipy.stats import binomtest

    rows = []
    for k, counts in enumerate(scored.confusion):
        if not counts.sum():
            rows.append((np.nan,) * 3)
            continue
        interval = binomtest(int(counts[k]), int(counts.sum())).proportion_ci(method="wilson")
        rows.append((counts[k] / counts.sum(), interval.low, interval.high))
    return np.array(rows)


def worst_mistakes(scored: ScoredRun, folds: Folds, n: int) -> pd.DataFrame:
    """Return the `n` rows with the least probable labels: `image_id,label,predicted,p_label,p_predicted`."""
    at = np.arange(len(scored.labels))
    frame = pd.DataFrame(
        {
            "image_id": folds.frame["image_id"].to_numpy()[scored.rows],
            "label": scored.labels,
            "predicted": scored.predicted,
            "p_label": scored.probabilities[at, scored.labels],
            "p_predicted": scored.probabilities.max(axis=1),
        }
    )
    wrong = frame[frame["label"] != frame["predicted"]]
    return wrong.sort_values(["p_label", "image_id"], kind="stable").head(n).reset_index(drop=True)
