"""What an image's neighbours in an embedding say of its label."""

from __future__ import annotations

import numpy as np

REACH = 64  # neighbours remembered for each row, of which votes take the nearest that are still trusted
CHUNK = 1024


def nearest(embedding: np.ndarray, *, reach: int = REACH, of: np.ndarray | None = None) -> np.ndarray:
    """Rows of the nearest others by cosine of the centred embedding (N, D), nearest first, (N, reach).

    `of` (Q,) asks for the neighbours of some rows alone, (Q, reach). Equal distances go to the earlier row.
    """
    if embedding.ndim != 2 or len(embedding) < 3 or not np.isfinite(embedding).all():
        raise ValueError(f"expected a finite embedding (N, D) of at least 3 images, got shape {embedding.shape}")
    reach = min(reach, len(embedding) - 1)
    x = embedding.astype(np.float32) - embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    asked = np.arange(len(x)) if of is None else np.asarray(of)
    found = np.empty((len(asked), reach), np.int64)
    for start in range(0, len(asked), CHUNK):
        rows = asked[start : start + CHUNK]
        similarity = x[rows] @ x.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        top = np.sort(np.argpartition(-similarity, reach - 1, axis=1)[:, :reach], axis=1)
        order = np.argsort(-np.take_along_axis(similarity, top, axis=1), axis=1, kind="stable")
        found[start : start + CHUNK] = np.take_along_axis(top, order, axis=1)
    return found


def votes(neighbours: np.ndarray, labels: np.ndarray, trusted: np.ndarray, *, k: int, n_classes: int) -> np.ndarray:
    """Class shares (N, K) among each row's k nearest trusted neighbours, with one vote spread over all classes.

    neighbours (N, reach) as from `nearest`; trusted (N,) bool. A row's own label never votes.
    """
    used = trusted[neighbours]
    used &= used.cumsum(axis=1) <= k
    counts = np.stack([(used & (labels[neighbours] == c)).sum(axis=1) for c in range(n_classes)], axis=1)
    return (counts + 1 / n_classes) / (used.sum(axis=1, keepdims=True) + 1)
