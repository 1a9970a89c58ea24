"""Calibration of probabilities: expected calibration error and temperatures; entry point `calibrate`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cassava_kit.evidence.metrics import Score, accuracy

BINS = 15
FLOOR = 1e-12


@dataclass(frozen=True)
class Calibration:
    """Calibration before and after temperature scaling, each fold with temperatures found on the other folds.

    `temperatures` (K,) are found on all rows; one above 1 means that the class's probabilities are too confident.
    Temperatures that differ by class can move the most probable class: `gained` rows became right, `lost` wrong, and
    `moved` changed at all.
    """

    ece_before: float
    ece_after: float
    logloss_before: float
    logloss_after: float
    accuracy_before: Score
    accuracy_after: Score
    temperatures: np.ndarray
    moved: int
    gained: int
    lost: int

    def __str__(self) -> str:
        return (
            f"ECE {self.ece_before:.4f} -> {self.ece_after:.4f}, log-loss {self.logloss_before:.4f} -> "
            f"{self.logloss_after:.4f}, accuracy {self.accuracy_before} -> {self.accuracy_after} "
            f"(temperatures {np.round(self.temperatures, 2).tolist()}, scored on folds they were not found on); "
            f"{self.moves}"
        )

    @property
    def moves(self) -> str:
        """What temperatures do to the most probable class, in words."""
        n = self.accuracy_before.n
        if not self.moved:
            return "temperatures move no label"
        return f"temperatures move {self.moved:,} of {n:,} labels: {self.gained:,} to right, {self.lost:,} to wrong"


def ece(labels: np.ndarray, pred_probs: np.ndarray, *, bins: int = BINS) -> float:
    """Return the expected calibration error (Guo et al. 2017): |accuracy - confidence| over equal bins."""
    confidence = pred_probs.max(axis=1)
    right = (pred_probs.argmax(axis=1) == labels).astype(float)
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def logloss(labels: np.ndarray, pred_probs: np.ndarray) -> float:
    """Return the mean negative log-probability of the label."""
    return float(-np.log(np.clip(pred_probs[np.arange(len(labels)), labels], FLOOR, None)).mean())


def tempered_scores(pred_probs: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """Return log p_k / T_k, by which temperatures rank the classes: pred_probs (N, K), temperatures (K,)."""
    return np.asarray(np.log(np.clip(pred_probs, FLOOR, None)) / temperatures)


def apply_temperatures(pred_probs: np.ndarray, temperatures: np.ndarray) -> np.ndarray:
    """Return softmax(log p_k / T_k): pred_probs (N, K), temperatures (K,) or one for all classes."""
    scores = tempered_scores(pred_probs, temperatures)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def fit_temperatures(labels: np.ndarray, pred_probs: np.ndarray) -> np.ndarray:
    """Return the temperatures (K,), one for each class, with the least log-loss."""
    from scipy.optimize import minimize

    n, k = pred_probs.shape
    log_p = np.log(np.clip(pred_probs, FLOOR, None))
    onehot = np.eye(k)[labels]

    def loss_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        scores = log_p * np.exp(-x)
        scores = scores - scores.max(axis=1, keepdims=True)
        q = np.exp(scores)
        total = q.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - (scores * onehot).sum(axis=1)).mean())
        slope = -((q / total - onehot) * log_p).sum(axis=0) / n * np.exp(-x)
        return loss, slope

    found = minimize(loss_and_gradient, np.zeros(k), jac=True, method="L-BFGS-B", bounds=[(-4, 4)] * k)
    return np.asarray(np.exp(found.x))


def calibrate_out_of_fold(labels: np.ndarray, pred_probs: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return probabilities (N, K) after temperature scaling, each fold with temperatures found on the others."""
    scaled = np.empty_like(pred_probs, dtype=float)
    for k in np.unique(fold):
        out = fold == k
        scaled[out] = apply_temperatures(pred_probs[out], fit_temperatures(labels[~out], pred_probs[~out]))
    return scaled


def calibrate(labels: np.ndarray, pred_probs: np.ndarray, fold: np.ndarray) -> Calibration:
    """Measure calibration before and after a temperature for each class, each fold by the other folds' temperatures."""
    scaled = calibrate_out_of_fold(labels, pred_probs, fold)
    return describe_calibration(labels, pred_probs, scaled, fit_temperatures(labels, pred_probs))


def describe_calibration(
    labels: np.ndarray, before: np.ndarray, after: np.ndarray, temperatures: np.ndarray
) -> Calibration:
    """Measure the calibration of probabilities (N, K) before and after temperatures (K,), and the labels they move."""
    was, now = before.argmax(axis=1), after.argmax(axis=1)
    return Calibration(
        ece_before=ece(labels, before),
        ece_after=ece(labels, after),
        logloss_before=logloss(labels, before),
        logloss_after=logloss(labels, after),
        accuracy_before=accuracy(labels, before),
        accuracy_after=accuracy(labels, after),
        temperatures=temperatures,
        moved=int((was != now).sum()),
        gained=int(((was != labels) & (now == labels)).sum()),
        lost=int(((was == labels) & (now != labels)).sum()),
    )
