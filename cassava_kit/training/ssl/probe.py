"""Nearest neighbours in a frozen backbone's features: `knn_probs`, and `KnnHalves` during a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from cassava_kit.errors import UserError
from cassava_kit.inference.features import Pixels, extract_features
from cassava_kit.training.linear import expand_classes

NEIGHBOURS = 20


def knn_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, k: int = NEIGHBOURS
) -> np.ndarray:
    """Return pred_probs (N, K): shares of the k nearest training rows by cosine, weighted by similarity."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    model = KNeighborsClassifier(min(k, len(train)), weights=_similarity, metric="euclidean")
    model.fit(normalize(train), labels)
    return expand_classes(model.predict_proba(normalize(test)), model.classes_, n_classes)


def _similarity(distances: np.ndarray) -> np.ndarray:
    """Return exp(cosine / 0.1) of Euclidean distances between unit vectors, the weights of Wu et al. 2018."""
    return np.exp((1 - distances**2 / 2 - 1) / 0.1)


def balanced_answers(pred_probs: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """Return the most probable class (N,) under equal class frequencies, which maximises balanced accuracy."""
    counts = np.bincount(train_labels, minlength=pred_probs.shape[1])
    return (pred_probs / np.maximum(counts, 1)).argmax(axis=1)


def balanced_accuracy(labels: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean recall of the classes that occur."""
    return float(np.mean([np.mean(answers[labels == k] == k) for k in np.unique(labels)]))


class KnnHalves:
    """Labelled images in two fixed stratified halves: the one is classified by its nearest neighbours in the other.

    Raises:
        UserError: fewer than two classes have two labelled images.
    """

    def __init__(
        self, paths: Sequence[Path], labels: np.ndarray, pixels: Pixels, *, limit: int = 2000, seed: int = 0
    ) -> None:
        labels = np.asarray(labels)
        known = np.flatnonzero(labels >= 0)
        counts = np.bincount(labels[known]) if len(known) else np.zeros(0, dtype=int)
        if (counts >= 2).sum() < 2:
            raise UserError("a kNN probe needs at least two classes with two labelled images each; give labels or none")
        order = np.random.default_rng(seed).permutation(known[counts[labels[known]] >= 2])[:limit]
        self.paths, self.labels, self.pixels = [Path(paths[i]) for i in order], labels[order], pixels
        self.bank = self._stratified_half()

    def _stratified_half(self) -> np.ndarray:
        half = np.zeros(len(self.labels), dtype=bool)
        for k in np.unique(self.labels):
            half[np.flatnonzero(self.labels == k)[::2]] = True
        return half

    def score(self, backbone: nn.Module) -> tuple[float, float]:
        """Return accuracy and balanced accuracy of a backbone's features."""
        features = extract_features(backbone, self.paths, self.pixels)
        bank, labels = self.bank, self.labels
        probs = knn_probs(features[bank], labels[bank], features[~bank], n_classes=int(labels.max()) + 1)
        plain = float(np.mean(probs.argmax(axis=1) == labels[~bank]))
        return plain, balanced_accuracy(labels[~bank], balanced_answers(probs, labels[bank]))
