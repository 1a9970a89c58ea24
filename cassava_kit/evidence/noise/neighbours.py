"""Neighbours of images in an embedding, and how far their labels agree; entry point `neighbour_agreement`."""

from __future__ import annotations

import numpy as np

from cassava_kit.errors import UserError

N_NEIGHBOURS = 10
WORKING_MEMORY = 128  # MiB for distances at a time


def nearest(embedding: np.ndarray, *, reach: int = N_NEIGHBOURS, of: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of the nearest others by cosine of the centred embedding (N, D), nearest first, (N, reach).

    `of` (Q,) asks for the neighbours of some rows alone, (Q, reach). Fewer are returned where there are fewer others.

    Raises:
        UserError: where the embedding is not a finite (N, D) of at least 3 images.
    """
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    if embedding.ndim != 2 or len(embedding) < 3 or not np.isfinite(embedding).all():
        raise UserError(f"expected a finite embedding (N, D) of at least 3 images, got shape {embedding.shape}")
    reach = min(reach, len(embedding) - 1)
    x = embedding.astype(np.float32) - embedding.mean(axis=0, dtype=np.float64).astype(np.float32)
    asked = np.arange(len(x)) if of is None else np.asarray(of)
    with config_context(working_memory=WORKING_MEMORY):
        model = NearestNeighbors(n_neighbors=reach + 1, metric="cosine").fit(x)
        found = model.kneighbors(x[asked], return_distance=False)
    itself = found == asked[:, None]
    itself[~itself.any(axis=1), -1] = True  # several copies of an image may leave no room for itself
    return np.asarray(found[~itself].reshape(len(asked), reach))


def neighbour_agreement(embedding: np.ndarray, labels: np.ndarray, *, k: int = N_NEIGHBOURS) -> np.ndarray:
    """Return the share of each row's k nearest others that carry its own label, (N,) in 0..1.

    A second look at suspicious rows: in a good embedding a wrong label disagrees with its neighbours' as well. It flags
    nothing, for people err alike on images that look alike.
    """
    return np.asarray((labels[nearest(embedding, reach=k)] == labels[:, None]).mean(axis=1))
