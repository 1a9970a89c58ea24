"""Is B better than A? Paired on the same rows: a bootstrap interval, an exact or a randomisation test, and a sentence.

Accuracy is compared by the rows that one alone has right, with McNemar's test (`Comparison`); any other metric by the
same redrawn rows for both, and by what chance alone does to the metric (`MetricComparison`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cassava_kit.competition import Metric
from cassava_kit.folds import read_folds
from cassava_kit.metrics import Measure, gain, measure, row_counts, statistic
from cassava_kit.oof import Score, accuracy_of, gather_files

DRAWS = 10_000
SWAPS = 2000  # the least p-value is 1 in so many, which 50 comparisons at once still leave below .05
LEVEL = 0.95
POWER_Z = 0.8416  # with this much more than the interval's z, four tests in five prove a real difference


class Paired(ABC):
    """What every comparison of B against A says: the gain, its interval, and whether it is proved."""

    names: tuple[str, str]
    a: Score | Measure
    b: Score | Measure
    interval: tuple[float, float]
    level: float
    images_needed: int | None
    metric: Metric
    p_value: float

    @property
    @abstractmethod
    def difference(self) -> float:
        """B's gain over A; positive is better."""

    @property
    def proved(self) -> bool:
        """Whether the interval excludes zero and the test agrees at the same level.

        The bootstrap alone never draws a loss that was not seen: a few lucky rows would be proof to it.
        """
        low, high = self.interval
        return bool((low > 0 or high < 0) and self.p_value < 1 - self.level)

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval[1] - self.interval[0]) / 2

    def verdict(self) -> str:
        """The short form: `+0.0012 ± 0.0020: not proved`."""
        return f"{self.difference:+.4f} ± {self.half_width:.4f}: {'proved' if self.proved else 'not proved'}"

    def wanting(self) -> str:
        """How many images would prove it: empty where it is proved."""
        if self.images_needed is None:
            return "no number of images would prove a difference"
        return "" if self.proved else f"about {self.images_needed:,} images would prove a difference of this size"

    def told(self) -> str:
        """The verdict, and where it is not proved how many images would prove it."""
        wanting = self.wanting()
        return f"{self.verdict()}{f' ({wanting})' if wanting else ''}"


@dataclass(frozen=True)
class Comparison(Paired):
    """B against A on the same rows: B's gain in accuracy, its paired interval, and McNemar's p-value.

    `only_a` and `only_b` count the rows that one of them alone has right; `images_needed` is the number of rows on
    which a difference of this size would be proved four times in five (None where there is no difference).
    """

    names: tuple[str, str]
    a: Score
    b: Score
    only_a: int
    only_b: int
    interval: tuple[float, float]
    level: float
    p_value: float
    images_needed: int | None
    metric: Metric = "accuracy"

    @property
    def difference(self) -> float:
        """Accuracy of B minus accuracy of A."""
        return (self.only_b - self.only_a) / self.a.n

    def __str__(self) -> str:
        return sentence(self)


@dataclass(frozen=True)
class MetricComparison(Paired):
    """B against A by another metric than accuracy: the gain's bootstrapped interval, both on the same redrawn rows.

    The gain is positive where B is better, whichever way the metric runs; `p_value` is that of `swap_test`,
    `images_needed` as in `Comparison`.
    """

    names: tuple[str, str]
    a: Score | Measure
    b: Score | Measure
    metric: Metric
    interval: tuple[float, float]
    level: float
    p_value: float
    images_needed: int | None

    @property
    def difference(self) -> float:
        """How much better B's value is than A's."""
        return gain(self.metric, self.a.value, self.b.value)

    def __str__(self) -> str:
        (a, b), (low, high) = self.names, self.interval
        lines = [
            f"{a} {self.a}, {b} {self.b} (± standard error on the same {self.a.n:,} rows)",
            f"{b} against {a}, positive is better: {self.verdict()}",
            f"{self.level:.0%} interval {low:+.4f} to {high:+.4f} (bootstrap); randomisation test p = "
            f"{self.p_value:.3g}",
        ]
        return "\n".join([*lines, *([f"{self.wanting().capitalize()}."] if self.wanting() else [])])


def paired_interval(only_a: int, only_b: int, n: int, *, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of (only_b - only_a) / n.

    Resampling n rows whose paired difference is -1, 0 or +1 draws from one multinomial, so no row is copied.
    """
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, [only_a / n, only_b / n, 1 - (only_a + only_b) / n], size=DRAWS)
    low, high = np.quantile((counts[:, 1] - counts[:, 0]) / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p-value of McNemar's test in its exact form: a fair coin over the rows on which the two differ."""
    from scipy.stats import binomtest

    differing = only_a + only_b
    return float(binomtest(only_b, differing, 0.5).pvalue) if differing else 1.0


def swap_test(metric: Metric, labels: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p-value of a paired randomisation test: each row's two answers (N, K) change places by a coin.

    How often the metric is then at least as far apart as it is; the rows as they are count as one draw (Ojala and
    Garriga 2010), so that it is never 0. By accuracy it estimates McNemar's exact test.
    """
    value = statistic(metric, np.tile(labels, 2), np.concatenate([first, second]))

    def apart(swapped: np.ndarray) -> float:
        return abs(value(np.r_[~swapped, swapped].astype(float)) - value(np.r_[swapped, ~swapped].astype(float)))

    rng = np.random.default_rng(seed)
    seen = apart(np.zeros(len(labels), bool))
    as_far = sum(apart(rng.integers(0, 2, len(labels), dtype=bool)) >= seen - 1e-12 for _ in range(SWAPS))
    return (1 + as_far) / (1 + SWAPS)


def images_needed(only_a: int, only_b: int, n: int, *, level: float = LEVEL) -> int | None:
    """Rows on which a difference of this size would be proved four times in five; None for no difference.

    The normal approximation ((z + .84) sd / difference)^2, the paired differences' sd taken from these rows.
    """
    difference = (only_b - only_a) / n
    return rows_to_prove(difference, (only_a + only_b) / n - difference**2, level)


def rows_to_prove(difference: float, variance: float, level: float) -> int | None:
    """`images_needed` for a mean difference, `variance` being that of one row's; None for no difference."""
    from statistics import NormalDist

    if difference == 0:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2) + POWER_Z
    return max(math.ceil(z**2 * variance / difference**2), 1)


def compare(
    labels: np.ndarray,
    predicted_a: np.ndarray,
    predicted_b: np.ndarray,
    *,
    names: tuple[str, str] = ("A", "B"),
    level: float = LEVEL,
) -> Comparison:
    """Compare two predictions of the same rows: labels (N,), predicted classes (N,) each, in one row order."""
    if not len(labels) == len(predicted_a) == len(predicted_b) or not len(labels):
        raise ValueError(
            f"labels and both predictions must be of the same rows, got {len(labels)}, {len(predicted_a)} and "
            f"{len(predicted_b)}; join them by image_id first"
        )
    right_a, right_b = predicted_a == labels, predicted_b == labels
    only_a, only_b, n = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()), len(labels)
    return Comparison(
        names=names,
        a=accuracy_of(labels, predicted_a),
        b=accuracy_of(labels, predicted_b),
        only_a=only_a,
        only_b=only_b,
        interval=paired_interval(only_a, only_b, n, level=level),
        level=level,
        p_value=mcnemar(only_a, only_b),
        images_needed=images_needed(only_a, only_b, n, level=level),
    )


def compare_by(
    metric: Metric,
    labels: np.ndarray,
    pred_probs: tuple[np.ndarray, np.ndarray],
    *,
    names: tuple[str, str] = ("A", "B"),
    level: float = LEVEL,
) -> Paired:
    """Compare two members' probabilities (N, K) on the same rows by a metric, B against A."""
    first, second = pred_probs
    if metric == "accuracy":
        return compare(labels, first.argmax(axis=1), second.argmax(axis=1), names=names, level=level)
    before, after = statistic(metric, labels, first), statistic(metric, labels, second)
    gains = np.array([gain(metric, before(counts), after(counts)) for counts in row_counts(len(labels))])
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    a, b = measure(metric, labels, first), measure(metric, labels, second)
    needed = rows_to_prove(gain(metric, a.value, b.value), float(gains.var()) * len(labels), level)
    p_value = swap_test(metric, labels, first, second)
    return MetricComparison(names, a, b, metric, (float(low), float(high)), level, p_value, needed)


def compare_files(a: Path, b: Path, folds: Path) -> Paired:
    """Compare two out-of-fold prediction files on the rows of one fold file; the contract of both is checked."""
    evidence = gather_files([a, b], read_folds(folds))
    first, second = evidence.pred_probs
    names = (evidence.names[0], evidence.names[1])
    return compare_by(evidence.metric, evidence.labels, (first, second), names=names)


def sentence(result: Comparison) -> str:
    """What a comparison says, in words, for someone who will act on it."""
    a, b = result.names
    low, high = result.interval
    lines = [
        f"{a} {result.a}, {b} {result.b} (accuracy ± standard error on the same {result.a.n:,} rows)",
        f"{b} against {a}: {result.verdict()}",
        f"{result.level:.0%} interval {low:+.4f} to {high:+.4f}; McNemar's exact test p = {result.p_value:.3g} "
        f"({b} alone right {result.only_b:,} times, {a} alone {result.only_a:,} times)",
    ]
    if result.images_needed is None:
        lines.append(f"They are equally often right: {result.wanting()}.")
    elif not result.proved:
        lines.append(f"A{result.wanting()[1:]}.")
    return "\n".join(lines)
