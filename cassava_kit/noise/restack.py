"""The second round without training again: the labels learned once more, from trusted rows' probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cassava_kit.calibration import calibrated, logloss
from cassava_kit.noise.neighbours import votes

FLOOR = 1e-3  # probabilities below this are not told apart in a blend
FEATURE_FLOOR = 0.01
UNSEEN = 1e-6
VOTERS = (8, 25)
STRENGTHS = (0.003, 0.05)  # inverse regularisation; the one with the smaller out-of-fold log-loss is taken


def evidence_features(
    members: np.ndarray, labels: np.ndarray, trusted: np.ndarray, neighbours: np.ndarray | None
) -> np.ndarray:
    """What the second round learns from: members' log-probabilities, (N, M * K) and more with neighbours' votes."""
    n_classes = members.shape[2]
    blocks = list(members)
    if neighbours is not None:
        blocks += [votes(neighbours, labels, trusted, k=k, n_classes=n_classes) for k in VOTERS]
    return np.concatenate([np.log(np.clip(block, FEATURE_FLOOR, 1)) for block in blocks], axis=1)


def restack(
    features: np.ndarray, labels: np.ndarray, fold: np.ndarray, *, keep: np.ndarray, n_classes: int
) -> np.ndarray:
    """Out-of-fold probabilities (N, K) of a logistic regression that learned from the kept rows alone.

    Its strength and its temperature are found on all rows of the other folds: the kept rows alone make it too sure.
    """
    learned = (_learned(features, labels, fold, keep, strength) for strength in STRENGTHS)
    found = [calibrated(labels, _widened(p, n_classes), fold, class_wise=False) for p in learned]
    best = np.empty_like(found[0])
    for held_out in np.unique(fold):
        out = fold == held_out
        best[out] = min(found, key=lambda p: logloss(labels[~out], p[~out]))[out]
    return best


def _learned(
    features: np.ndarray, labels: np.ndarray, fold: np.ndarray, keep: np.ndarray, strength: float
) -> np.ndarray:
    """Out-of-fold probabilities of one regression; a class that no kept row has gets a millionth."""
    from sklearn.linear_model import LogisticRegression

    p = np.full((len(labels), int(labels.max()) + 1), UNSEEN)
    for held_out in np.unique(fold):
        out, rows = fold == held_out, (fold != held_out) & keep
        classes = np.unique(labels[rows])
        if len(classes) < 2:
            p[np.ix_(out, classes)] = 1.0
            continue
        model = LogisticRegression(C=strength, max_iter=300).fit(features[rows], labels[rows])
        p[np.ix_(out, model.classes_)] = np.maximum(model.predict_proba(features[out]), UNSEEN)
    return p


def _widened(p: np.ndarray, n_classes: int) -> np.ndarray:
    """Normalised probabilities with columns for the last classes too, where no label has them."""
    wide = np.pad(p, ((0, 0), (0, n_classes - p.shape[1])), constant_values=UNSEEN)
    return wide / wide.sum(axis=1, keepdims=True)


def geometric_mean(parts: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """Normalised geometric mean of probabilities (N, K), weighted if weights are given; never 0."""
    g = np.exp(np.average([np.log(np.clip(p, FLOOR, 1)) for p in parts], axis=0, weights=weights))
    return g / g.sum(axis=1, keepdims=True)
