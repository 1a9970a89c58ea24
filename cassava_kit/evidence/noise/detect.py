"""Which labels are probably wrong, by cleanlab on out-of-fold probabilities; entry point `detect_errors`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from cassava_kit.evidence.metrics import check_scored


@dataclass(frozen=True)
class LabelErrors:
    """What the labels look like against out-of-fold probabilities, in the order of the rows.

    `quality` (N,) in 0..1 is cleanlab's normalized margin, lowest most suspicious; `flags` (N,) bool; `suggested` (N,)
    is the most probable class where a row is flagged, else its label; `pred_probs` (N, K) is the members' mean.
    `never_predicted` lists the classes that have rows and are no row's most probable class: none of their rows is
    flagged. `held_back` counts the flags that this takes back. `disagreeing` counts the labels that are not the most
    probable class.
    """

    labels: np.ndarray
    quality: np.ndarray
    flags: np.ndarray
    suggested: np.ndarray
    pred_probs: np.ndarray
    never_predicted: tuple[int, ...] = ()
    held_back: int = 0

    @property
    def disagreeing(self) -> int:
        """Number of labels that are not the most probable class."""
        return int((self.pred_probs.argmax(axis=1) != self.labels).sum())

    def describe(self, classes: Sequence[str]) -> str:
        """Return in words how many labels are suspicious, and which of the classes, by name, no row is predicted as."""
        found = (
            f"{int(self.flags.sum()):,} of {len(self.flags):,} labels ({self.flags.mean():.1%}) are suspicious "
            f"(cleanlab), {self.disagreeing:,} ({self.disagreeing / len(self.flags):.1%}) are not the most probable "
            "class"
        )
        if not self.never_predicted:
            return found
        never = " or ".join(classes[k] for k in self.never_predicted)
        return (
            f"{found}\nno row is predicted as {never}: the members do not know it, so that none of its rows is flagged "
            f"({self.held_back:,} flags taken back)"
        )


def detect_errors(labels: ArrayLike, pred_probs: ArrayLike) -> LabelErrors:
    """Find labels that are probably wrong, with cleanlab's confident learning (Northcutt et al. 2021).

    `find_label_issues` says which rows, `get_label_quality_scores(method="normalized_margin")` in which order, both on
    the mean of the members. Rows of a class that is never predicted are not flagged.

    Args:
        labels: given labels (N,), whole numbers 0..K-1.
        pred_probs: out-of-fold probabilities of one model (N, K) or of several (M, N, K).

    Raises:
        UserError: where labels and probabilities do not fit together.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given, mean = _mean_of_members(labels, pred_probs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "May not flag all label issues")  # said of a class that has no row
        flags = np.asarray(find_label_issues(given, mean, n_jobs=1), bool)
    quality = np.asarray(get_label_quality_scores(given, mean, method="normalized_margin"), float).clip(0, 1)
    predicted = mean.argmax(axis=1)
    never = np.setdiff1d(given, predicted)
    unknown = np.isin(given, never)
    kept = flags & ~unknown
    return LabelErrors(
        labels=given,
        quality=quality,
        flags=kept,
        suggested=np.where(kept, predicted, given),
        pred_probs=mean,
        never_predicted=tuple(never.tolist()),
        held_back=int((flags & unknown).sum()),
    )


def _mean_of_members(labels: ArrayLike, pred_probs: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (N,) and the members' mean (N, K), rows of sum 1; UserError where they do not fit together."""
    members = list(np.asarray(pred_probs)) if np.ndim(pred_probs) == 3 else [pred_probs]
    checked = [check_scored(labels, member) for member in members]
    mean = np.mean([p for _, p in checked], axis=0)
    return checked[0][0], mean / mean.sum(axis=1, keepdims=True)
