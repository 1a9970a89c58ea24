"""Score of a submission on MLE-bench's test set, with medals and their chances; entry point `grade_submission`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import Score, accuracy_of
from cassava_kit.files import find_file, read_csv

DIGITS = 5  # MLE-bench rounds a score to so many decimals before it compares
# Thresholds on the private leaderboard, as third parties report them for this competition.
MEDALS = {"gold": 0.9013, "silver": 0.8992, "bronze": 0.8978}
MEDIAN = 0.8909


@dataclass(frozen=True)
class Grade:
    """Accuracy on the test set, the medal it wins (None: none) and the chance of each medal.

    `chances[medal]` is the share of other test sets of this size on which a submission whose true accuracy is this
    score reaches the medal's threshold or more.
    """

    score: Score
    medal: str | None
    above_median: bool
    chances: dict[str, float]

    def values(self) -> dict[str, Any]:
        """Return the grade as plain values, for JSON."""
        return {
            "score": self.score.value,
            "standard_error": self.score.standard_error,
            "rows": self.score.n,
            "medal": self.medal,
            "above_median": self.above_median,
            "chances": self.chances,
            "thresholds": {**MEDALS, "median": MEDIAN},
        }

    def __str__(self) -> str:
        beside = "above the median" if self.above_median else "not above the median"
        won = f"{self.medal} medal" if self.medal else f"no medal, {beside}"
        shown = ", ".join(f"{medal} {chance:.0%}" for medal, chance in self.chances.items())
        listed = ", ".join(f"{name} {value}" for name, value in {**MEDALS, "median": MEDIAN}.items())
        value, error = f"{self.score.value:.{DIGITS}f}", f"{self.score.standard_error:.4f}"
        return "\n".join(
            [
                f"accuracy {value} ± {error} on {self.score.n:,} rows: {won}",
                f"were this its true accuracy, other test sets of this size would give, or better: {shown}",
                f"thresholds (third-party figures): {listed}",
            ]
        )


def grade_submission(file: Path, private: Path) -> Grade:
    """Grade a submission as MLE-bench does: plain accuracy against the given labels, rounded to five decimals.

    Args:
        file: `image_id,label`, a row for each test image, in any order.
        private: the folder with `test.csv` that `prepare_mle_bench` made, or that file.

    Raises:
        UserError: the submission is not of the test set's rows.
    """
    from pandas.api.types import is_integer_dtype

    answers_file = private / "test.csv" if private.is_dir() else private
    tables = []
    for path, what, remedy in (
        (file, "submission", "give the .csv that a notebook, `submission` or `ensemble` wrote"),
        (answers_file, "answers", "--private takes the folder private/ that `mle-bench prepare` made"),
    ):
        table = read_csv(find_file(path, what, remedy))
        for column in ("image_id", "label"):
            if column not in table:
                raise UserError(f"{path} must have the columns image_id,label, got {', '.join(table.columns)}")
        if table.empty or not is_integer_dtype(table["label"]):
            got = "no row" if table.empty else "a label that is none"
            raise UserError(f"{path} must have a whole number as the label of each image, got {got}; {remedy}")
        tables.append(table.sort_values("image_id"))
    submission, answers = tables
    if len(submission) != len(answers):
        raise UserError(
            f"{file} has {len(submission):,} rows, the test set has {len(answers):,}; write one for each test image"
        )
    differing = sorted(set(submission["image_id"]) - set(answers["image_id"]))
    if differing or submission["image_id"].duplicated().any():
        wrong = f"{differing[0]} is not in the test set" if differing else "an image has two rows"
        raise UserError(f"{file}: {wrong}; write one row for each test image")
    exact = accuracy_of(answers["label"].to_numpy(), submission["label"].to_numpy())
    value = round(exact.value, DIGITS)
    medal = next((name for name, threshold in MEDALS.items() if value >= threshold), None)
    chances = {name: chance_of(threshold, exact.value, exact.n) for name, threshold in MEDALS.items()}
    return Grade(Score(value, exact.standard_error, exact.n), medal, value > MEDIAN, chances)


def chance_of(threshold: float, accuracy: float, n: int) -> float:
    """Return the chance that a true accuracy reaches a threshold on n rows, by the binomial distribution.

    Example:
        >>> [round(chance_of(0.9013, true, 2676), 2) for true in (0.900, 0.905, 0.910)]
        [0.42, 0.75, 0.94]
    """
    from scipy.stats import binom

    needed = math.ceil((threshold - 0.5 * 10**-DIGITS) * n - 1e-9)  # as many right answers round to the threshold
    return float(binom.sf(needed - 1, n, accuracy))
