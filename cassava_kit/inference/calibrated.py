"""Out-of-fold evidence for the submission run: what each member is worth, and how early an image may stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cassava_kit.competition import Metric
from cassava_kit.inference.votes import StopRule, simulate_stop
from cassava_kit.metrics import gain, value

TARGET = 0.002
THRESHOLDS = np.geomspace(0.01, 10, 61)
RANDOM_ORDERS = 8


def ensemble_evidence(
    metric: Metric,
    names: Sequence[str],
    labels: np.ndarray,
    pred_probs: np.ndarray,
    weights: Sequence[float] | np.ndarray,
) -> dict[str, Any]:
    """What `ensemble.oof` carries beside its score: `loss_without`, and `early_stop` where there is evidence.

    `names` (M,), `labels` (N,), `pred_probs` (M, N, K) out of fold, `weights` (M,). JSON as it is.
    """
    evidence: dict[str, Any] = {"loss_without": loss_without(metric, names, labels, pred_probs, weights)}
    early_stop = early_stop_evidence(pred_probs, labels, weights)
    return evidence | ({"early_stop": early_stop} if early_stop is not None else {})


def loss_without(
    metric: Metric,
    names: Sequence[str],
    labels: np.ndarray,
    pred_probs: np.ndarray,
    weights: Sequence[float] | np.ndarray,
) -> dict[str, float]:
    """How much worse the ensemble's metric is out of fold without each member in turn, the others' weights as they are.

    A member whose loss leaves nothing that votes is left out of the answer.
    """
    w = np.asarray(weights, float)
    whole = value(metric, labels, np.tensordot(w, pred_probs, axes=1))
    found = {}
    for m, name in enumerate(names):
        others = np.where(np.arange(len(w)) == m, 0.0, w)
        if others.sum() > 1e-9:
            rest = np.tensordot(others, pred_probs, axes=1)
            found[name] = gain(metric, value(metric, labels, rest), whole)
    return found


def early_stop_evidence(
    pred_probs: np.ndarray, labels: np.ndarray, weights: Sequence[float] | np.ndarray
) -> dict[str, Any] | None:
    """The calibrated stop for an ensemble file, and what it does on rows that it was not calibrated on.

    pred_probs (M, N, K), labels (N,), weights (M,); the members vote in several random orders, for a run's own order is
    not known before its time is. `threshold` and `min_share` come from all rows. `changed` (with `changed_at_most`, its
    95 % bound), `accuracy`, `accuracy_full` and `votes` (the share of the votes that were asked for) are held out: each
    half of the rows by the other half's threshold. None with fewer than 2 members that weigh anything, or where no
    threshold keeps `TARGET`.
    """
    w = np.asarray(weights, float)
    voting = w > 0
    if voting.sum() < 2 or pred_probs.shape[1] < 2:
        return None
    p, w = pred_probs[voting], w[voting] / w.sum()
    orders = vote_orders(w, None)
    rule = calibrate_stop(p, w, orders)
    if rule.kind != "calibrated":
        return None
    full = np.tensordot(w, p, axes=1).argmax(axis=1)
    halves = np.random.default_rng(0).permutation(len(full)) % 2 == 0
    changed, right, votes = np.zeros(len(full)), np.zeros(len(full)), 0.0
    for half in (halves, ~halves):
        held_out = calibrate_stop(p[:, ~half], w, orders)
        for order in orders:
            answers, used = simulate_stop(p[:, half], w, order, held_out)
            changed[half] += (answers != full[half]) / len(orders)
            right[half] += (answers == labels[half]) / len(orders)
            votes += used / len(w) * half.mean() / len(orders)
    return {
        "threshold": rule.threshold,
        "min_share": rule.min_share,
        "changed": float(changed.mean()),
        "changed_at_most": at_most(float(changed.sum()), len(full)),
        "accuracy": float(right.mean()),
        "accuracy_full": float((full == labels).mean()),
        "votes": votes,
        "target": TARGET,
        "rows": len(full),
    }


def vote_orders(weights: np.ndarray, costs: np.ndarray | None) -> list[np.ndarray]:
    """Orders in which members (M,) vote: one by weight per second if costs are known, else several drawn at random."""
    if costs is not None:
        return [np.argsort(-weights / np.maximum(costs, 1e-12), kind="stable")]
    return [np.random.default_rng(seed).permutation(len(weights)) for seed in range(RANDOM_ORDERS)]


def calibrate_stop(
    pred_probs: np.ndarray, weights: np.ndarray, orders: Sequence[np.ndarray], *, target: float = TARGET
) -> StopRule:
    """The least of `THRESHOLDS` at which at most `target` of the labels differ from the full ensemble's.

    pred_probs (M, N, K), weights (M,) sum to 1; the share is the mean over `orders`. The certified rule where even the
    largest threshold changes more.
    """
    full = np.tensordot(weights, pred_probs, axes=1).argmax(axis=1)

    def rule(i: int) -> StopRule:
        threshold, share = float(THRESHOLDS[i]), float(weights.min())
        stop = StopRule("calibrated", threshold, share)
        changed = [np.mean(simulate_stop(pred_probs, weights, order, stop)[0] != full) for order in orders]
        return StopRule("calibrated", threshold, share, float(np.mean(changed)))

    # The share falls as the threshold grows: halving the interval needs six simulations instead of sixty.
    low, high = 0, len(THRESHOLDS) - 1
    best = rule(high)
    if best.changed > target:
        return StopRule("certified")
    while low < high:
        middle = (low + high) // 2
        tried = rule(middle)
        if tried.changed <= target:
            best, high = tried, middle
        else:
            low = middle + 1
    return best


def at_most(count: float, n: int) -> float:
    """The share that a binomial count out of n leaves possible at 95 % (Wilson's upper bound, one-sided)."""
    z, share = 1.645, count / n
    centre = share + z**2 / (2 * n)
    spread = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float(min(1.0, (centre + spread) / (1 + z**2 / n)))
