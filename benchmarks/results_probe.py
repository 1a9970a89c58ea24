"""Linear probes of a frozen backbone: its features as the mean over views, a penalty found without the scored rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

STRENGTHS = (0.003, 0.01, 0.03, 0.1)


def mean_over_views(backbone: Any, views: Sequence[Any]) -> Any:
    """A module that answers with the mean of a backbone's features over views."""
    from torch import nn

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, images: Any) -> Any:
            return sum(self.backbone(view(images)) for view in views) / len(views)

    return Mean()


def nested_probe(x: np.ndarray, labels: np.ndarray, fold: np.ndarray, *, n_classes: int) -> np.ndarray:
    """Probabilities (N, K) of linear probes: each fold's penalty is the one with the least log-loss on the others."""
    from cassava_kit.evidence.calibration import logloss
    from cassava_kit.training.linear import linear_probs

    def probe(bank: np.ndarray, asked: np.ndarray, strength: float) -> np.ndarray:
        c = 100 * strength / bank.sum()  # scikit-learn's C sums losses over the rows: `strength` is for 100 of them
        return linear_probs(x[bank], labels[bank], x[asked], n_classes=n_classes, c=c)

    def crossed(rows: np.ndarray, c: float) -> float:
        answers = np.zeros((len(labels), n_classes))
        for k in np.unique(fold[rows]):
            bank, asked = rows & (fold != k), rows & (fold == k)
            answers[asked] = probe(bank, asked, c)
        return logloss(labels[rows], answers[rows])

    answers = np.zeros((len(labels), n_classes))
    for k in np.unique(fold):
        rows = fold != k
        c = min(STRENGTHS, key=lambda strength: crossed(rows, strength))
        answers[~rows] = probe(rows, ~rows, c)
    return answers
