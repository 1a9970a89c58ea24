"""What a frozen backbone knows: cached features, kNN and a linear probe, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from cassava_kit.inference.features import Pixels, extract_features

NEIGHBOURS = 20
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: decades around where frozen features are fitted best
INNER_FOLDS = 3


def knn_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, k: int = NEIGHBOURS
) -> np.ndarray:
    """Shares of the k nearest training rows by cosine, weighted by similarity: pred_probs (N, K)."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    model = KNeighborsClassifier(min(k, len(train)), weights=_similarity, metric="euclidean")
    model.fit(normalize(train), labels)
    return spread(model.predict_proba(normalize(test)), model.classes_, n_classes)


def _similarity(distances: np.ndarray) -> np.ndarray:
    """exp(cosine / 0.1) of Euclidean distances between unit vectors: Wu et al. 2018, the usual kNN probe's weights."""
    return np.exp((1 - distances**2 / 2 - 1) / 0.1)


def linear_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, c: float | None = None
) -> np.ndarray:
    """Logistic regression on standardised features: pred_probs (N, K).

    `c` is scikit-learn's inverse penalty; none: the one with the least log loss in a cross-validation of the training
    rows (`choose_penalty`).
    """
    model = linear_model(choose_penalty(train, labels) if c is None else c)
    model.fit(train, labels)
    return spread(model.predict_proba(test), model[-1].classes_, n_classes)


def linear_model(c: float) -> Any:
    """The linear probe, not yet fitted: standardised features, then logistic regression at this inverse penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))


def choose_penalty(x: np.ndarray, labels: np.ndarray) -> float:
    """The inverse penalty of `PENALTIES` with the least log loss in a stratified cross-validation of these rows.

    Classes with fewer rows than folds take no part in the choice, and there are as many folds, up to `INNER_FOLDS`, as
    leave two classes. Where none do (one row a class) the middle of the range is taken.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    counts = np.bincount(labels)
    folds = next((k for k in range(INNER_FOLDS, 1, -1) if (counts >= k).sum() >= 2), None)
    if folds is None:
        return PENALTIES[len(PENALTIES) // 2]
    rows = counts[labels] >= folds
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    grid = {"logisticregression__C": PENALTIES}
    search = GridSearchCV(linear_model(1.0), grid, scoring="neg_log_loss", cv=splitter, refit=False)
    search.fit(x[rows], labels[rows])
    return float(PENALTIES[int(np.argmax(search.cv_results_["mean_test_score"]))])


def spread(probs: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Probabilities of the classes seen (N, S) as those of all classes (N, K)."""
    full = np.zeros((len(probs), n_classes))
    full[:, classes] = probs
    return full


def balanced_answers(pred_probs: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """Most probable class once every class is equally frequent: the decision that balanced accuracy rewards."""
    counts = np.bincount(train_labels, minlength=pred_probs.shape[1])
    return (pred_probs / np.maximum(counts, 1)).argmax(axis=1)


def balanced_accuracy(labels: np.ndarray, answers: np.ndarray) -> float:
    """Mean of the classes' recalls, over the classes that occur."""
    return float(np.mean([np.mean(answers[labels == k] == k) for k in np.unique(labels)]))


class Probe:
    """A fixed half of labelled images as a bank and the other half as questions, for a look every few epochs."""

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, pixels: Pixels, *, limit: int = 2000, seed: int = 0
    ) -> None:
        labels = np.asarray(labels)
        known = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[known]) if len(known) else np.zeros(0, dtype=int)
        if (counts >= 2).sum() < 2:
            raise ValueError(
                "a kNN probe needs at least two classes with two labelled images each; give labels or none"
            )
        order = np.random.default_rng(seed).permutation(known[counts[labels[known]] >= 2])[:limit]
        self.paths, self.labels, self.pixels = [Path(paths[i]) for i in order], labels[order], pixels
        self.bank = self._stratified_half()

    def _stratified_half(self) -> np.ndarray:
        half = np.zeros(len(self.labels), dtype=bool)
        for k in np.unique(self.labels):
            half[np.flatnonzero(self.labels == k)[::2]] = True
        return half

    def knn(self, backbone: nn.Module) -> tuple[float, float]:
        """Accuracy and balanced accuracy of the half that asks."""
        features = extract_features(backbone, self.paths, self.pixels)
        bank, labels = self.bank, self.labels
        probs = knn_probs(features[bank], labels[bank], features[~bank], n_classes=int(labels.max()) + 1)
        plain = float(np.mean(probs.argmax(axis=1) == labels[~bank]))
        return plain, balanced_accuracy(labels[~bank], balanced_answers(probs, labels[bank]))
