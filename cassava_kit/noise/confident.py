"""Confident learning (Northcutt et al. 2021) in numpy: cleanlab's five filters, row for row.

cleanlab is the reference and the tests hold this module to it. What is ours: ties between rows go to the earlier one,
where an unstable sort decides there, and no process pool or copy of the probabilities, so that a million rows take
well under a second.
"""

from __future__ import annotations

import numpy as np

FILTERS = ("prune_by_noise_rate", "prune_by_class", "both", "confident_learning", "predicted_neq_given")
CLOSE = 1e-6  # cleanlab's tolerance: probabilities this close count as equal


def check_inputs(labels: np.ndarray, pred_probs: np.ndarray) -> None:
    """ValueError unless labels (N,) are classes 0..K-1 of probabilities (N, K)."""
    if pred_probs.ndim != 2 or labels.shape != pred_probs.shape[:1] or not len(labels):
        raise ValueError(f"expected labels (N,) and probabilities (N, K), got {labels.shape} and {pred_probs.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= pred_probs.shape[1]:
        raise ValueError(
            f"labels must be whole numbers in 0..{pred_probs.shape[1] - 1}; join them to the right classes"
        )


def thresholds(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Mean probability of class k over the rows labelled k, (K,); 2 for a class without rows, which no row reaches."""
    counts = np.bincount(labels, minlength=pred_probs.shape[1])
    means = [pred_probs[labels == k, k].mean() if n else 2.0 for k, n in enumerate(counts)]
    return np.clip(means, 2 * CLOSE, None)


def confident_class(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """The one class above its threshold (the most probable of several), or -1 for none, (N,)."""
    limit = thresholds(labels, pred_probs) - CLOSE
    n_above = np.zeros(len(labels), np.int16)
    found = np.full(len(labels), -1)
    for k in range(pred_probs.shape[1]):
        above = pred_probs[:, k] >= limit[k]
        n_above += above
        found[above] = k
    several = n_above > 1
    found[several] = pred_probs[several].argmax(axis=1)
    return found


def _joint(labels: np.ndarray, confident: np.ndarray, k: int) -> np.ndarray:
    """Counts (K, K) of rows labelled j that are confidently k, scaled so that row j sums to the rows labelled j."""
    sure = confident >= 0
    # Laid out by column, as in the reference: its sums then agree to the last bit, and so do ties in the rounding.
    joint = np.bincount(confident[sure] * k + labels[sure], minlength=k * k).reshape(k, k).T
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    counts = np.bincount(labels, minlength=k)
    scaled = (joint.T / joint.sum(axis=1) * counts).T
    scaled = scaled / scaled.sum() * counts.sum()
    return np.stack([_rounded(row) for row in scaled])


def _rounded(row: np.ndarray) -> np.ndarray:
    """Whole numbers with the row's (rounded) sum: the ones furthest from their rounding give way.

    Among classes that are equally far the reference's own sort decides, so that the counts are the reference's.
    """
    whole = row.round()
    while (short := round(row.sum().round() - whole.sum())) != 0:
        step = 1 if short > 0 else -1
        order = np.argsort(row - whole)[::-step]
        whole[order[: abs(short)]] += step
    return whole.astype(int)


def find_issues(labels: np.ndarray, pred_probs: np.ndarray, *, filter_by: str = FILTERS[0]) -> np.ndarray:
    """Mask (N,) of rows whose label is probably wrong, by one of cleanlab's filters; ties go to the earlier row."""
    if filter_by not in FILTERS:
        raise ValueError(f"filter_by must be one of {', '.join(FILTERS)}, got {filter_by!r}")
    check_inputs(labels, pred_probs)
    if filter_by == "predicted_neq_given":
        return (pred_probs.argmax(axis=1) != labels) & ~_label_is_top(labels, pred_probs)
    confident = confident_class(labels, pred_probs)
    if filter_by == "confident_learning":
        return (confident >= 0) & (confident != labels) & ~_label_is_top(labels, pred_probs)
    counts = _prune_counts(_joint(labels, confident, pred_probs.shape[1]))
    del confident
    flags = np.ones(len(labels), bool)
    if filter_by in ("prune_by_noise_rate", "both"):
        flags &= _by_noise_rate(labels, pred_probs, counts)
    if filter_by in ("prune_by_class", "both"):
        flags &= _by_class(labels, pred_probs, counts)
    return flags & ~_label_is_top(labels, pred_probs)


def _prune_counts(joint: np.ndarray) -> np.ndarray:
    """Rows to take from label k because they are j, at [j, k]; at least one row of every class is left."""
    counts = joint.T
    kept = np.maximum(counts.diagonal(), 1)
    others = np.maximum(np.count_nonzero(counts, axis=0) - 1.0, 1.0)
    reduced = np.clip(counts - (kept - counts.diagonal()) / others, 0, None)
    np.fill_diagonal(reduced, kept)
    return reduced.astype(int)


def _by_noise_rate(labels: np.ndarray, pred_probs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each pair (label k, class j) the counted rows with the largest p_j - p_k."""
    flags = np.zeros(len(labels), bool)
    for k in range(len(counts)):
        rows = np.flatnonzero(labels == k)
        if len(rows) < 2:
            continue
        own = pred_probs[rows, k]
        for j in np.flatnonzero(counts[:, k]):
            if j != k:
                flags[rows[smallest(own - pred_probs[rows, j], counts[j, k])]] = True
    return flags


def _by_class(labels: np.ndarray, pred_probs: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """For each label k the counted rows with the smallest p_k."""
    flags = np.zeros(len(labels), bool)
    for k in range(len(counts)):
        rows = np.flatnonzero(labels == k)
        if len(rows) >= 2:
            flags[rows[smallest(pred_probs[rows, k], len(rows) - counts[k, k])]] = True
    return flags


def smallest(values: np.ndarray, n: int) -> np.ndarray:
    """Mask of the n smallest values, exactly n of them; of equal values the earlier."""
    if n <= 0:
        return np.zeros(len(values), bool)
    if n >= len(values):
        return np.ones(len(values), bool)
    limit = np.partition(values, n - 1)[n - 1]
    mask = values < limit
    mask[np.flatnonzero(values == limit)[: n - int(mask.sum())]] = True
    return mask


def _label_is_top(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Rows whose label is the most probable class, or within 1e-6 of it: never flagged."""
    own = pred_probs[np.arange(len(labels)), labels] + CLOSE
    top = np.ones(len(labels), bool)
    for j in range(pred_probs.shape[1]):
        p = pred_probs[:, j]
        top &= (p < own) | (labels == j) | ((p == own) & (labels < j))
    return top


def margin(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The label's value minus the largest other one, (N,), for any scores (N, K)."""
    others = values.astype(float)
    others[np.arange(len(labels)), labels] = -np.inf
    return values[np.arange(len(labels)), labels] - others.max(axis=1)
