"""A run replayed from known probabilities: `simulate_votes`."""

import numpy as np

from cassava_kit.inference.votes import Votes


def simulate_votes(
    pred_probs: np.ndarray,
    weights: np.ndarray,
    order: np.ndarray,
    *,
    certified: bool,
    temperatures: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Replay a run in which members vote in `order`, and finished images are skipped.

    `pred_probs` (M, N, K), `weights` (M,), `temperatures` (K,) of the classes. Returns the labels (N,) and the mean
    number of votes used.
    """
    n_members, n_images, n_classes = pred_probs.shape
    votes = Votes(n_images, np.asarray(weights, float), np.full(n_classes, 1 / n_classes), temperatures)
    planned = np.ones(n_members, bool)
    for unit in order:
        rows = np.flatnonzero(~votes.finished(planned, certified=certified) & ~votes.seen[:, unit])
        votes.add(int(unit), rows, pred_probs[unit, rows])
    return votes.labels(), float(votes.seen.sum(axis=1).mean())
