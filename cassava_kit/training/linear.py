"""Logistic regression on a frozen network's features: `linear_probs`, and `linear_head` as a network's last layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C, the inverse of the penalty
INNER_FOLDS = 3
ABSENT = -1e4  # logit of a class without a training row; float16 holds it


def linear_probs(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, n_classes: int, c: float | None = None
) -> np.ndarray:
    """Return pred_probs (N, K) of a logistic regression on standardised features.

    `c` is scikit-learn's C, the inverse penalty; default: chosen by cross-validation of the training rows.
    """
    model = fit_linear(train, labels, choose_penalty(train, labels) if c is None else c)
    return expand_classes(model.predict_proba(test), model[-1].classes_, n_classes)


def fit_linear(x: np.ndarray, labels: np.ndarray, c: float) -> Any:
    """Return the linear probe: standardised features, then logistic regression at this inverse penalty, fitted."""
    with one_thread():
        return _unfitted(c).fit(x, labels)


def _unfitted(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=500))


def one_thread() -> Any:
    """Let BLAS compute by one thread in the block: beside other work two threads mostly wait for each other."""
    import scipy.linalg  # noqa: F401  # BLAS libraries that are loaded later would not be limited
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1, user_api="blas")


def choose_penalty(x: np.ndarray, labels: np.ndarray, *, parts: np.ndarray | None = None) -> float:
    """Return the one of `PENALTIES` with the least log loss in a cross-validation of these rows.

    They are tried from the strongest penalty on, each from the last one's solution, until the loss rises: weak
    penalties take most of the time, and are seldom the answer for a network's features.

    `parts` (N,) are the numbers of the parts that are held out in turn; rows of -1 are always trained on. Default: a
    stratified split in `INNER_FOLDS`, in which classes with fewer rows than folds are left out of the choice (fewer
    folds where only that leaves two classes). Where nothing can be held out, the middle of the range is returned.
    """
    rows = np.arange(len(labels))
    if parts is None:
        counts = np.bincount(labels)
        folds = next((k for k in range(INNER_FOLDS, 1, -1) if (counts >= k).sum() >= 2), 0)
        rows = np.flatnonzero(counts[labels] >= folds) if folds else rows[:0]
        parts = _stratified(labels[rows], folds) if folds else rows
    held_out = [(train, test) for train, test in _splits(parts) if len(np.unique(labels[rows][train])) > 1]
    if not held_out:
        return PENALTIES[len(PENALTIES) // 2]
    paths = [_losses_by_penalty(x[rows], labels[rows], *each) for each in held_out]
    best, least = PENALTIES[0], np.inf
    with one_thread():
        for c, losses in zip(PENALTIES, zip(*paths, strict=True), strict=True):
            if sum(losses) >= least:
                break
            best, least = c, sum(losses)
    return best


def _stratified(labels: np.ndarray, folds: int) -> np.ndarray:
    """Return the part (N,) in which each row is held out."""
    from sklearn.model_selection import StratifiedKFold

    parts = np.zeros(len(labels), int)
    splitter = StratifiedKFold(folds, shuffle=True, random_state=0)
    for k, (_, test) in enumerate(splitter.split(labels, labels)):
        parts[test] = k
    return parts


def _splits(parts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (training, held-out) masks of rows, a part at a time."""
    for k in np.unique(parts[parts >= 0]):
        yield parts != k, parts == k


def _losses_by_penalty(x: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> Iterator[float]:
    """Yield the sum of -log p over the held-out rows at each of `PENALTIES`, fitted when it is asked for.

    A class that is not trained on has the least p there is.
    """
    scaler, model = _unfitted(PENALTIES[0])
    trained, asked = scaler.fit_transform(x[train]), scaler.transform(x[test])
    model.set_params(warm_start=True)
    for c in PENALTIES:
        model.set_params(C=c).fit(trained, labels[train])
        probs = expand_classes(model.predict_proba(asked), model.classes_, int(labels.max()) + 1)
        right = probs[np.arange(len(probs)), labels[test]]
        yield float(-np.log(np.maximum(right, np.finfo(np.float64).eps)).sum())


def expand_classes(probs: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return probabilities of some classes (N, S) as those of all classes (N, K), 0 for the others."""
    full = np.zeros((len(probs), n_classes))
    full[:, classes] = probs
    return full


def linear_head(model: Any, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what `fit_linear` fitted as one layer on plain features: weights (K, D) and biases (K,).

    The standardisation is folded in: W x + b gives logits whose softmax is the model's `predict_proba`. A class without
    a training row has weights 0 and the bias `ABSENT`.
    """
    scaler, regression = model[0], model[-1]
    coefficients, intercepts = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # one score, whose sigmoid is the second class's probability
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weights = np.zeros((n_classes, coefficients.shape[1]))
    biases = np.full(n_classes, ABSENT)
    weights[regression.classes_] = coefficients / scaler.scale_
    biases[regression.classes_] = intercepts - (coefficients / scaler.scale_) @ scaler.mean_
    return weights, biases
