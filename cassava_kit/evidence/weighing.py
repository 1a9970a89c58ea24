"""Ways to find ensemble weights from labels and members' probabilities; entry point `find_weights`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cassava_kit.competition import Metric
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import gain, statistic

WEIGHT_METHODS = ("mean", "logloss", "greedy", "stack")
GREEDY_ROUNDS = 20
EM_ROUNDS = 500
EM_TOLERANCE = 1e-7


def mean_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Return the plain mean's weights: 1/M each."""
    return np.full(len(pred_probs), 1 / len(pred_probs))


def logloss_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Return the weights on the simplex with the least log-loss, by expectation maximisation (the problem is convex).

    Members are a mixture; w_m <- mean of member m's share in the mixture's probability of the label.
    """
    p = np.clip(pred_probs[:, np.arange(len(labels)), labels], 1e-12, None)
    w = mean_weights(labels, pred_probs)
    for _ in range(EM_ROUNDS):
        share = w[:, None] * p
        new = (share / share.sum(axis=0)).mean(axis=1)
        done = np.abs(new - w).max() < EM_TOLERANCE
        w = new
        if done:
            break
    return w / w.sum()


def greedy_weights(labels: np.ndarray, pred_probs: np.ndarray, metric: Metric) -> np.ndarray:
    """Select members with replacement (Caruana et al. 2004): add the one that helps most, twenty times.

    What helps is the metric, then the log-loss; of equal members the earlier is added. The weights are those of the
    best round, of equal rounds the earlier.
    """
    total, counts = np.zeros_like(pred_probs[0]), np.zeros(len(pred_probs))
    best: tuple[tuple[float, float], np.ndarray] | None = None
    for _ in range(GREEDY_ROUNDS):
        scores = [fit_of_blend(labels, total + member, metric) for member in pred_probs]
        m = max(range(len(scores)), key=lambda i: (scores[i], -i))
        total, counts[m] = total + pred_probs[m], counts[m] + 1
        if best is None or scores[m] > best[0]:
            best = scores[m], counts / counts.sum()
    assert best is not None
    return best[1]


def fit_of_blend(labels: np.ndarray, total: np.ndarray, metric: Metric) -> tuple[float, float]:
    """Return the metric and the mean log-probability of an unnormalised blend (N, K); larger is better in both.

    Both are rounded to twelve digits, so that equal blends that were added up in another order stay equal.
    """
    right = total[np.arange(len(labels)), labels] / total.sum(axis=1)
    value = statistic(metric, labels, total)(np.ones(len(labels)))
    return round(gain(metric, 0.0, value), 12), round(float(np.log(np.clip(right, 1e-12, None)).mean()), 12)


def stack_weights(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Stack with non-negative least squares (Breiman 1996): regress the one-hot label on members' probabilities."""
    from scipy.optimize import nnls

    onehot = np.eye(pred_probs.shape[2])[labels]
    design = pred_probs.reshape(len(pred_probs), -1)
    # The normal equations' square root keeps the problem M x M for any number of rows.
    gram, moment = design @ design.T, design @ onehot.ravel()
    root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) * np.eye(len(gram)))
    w, _ = nnls(root.T, np.linalg.solve(root, moment))
    return w / w.sum() if w.sum() > 0 else mean_weights(labels, pred_probs)


def find_weights(
    labels: np.ndarray, pred_probs: np.ndarray, method: str = "mean", metric: Metric = "accuracy"
) -> np.ndarray:
    """Return members' weights (M,), at least 0 and summing to 1, for labels (N,) and probabilities (M, N, K).

    `method` is one of `mean`, `logloss`, `greedy` (which looks at the metric) and `stack`.
    """
    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "mean": mean_weights,
        "logloss": logloss_weights,
        "greedy": partial(greedy_weights, metric=metric),
        "stack": stack_weights,
    }
    if method not in found:
        raise UserError(f"method must be one of {', '.join(WEIGHT_METHODS)}, got {method!r}")
    return found[method](labels, pred_probs)
