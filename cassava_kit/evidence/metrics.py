"""Metrics of probabilities against labels, with standard errors; entry point `score`.

`macro_f1` is the mean of the classes' F1 of the most probable class, `log_loss` the mean of -log p(label), where less
is better. Values are scikit-learn's. The bootstrap weighs rows by how often they are drawn, on sums that are made once,
because scikit-learn would take minutes for its draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cassava_kit.competition import Metric
from cassava_kit.errors import UserError

RESAMPLES = 1000
METRIC_NAMES: dict[Metric, str] = {"accuracy": "accuracy", "macro_f1": "macro F1", "log_loss": "log loss"}
LESS_IS_BETTER = frozenset({"log_loss"})

Statistic = Callable[[np.ndarray], float]


def score(labels: ArrayLike, pred_probs: ArrayLike, metric: Metric = "accuracy") -> Score:
    """Score probabilities against labels by a metric.

    Args:
        labels: given labels (N,), whole numbers 0..K-1.
        pred_probs: class probabilities (N, K), rows that sum to 1.
        metric: `accuracy`, `macro_f1` or `log_loss`.

    Raises:
        UserError: where labels and probabilities do not fit together, or the metric is unknown.

    Example:
        >>> print(score([0, 1, 1, 1], [[.9, .1], [.2, .8], [.6, .4], [.3, .7]]))
        0.7500 ± 0.2165
    """
    labels, p = check_scored(labels, pred_probs, metric)
    right = accuracy(labels, p)
    if metric == "accuracy":
        return right
    of_counts = statistic(metric, labels, p)
    error = float(np.std([of_counts(counts) for counts in row_counts(len(labels))]))
    return Score(metric_value(metric, labels, p), error, len(labels), metric, accuracy_beside=right.value)


def check_scored(
    labels: ArrayLike, pred_probs: ArrayLike, metric: Metric = "accuracy", *, name: str = "probabilities"
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (N,) as whole numbers and probabilities (N, K) as floats; UserError where they do not fit."""
    if metric not in METRIC_NAMES:
        raise UserError(f"metric must be one of {', '.join(METRIC_NAMES)}, got {metric!r}")
    try:
        p = np.asarray(pred_probs, dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"{name} must be numbers, one row (K,) for each label, got {pred_probs!r:.80}") from None
    shape = np.shape(labels)
    if p.ndim != 2 or shape != p.shape[:1] or not len(p):
        raise UserError(
            f"expected labels (N,) and {name} (N, K) of the same rows, got shapes {shape} and {p.shape}; join them by "
            "image_id first"
        )
    checked = check_classes(labels, p.shape[1])
    bad = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-3)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"row {row} of {name} must sum to 1, got {p[row].round(4).tolist()}; apply softmax first")
    return checked, p


def check_classes(classes: ArrayLike, n_classes: int, *, name: str = "labels") -> np.ndarray:
    """Return classes (N,) as whole numbers in 0..K-1; UserError, with the first that is not, otherwise."""
    given = np.asarray(classes)
    numbers = given.dtype.kind in "iufb"
    outside = ~np.isin(given, np.arange(n_classes)) if numbers else np.ones(len(given), bool)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"{name} must be whole numbers in 0..{n_classes - 1}, got {given[row].item()!r} in row {row}; number the "
            "classes as the columns of the probabilities are, e.g. by pandas.factorize(labels, sort=True)[0]"
        )
    return given.astype(int)


def baseline(metric: Metric, labels: np.ndarray, n_classes: int) -> Score:
    """Return the score of one answer for every row: the most frequent class, or the class shares for log loss."""
    if metric == "accuracy":
        return majority(labels)
    return score(labels, baseline_probabilities(metric, labels, n_classes), metric)


def baseline_probabilities(metric: Metric, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Return the probabilities (N, K) of one answer for every row, as `baseline` scores them."""
    shares = np.bincount(labels, minlength=n_classes) / len(labels)
    answer = shares if metric == "log_loss" else np.eye(n_classes)[shares.argmax()]
    return np.tile(answer, (len(labels), 1))


def format_score(score: Score) -> str:
    """Return a score with its metric's name."""
    return f"accuracy {score}" if score.metric == "accuracy" else str(score)


def metric_value(metric: Metric, labels: np.ndarray, pred_probs: np.ndarray) -> float:
    """Return the metric as scikit-learn defines it; the rows of probabilities (N, K) may lack a class."""
    return statistic(metric, labels, pred_probs)(np.ones(len(labels)))


def gain(metric: Metric, before: float, after: float) -> float:
    """Return how much better `after` is than `before`: positive is better for every metric."""
    return before - after if metric in LESS_IS_BETTER else after - before


def statistic(metric: Metric, labels: np.ndarray, pred_probs: np.ndarray) -> Statistic:
    """Return the metric as a function of how often each row counts, (N,)."""
    n_classes = pred_probs.shape[1]
    if metric == "log_loss":
        p = _normalised(pred_probs)
        losses = -np.log(np.clip(p[np.arange(len(labels)), labels], np.finfo(p.dtype).eps, None))
        return lambda counts: float((losses * counts).sum() / counts.sum())
    cells = labels * n_classes + pred_probs.argmax(axis=1)

    def macro_f1(counts: np.ndarray) -> float:
        table = np.bincount(cells, weights=counts, minlength=n_classes**2).reshape(n_classes, n_classes)
        both = table.sum(axis=0) + table.sum(axis=1)
        return float(np.mean(2 * np.diag(table) / np.where(both > 0, both, 1)))

    def right(counts: np.ndarray) -> float:
        return float(counts[cells // n_classes == cells % n_classes].sum() / counts.sum())

    return macro_f1 if metric == "macro_f1" else right


def _normalised(pred_probs: np.ndarray) -> np.ndarray:
    """Return rows that sum to 1 exactly; those of a file do to eight digits."""
    return np.asarray(pred_probs / pred_probs.sum(axis=1, keepdims=True))


def row_counts(n: int, *, draws: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield how often each of n rows is in each bootstrap draw, (n,); the same for every call."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(0, n, n), minlength=n)


@dataclass(frozen=True)
class Score:
    """A metric's value, its standard error, and the number of rows behind it.

    The standard error is binomial for accuracy and bootstrapped for any other metric. `accuracy_beside` is the accuracy
    of the same rows where the metric is another.
    """

    value: float
    standard_error: float
    n: int
    metric: Metric = "accuracy"
    accuracy_beside: float | None = None

    @property
    def accuracy(self) -> float:
        """Accuracy on the same rows, whatever the metric."""
        return self.value if self.accuracy_beside is None else self.accuracy_beside

    def values(self) -> dict[str, Any]:
        """Return value, standard error and number of rows as plain values."""
        return {"value": float(self.value), "standard_error": float(self.standard_error), "n": int(self.n)}

    @property
    def figures(self) -> str:
        """The value and its standard error alone."""
        return f"{self.value:.4f} ± {self.standard_error:.4f}"

    def __str__(self) -> str:
        if self.metric == "accuracy":
            return self.figures
        error = (self.accuracy * (1 - self.accuracy) / self.n) ** 0.5
        return f"{METRIC_NAMES[self.metric]} {self.figures} (accuracy {self.accuracy:.4f} ± {error:.4f})"


def accuracy(labels: np.ndarray, pred_probs: np.ndarray) -> Score:
    """Return the accuracy of the most probable class, pred_probs (N, K); ties go to the lower class."""
    return accuracy_of(labels, pred_probs.argmax(axis=1))


def accuracy_of(labels: np.ndarray, predicted: np.ndarray) -> Score:
    """Return the accuracy of predicted classes (N,), with the standard error sqrt(a (1 - a) / N)."""
    a = float(np.mean(labels == predicted))
    return Score(a, float(np.sqrt(a * (1 - a) / len(labels))), len(labels))


def majority(labels: np.ndarray) -> Score:
    """Return the accuracy of always answering the most frequent class."""
    return accuracy_of(labels, np.full(len(labels), np.bincount(labels).argmax()))


def score_record(score: Score) -> dict[str, Any]:
    """Return a fold's score as its `run.json` keeps it."""
    return {
        "oof_accuracy": score.accuracy,
        "oof_standard_error": score.standard_error,
        "oof_rows": score.n,
        "labels": "given",
    }
