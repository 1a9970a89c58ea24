"""Paired comparison of two predictions of the same rows; entry points `compare` (one pair) and `correct` (a family).

Accuracy is compared by the rows that one alone has right: a bootstrap interval and McNemar's exact test. Any other
metric is compared on the same redrawn rows for both, with a randomisation test. A difference is proved when the
interval excludes zero and the test agrees; where several comparisons are made at once, after Holm's correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cassava_kit.competition import Metric
from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import Score, check_classes, check_scored, gain, row_counts, score, statistic
from cassava_kit.evidence.oof import read_evidence

DRAWS = 10_000
SWAPS = 2000  # the smallest possible p-value is 1 / 2001: 50 comparisons at once can still be proved at .05
LEVEL = 0.95
POWER_Z = 0.8416  # z of a power of 80 %


@dataclass(frozen=True)
class Comparison:
    """B against A on the same rows: B's gain, its paired interval, and the test's p-value.

    `difference` is positive where B is better, whichever way the metric runs. `only_a` and `only_b` count the rows that
    one alone has right (None unless the metric is accuracy). `images_needed` is the number of rows on which a
    difference of this size would be proved four times in five (None where there is no difference). `adjusted_p` is the
    p-value corrected for the other comparisons of the family, which `correct` sets; alone it is `p_value`. `notes` say
    what makes the comparison less than out of fold.
    """

    names: tuple[str, str]
    a: Score
    b: Score
    difference: float
    interval: tuple[float, float]
    level: float
    p_value: float
    adjusted_p: float
    images_needed: int | None
    metric: Metric = "accuracy"
    only_a: int | None = None
    only_b: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def proved(self) -> bool:
        """Whether the interval excludes zero and the corrected test agrees at the same level.

        The bootstrap alone would call a few lucky rows a proof: it never draws a loss that was not seen.
        """
        return self._holds(self.adjusted_p)

    @property
    def proved_alone(self) -> bool:
        """Whether it would be proved if it were the only comparison made."""
        return self._holds(self.p_value)

    def _holds(self, p_value: float) -> bool:
        low, high = self.interval
        return bool((low > 0 or high < 0) and p_value < 1 - self.level)

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval[1] - self.interval[0]) / 2

    def reverse(self) -> Comparison:
        """Return A against B: every sign turned, the same proof."""
        low, high = self.interval
        return replace(
            self,
            names=(self.names[1], self.names[0]),
            a=self.b,
            b=self.a,
            difference=-self.difference,
            interval=(-high, -low),
            only_a=self.only_b,
            only_b=self.only_a,
        )

    def values(self) -> dict[str, Any]:
        """Return the comparison as plain values, for JSON; `difference` is of `names[1]` against `names[0]`."""
        return {
            "names": list(self.names),
            "metric": self.metric,
            "scores": [self.a.values(), self.b.values()],
            "difference": float(self.difference),
            "interval": [float(end) for end in self.interval],
            "level": self.level,
            "p_value": float(self.p_value),
            "adjusted_p": float(self.adjusted_p),
            "proved": self.proved,
            "images_needed": self.images_needed,
            "only_right": None if self.only_a is None else [self.only_a, self.only_b],
            "notes": list(self.notes),
        }

    def verdict(self) -> str:
        """Return the short form: `+0.0012 ± 0.0020: not proved`."""
        return f"{self.difference:+.4f} ± {self.half_width:.4f}: {'proved' if self.proved else 'not proved'}"

    def missing_images(self) -> str:
        """Return how many images would prove it, in words; empty where it is proved."""
        if self.images_needed is None:
            return "there is no difference to prove"
        return "" if self.proved else f"about {self.images_needed:,} images would prove a difference of this size"

    def summary(self) -> str:
        """Return the verdict, and where it is not proved how many images would prove it."""
        missing = self.missing_images()
        return f"{self.verdict()}{f' ({missing})' if missing else ''}"

    def __str__(self) -> str:
        (a, b), (low, high) = self.names, self.interval
        name = "accuracy ± standard error" if self.metric == "accuracy" else "± standard error"
        lines = [
            f"{a} {self.a}, {b} {self.b} ({name} on the same {self.a.n:,} rows)",
            f"{b} against {a}, positive is better: {self.verdict()}",
            f"{self.level:.0%} interval {low:+.4f} to {high:+.4f} (bootstrap); {self._test()}",
        ]
        missing = self.missing_images()
        lines += [f"{missing[0].upper()}{missing[1:]}."] if missing else []
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _test(self) -> str:
        (a, b), p = self.names, f"p = {self.p_value:.3g}"
        if self.adjusted_p != self.p_value:
            p += f", {self.adjusted_p:.3g} among all comparisons"
        if self.only_a is None or self.only_b is None:
            return f"randomisation test {p}"
        return f"McNemar's exact test {p} ({b} alone right {self.only_b:,} times, {a} alone {self.only_a:,} times)"


def compare(
    labels: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    metric: Metric = "accuracy",
    names: tuple[str, str] = ("A", "B"),
    level: float = LEVEL,
) -> Comparison:
    """Compare two predictions of the same rows by a metric, B against A.

    Args:
        labels: given labels (N,), whole numbers 0..K-1.
        a: probabilities (N, K) of the first, or its predicted classes (N,).
        b: the same of the one that may be better, in the same row order.
        metric: `accuracy`, `macro_f1` or `log_loss`, which needs probabilities.

    Raises:
        UserError: where the three are not of the same rows.

    Example:
        >>> labels = [0, 1] * 50
        >>> a, b = [0] * 100, labels[:90] + [0] * 10
        >>> print(compare(labels, a, b).verdict())
        +0.4500 ± 0.1000: proved
    """
    n_classes = _count_classes(labels, a, b)
    given, first = check_scored(labels, _as_probabilities(a, n_classes, metric, names[0]), metric, name=names[0])
    _, second = check_scored(labels, _as_probabilities(b, n_classes, metric, names[1]), metric, name=names[1])
    scores = score(given, first, metric), score(given, second, metric)
    difference = gain(metric, scores[0].value, scores[1].value)
    if metric == "accuracy":
        right_a, right_b = first.argmax(axis=1) == given, second.argmax(axis=1) == given
        only_a, only_b, n = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum()), len(given)
        p = mcnemar(only_a, only_b)
        return Comparison(
            names,
            *scores,
            difference=(only_b - only_a) / n,
            interval=paired_interval(only_a, only_b, n, level=level),
            level=level,
            p_value=p,
            adjusted_p=p,
            images_needed=images_needed(only_a, only_b, n, level=level),
            only_a=only_a,
            only_b=only_b,
        )
    before, after = statistic(metric, given, first), statistic(metric, given, second)
    gains = np.array([gain(metric, before(counts), after(counts)) for counts in row_counts(len(given))])
    low, high = np.quantile(gains, [(1 - level) / 2, (1 + level) / 2])
    p = swap_test(metric, given, first, second)
    return Comparison(
        names,
        *scores,
        difference=difference,
        interval=(float(low), float(high)),
        level=level,
        p_value=p,
        adjusted_p=p,
        images_needed=rows_to_prove(difference, float(gains.var()) * len(given), level),
        metric=metric,
    )


def _count_classes(labels: ArrayLike, *predictions: ArrayLike) -> int:
    """Return the number of classes: the columns of probabilities, else one more than the largest class."""
    widths = {np.shape(each)[1] for each in predictions if np.ndim(each) == 2}
    if len(widths) > 1:
        raise UserError(f"both predictions must have the same classes, got {' and '.join(map(str, sorted(widths)))}")
    numbers = [values for each in (labels, *predictions) if (values := np.asarray(each)).dtype.kind in "iufb"]
    largest = max((int(np.nan_to_num(values, posinf=0).max(initial=0)) for values in numbers), default=0)
    return widths.pop() if widths else max(largest, 1) + 1


def _as_probabilities(prediction: ArrayLike, n_classes: int, metric: Metric, name: str) -> ArrayLike:
    """Return probabilities (N, K); predicted classes (N,) are taken as certain."""
    if np.ndim(prediction) != 1:
        return prediction
    if metric == "log_loss":
        raise UserError(f"log_loss needs probabilities (N, K), {name} has classes (N,)")
    return np.asarray(np.eye(n_classes)[check_classes(prediction, n_classes, name=f"classes of {name}")])


def correct(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct comparisons that are made at once (Holm 1979): one that is still proved is so among all of them.

    Everything in the kit that looks at more than one comparison and speaks of proof calls this: the report, the
    ensemble's methods and members, finals, ablation, the report on self-supervision.

    Example:
        >>> labels, a = [1] * 100, [0] * 10 + [1] * 90
        >>> lucky = compare(labels, a, [0] * 3 + [1] * 97)
        >>> lucky.proved, correct([lucky] * 9)[0].proved
        (True, False)
    """
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [replace(each, adjusted_p=p) for each, p in zip(comparisons, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for the number of comparisons (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = np.empty(len(p_values)), 0.0
    for rank, n in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[n]))
        adjusted[n] = highest
    return [float(p) for p in adjusted]


def paired_interval(only_a: int, only_b: int, n: int, *, level: float = LEVEL, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of (only_b - only_a) / n.

    Resampling n rows whose paired difference is -1, 0 or +1 draws from one multinomial, so no row is copied. A against
    B has the mirrored interval.
    """
    if only_a > only_b:
        low, high = paired_interval(only_b, only_a, n, level=level, seed=seed)
        return -high, -low
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, [only_a / n, only_b / n, 1 - (only_a + only_b) / n], size=DRAWS)
    low, high = np.quantile((counts[:, 1] - counts[:, 0]) / n, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: a fair coin over the rows on which the two differ."""
    from scipy.special import bdtr  # scipy.stats takes longer to import; both tails of a fair coin are alike

    return min(1.0, 2 * float(bdtr(min(only_a, only_b), only_a + only_b, 0.5)))


def swap_test(metric: Metric, labels: np.ndarray, first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired randomisation test: each row's two answers (N, K) are swapped by a coin.

    It is the share of draws in which the metric is at least as far apart as it is; the rows as they are count as one
    draw (Ojala and Garriga 2010), so that it is never 0. By accuracy it estimates McNemar's exact test.
    """
    value = statistic(metric, np.tile(labels, 2), np.concatenate([first, second]))

    def apart(swapped: np.ndarray) -> float:
        return abs(value(np.r_[~swapped, swapped].astype(float)) - value(np.r_[swapped, ~swapped].astype(float)))

    rng = np.random.default_rng(seed)
    seen = apart(np.zeros(len(labels), bool))
    as_far = sum(apart(rng.integers(0, 2, len(labels), dtype=bool)) >= seen - 1e-12 for _ in range(SWAPS))
    return (1 + as_far) / (1 + SWAPS)


def images_needed(only_a: int, only_b: int, n: int, *, level: float = LEVEL) -> int | None:
    """Return the rows on which a difference of this size would be proved four times in five; None for no difference.

    The normal approximation ((z + .84) sd / difference)^2, with the paired differences' sd of these rows.
    """
    difference = (only_b - only_a) / n
    return rows_to_prove(difference, (only_a + only_b) / n - difference**2, level)


def rows_to_prove(difference: float, variance: float, level: float) -> int | None:
    """Return `images_needed` for a mean difference, `variance` being that of one row's; None for no difference."""
    from statistics import NormalDist

    if difference == 0:
        return None
    z = NormalDist().inv_cdf((1 + level) / 2) + POWER_Z
    return max(math.ceil(z**2 * variance / difference**2), 1)


def compare_files(a: Path, b: Path, folds: Path) -> Comparison:
    """Compare two out-of-fold prediction files on the rows of one fold file; the contract of both is checked."""
    evidence = read_evidence([a, b], read_folds(folds))
    names = (evidence.names[0], evidence.names[1])
    found = compare(evidence.labels, *evidence.pred_probs, metric=evidence.metric, names=names)
    return replace(found, notes=evidence.labels_seen)
