"""Pictures of the notebook `train-folds`: `LiveCurves` during the training, `FoldPictures` after it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cassava_kit.competition import Competition, current
from cassava_kit.data.table import read_competition
from cassava_kit.evidence.metrics import METRIC_NAMES, score
from cassava_kit.files import read_csv
from cassava_kit.report.charts import Chart, confusion_matrix, curves, intervals
from cassava_kit.report.notebook.show import name_corner, read_photo, short_class, side_by_side, split_sheet
from cassava_kit.report.runs import Run
from cassava_kit.report.runs_gather import Report, gather_report
from cassava_kit.report.runs_scores import ScoredRun, recalls, worst_mistakes
from cassava_kit.report.runs_words import find_warnings

# A confusion matrix with more classes than this shows those that are confused most.
MOST_CONFUSED = 12


class LiveCurves:
    """Loss and accuracy by epoch and fold, one picture that is drawn anew where it stands on every call."""

    def __init__(self, run: Path) -> None:
        self.run, self.seen = run, ""
        self.handle: Any = None

    def __call__(self) -> None:
        """Draw what the folds have written so far; a failure is left to the next call."""
        try:
            logs = {int(path.parent.name[4:]): path for path in self.run.glob("fold[0-9]*/metrics.csv")}
            state = str(sorted((fold, path.stat().st_mtime_ns) for fold, path in logs.items()))
            if logs and state != self.seen:
                self.seen = state
                drawn = fold_curves({fold: read_csv(path) for fold, path in logs.items()})
                self._display(side_by_side(drawn))
        except Exception as error:
            print(f"curves: {type(error).__name__}: {error}")

    def _display(self, drawn: Any) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(drawn, display_id=True)
        else:
            self.handle.update(drawn)


def fold_curves(metrics: dict[int, pd.DataFrame]) -> tuple[Chart, Chart]:
    """Draw loss, and accuracy, by epoch of each fold, from the rows of `metrics.csv`."""
    columns = {
        fold: {str(name): frame[name].tolist() for name in frame if name != "note"} for fold, frame in metrics.items()
    }
    loss, accuracy = (
        curves(quantity, f"{quantity} by epoch of {len(metrics)} folds".capitalize(), columns, quantity=quantity)
        for quantity in ("loss", "accuracy")
    )
    return loss, accuracy


class FoldPictures:
    """What finished folds of a run say: each method returns what `show` displays.

    `run` is the run's folder, `split` the fold file, `data` the competition folder.
    """

    def __init__(self, run: Path, split: Path, data: Path, competition: Competition | None = None) -> None:
        self.run, self.split, self.data, self.competition = run, split, data, competition or current()

    @cached_property
    def report(self) -> Report:
        """The run's out-of-fold rows beside the majority class."""
        return gather_report([self.run], folds=self.split, data=self.data, competition=self.competition)

    @property
    def scored(self) -> ScoredRun:
        """The run on the rows that its finished folds held out."""
        return self.report.scored[0]

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes."""
        return self.competition.classes

    def table(self) -> list[Any]:
        """Return a table with each fold's score, and the scores of all rows and of the majority class."""
        metric, one = self.report.task.metric, self.scored
        run: Run = self.report.runs[0]
        rows = []
        for fold in np.unique(one.fold).tolist():
            mine = one.fold == fold
            found = score(one.labels[mine], one.probabilities[mine], metric)
            log, done = run.metrics.get(fold), run.done.get(fold, {})
            rows.append(
                {
                    "fold": str(fold),
                    "images": int(mine.sum()),
                    METRIC_NAMES[metric]: f"{found.value:.4f} ± {found.standard_error:.4f}",
                    "epochs": "" if log is None else str(len(log)),
                    "minutes": f"{done['seconds'] / 60:.1f}" if "seconds" in done else "",
                }
            )
        for name, each in (("all", one), ("majority class", self.report.baseline)):
            assert each is not None
            text = f"{each.score.value:.4f} ± {each.score.standard_error:.4f}"
            shown = {"images": len(each.rows), METRIC_NAMES[metric]: text}
            rows.append({"fold": name, **shown, "epochs": "", "minutes": ""})
        said = "± is the standard error: a difference below about two of them is not proved by these images"
        return [name_corner(pd.DataFrame(rows).set_index("fold")), said]

    def confusion(self) -> list[Any]:
        """Draw the confusion matrix and each class's recall; of many classes those that are confused most."""
        counts = self.scored.confusion
        shown = most_confused(counts, MOST_CONFUSED)
        alt = f"Confusion matrix of {int(counts.sum()):,} out-of-fold rows; shares of each row."
        names = [short_class(self.classes[k]) for k in shown]
        matrix = confusion_matrix("confusion", alt, names, counts[np.ix_(shown, shown)])
        recall = intervals(
            "recall", "Recall of each class with 95 % intervals.", list(self.classes), recalls(self.scored)
        )
        parts: list[Any] = [*find_warnings(self.report), (matrix, recall)]
        if len(shown) < len(counts):
            parts.append(f"the matrix has the {len(shown)} of {len(counts)} classes with the most mistakes alone")
        return parts

    def mistakes(self, n: int) -> list[Any]:
        """Draw the `n` images whose given label has the least probability; some of these labels may be wrong."""
        assert self.report.folds is not None
        rows = worst_mistakes(self.scored, self.report.folds, n)
        if rows.empty:
            return ["no mistake among the out-of-fold rows"]
        folder = read_competition(self.data, self.competition).image_dir
        photos = [
            read_photo(
                folder / row["image_id"],
                f"given {short_class(self.classes[row['label']])}\n"
                f"says {short_class(self.classes[row['predicted']])}, {row['p_predicted']:.0%}",
            )
            for row in rows.to_dict("records")
        ]
        alt = "The images whose given label the run finds least probable, out of fold."
        return [split_sheet("mistakes", alt, photos, columns=3)]


def most_confused(counts: np.ndarray, most: int) -> list[int]:
    """Return, in order, up to `most` classes of a matrix (K, K): those with the most mistakes in row and column."""
    if len(counts) <= most:
        return list(range(len(counts)))
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    return sorted(order[:most].tolist())
