"""What a public score should be by out-of-fold evidence: `expect_public`, `expect_from_folder`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import Metric, common_task, known_competition
from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.finals import redraw_by
from cassava_kit.evidence.metrics import LESS_IS_BETTER, METRIC_NAMES, check_scored, row_counts, score, statistic
from cassava_kit.evidence.oof import check_oof
from cassava_kit.evidence.predictions import read_predictions

SHARE = 0.95


@dataclass(frozen=True)
class ExpectedScore:
    """The out-of-fold score and the interval in which `SHARE` of public scores lie, if both are of one population.

    `rows`: how many out-of-fold rows; `public_rows`: how many public images, None where that is not known, and the
    interval is then that of the out-of-fold score alone, which is narrower.
    """

    value: float
    low: float
    high: float
    metric: Metric
    rows: int
    public_rows: int | None

    def values(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        of = f"{self.public_rows:,} public images" if self.public_rows else "out-of-fold rows; public ones not known"
        return (
            f"expected public {METRIC_NAMES[self.metric]} {short(self.low)} to {short(self.high)} ({SHARE:.0%}, {of}; "
            f"out of fold {short(self.value, 4)} on {self.rows:,} rows)"
        )

    def compare(self, public: float) -> str:
        """Return the public score beside the interval, and what to look for where it is outside."""
        where = "inside" if self.low <= public <= self.high else "outside"
        said = f"public {short(public, 4)} {where} {short(self.low)} to {short(self.high)}"
        if where == "inside":
            return said
        better = (public > self.high) != (self.metric in LESS_IS_BETTER)
        if better:
            return f"{said}: better than out of fold; shift (easier public images), or a chance of 1 in 40"
        return (
            f"{said}: worse than out of fold. Shift? compare the test images with the training ones (eda). Leak? "
            "near-duplicates in two folds, or rows seen before they were scored. Bug? rehearse the notebook on "
            "training images, and score what it writes"
        )


def short(value: float, digits: int = 3) -> str:
    """Return a score without the zero before the point."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if 0 <= value < 1 else text


def expect_public(
    labels: np.ndarray, pred_probs: np.ndarray, *, metric: Metric = "accuracy", public_rows: int | None = None
) -> ExpectedScore:
    """Return the interval of public scores that out-of-fold predictions (N, K) lead one to expect.

    For accuracy the number of right answers among n public images is beta-binomial: binomial, with a rate that N rows
    have left uncertain (Jeffreys' prior). For another metric rows are drawn twice, N for the rate and n for the images.

    Example:
        >>> import numpy as np
        >>> labels, right = np.zeros(20_000, int), np.arange(20_000) % 10 > 0
        >>> found = expect_public(labels, np.eye(2)[(~right).astype(int)], public_rows=5_000)
        >>> found.compare(0.8950)
        'public .8950 inside .891 to .909'
    """
    labels, p = check_scored(labels, pred_probs, metric)
    found = score(labels, p, metric)
    if metric == "accuracy":
        low, high = _accuracy_range(round(found.value * found.n), found.n, public_rows)
    else:
        if public_rows is None:
            of_counts = statistic(metric, labels, p)
            drawn = np.array([of_counts(counts) for counts in row_counts(len(labels))])
        else:
            sign = -1.0 if metric in LESS_IS_BETTER else 1.0
            drawn = sign * redraw_by(metric, labels, [p], rows=public_rows, seed=0)[:, 0]
        low, high = map(float, np.quantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2]))
    return ExpectedScore(found.value, low, high, metric, found.n, public_rows)


def _accuracy_range(right: int, rows: int, public_rows: int | None) -> tuple[float, float]:
    from scipy.stats import beta, betabinom

    a, b = right + 0.5, rows - right + 0.5
    ends = ((1 - SHARE) / 2, (1 + SHARE) / 2)
    if public_rows is None:
        low, high = (float(beta.ppf(end, a, b)) for end in ends)
    else:
        low, high = (float(betabinom.ppf(end, public_rows, a, b)) / public_rows for end in ends)
    return low, high


def expect_from_folder(folder: Path) -> ExpectedScore | None:
    """Return what the evidence of a submission leads one to expect; None where there is none, or it does not fit.

    `folder` holds `oof.csv` and `folds.csv`, as `package` and the ledger keep them.
    """
    try:
        split = read_folds(folder / "folds.csv")
        oof = check_oof(read_predictions(folder / "oof.csv"), split, folder.name)
        task = common_task({"folds": split.task, "oof": oof.header.task if oof.header else None})
        competition = known_competition(task.competition)
    except (FileNotFoundError, UserError):
        return None
    public = competition.hidden_images - competition.private_images
    labels = split.scored["label"].to_numpy()
    return expect_public(labels, oof.probabilities, metric=task.metric, public_rows=public)
