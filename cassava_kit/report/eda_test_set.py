"""Whether the test images look like the training images: sizes, brightness, colour; entry point `compare_sets`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition
from cassava_kit.data.images import in_threads
from cassava_kit.data.to_predict import read_test
from cassava_kit.evidence.compare import LEVEL, holm
from cassava_kit.report.eda import QUANTITIES, ImageStatistics, measure_image
from cassava_kit.report.page import number

COMPARED = ("width", "height", *QUANTITIES)
MOST_MEASURED = 4000  # so many random test images are measured at most: a difference worth naming shows in them
ENOUGH = 20  # fewer say nothing about a distribution
LARGE = 0.1  # a distance below it is called slight: no threshold parts the two sets by more than ten images in 100


@dataclass(frozen=True)
class Difference:
    """One quantity of training and test images, and the two-sample Kolmogorov-Smirnov test of them.

    `distance`: the largest difference between the shares of both sets that lie below a value. `p_value` is corrected
    for the number of quantities (Holm).
    """

    quantity: str
    train: np.ndarray
    test: np.ndarray
    distance: float
    p_value: float

    @property
    def found(self) -> bool:
        """Whether the test tells the two sets apart."""
        return self.p_value < 1 - LEVEL

    @property
    def large(self) -> bool:
        """Whether it does, by a distance that may matter to a model."""
        return self.found and self.distance >= LARGE


@dataclass(frozen=True)
class SetComparison:
    """The test images of a folder beside its training images.

    `names`: all test images; `frame`: the measured and readable ones, with the columns of `COMPARED`. `differences`: a
    quantity each, empty where either side has fewer than `ENOUGH` images.
    """

    image_dir: Path
    names: tuple[str, ...]
    frame: pd.DataFrame
    unreadable: dict[str, str]
    differences: tuple[Difference, ...]

    @property
    def alike(self) -> bool | None:
        """Whether no large difference was found; None where there are too few images to say."""
        return not any(one.large for one in self.differences) if self.differences else None

    def sentence(self) -> str:
        """Return in words whether the test set looks like the training set."""
        if not self.names:
            return "There are no test images to compare with."
        if not self.differences:
            n = number(len(self.frame), "readable test image")
            return f"{n}: too few to say whether the test set looks like the training set."
        large = [one for one in self.differences if one.large]
        slight = [one.quantity for one in self.differences if one.found and not one.large]
        if large:
            said = [
                f"{one.quantity} {format_spread(one.train)} in training, {format_spread(one.test)} in test"
                for one in large
            ]
            return f"The test set does not look like the training set: {'; '.join(said)}."
        if slight:
            return f"The test set looks like the training set, apart from slight differences in {', '.join(slight)}."
        return (
            f"The test set looks like the training set: size, brightness, colour and sharpness, "
            f"{len(self.differences)} quantities, do not differ by more than chance."
        )


def compare_sets(
    data: Path, train: pd.DataFrame, competition: Competition, *, seed: int = 0, progress: bool = True
) -> SetComparison:
    """Measure up to `MOST_MEASURED` random test images and compare them with the training images (`Eda.frame`).

    A folder without test images gives a comparison without any.
    """
    try:
        images = read_test(data, competition)
    except FileNotFoundError:
        return SetComparison(data / competition.test_images, (), _frame([], []), {}, ())
    names = list(images.names)
    if len(names) > MOST_MEASURED:
        names = sorted(
            np.random.default_rng(seed).choice(np.array(names, object), MOST_MEASURED, replace=False).tolist()
        )
    paths = [images.folder / name for name in names]
    measured = list(in_threads(measure_image, paths, title="Looking at test images", progress=progress))
    whole = [(name, one) for name, one in zip(names, measured, strict=True) if not one.reason]
    broken = {name: one.reason for name, one in zip(names, measured, strict=True) if one.reason}
    frame = _frame([name for name, _ in whole], [one for _, one in whole])
    return SetComparison(images.folder, images.names, frame, broken, find_differences(train, frame))


def _frame(names: Sequence[str], measured: Sequence[ImageStatistics]) -> pd.DataFrame:
    rows = np.array([(one.width, one.height, *one.values) for one in measured], float).reshape(-1, len(COMPARED))
    return pd.DataFrame(rows, columns=list(COMPARED)).assign(image_id=list(names))


def find_differences(train: pd.DataFrame, test: pd.DataFrame) -> tuple[Difference, ...]:
    """Compare the columns `COMPARED` of two tables, a Kolmogorov-Smirnov test each; none where a side is too small."""
    from scipy.stats import ks_2samp

    if min(len(train), len(test)) < ENOUGH:
        return ()
    values = [(train[q].to_numpy(float), test[q].to_numpy(float)) for q in COMPARED]
    tested = [ks_2samp(a, b, method="asymp") for a, b in values]
    corrected = holm([float(one.pvalue) for one in tested])
    return tuple(
        Difference(q, a, b, float(one.statistic), p)
        for q, (a, b), one, p in zip(COMPARED, values, tested, corrected, strict=True)
    )


def format_spread(values: np.ndarray) -> str:
    """Return the median and the 5th to 95th percentile, `98 (52–181)`; `none` without values."""
    if not len(values):
        return "none"
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:.0f} ({low:.0f}–{high:.0f})" if middle >= 10 else f"{middle:.1f} ({low:.1f}–{high:.1f})"
