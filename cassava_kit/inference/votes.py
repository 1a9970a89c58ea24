"""Weighted votes by image, and when an image needs no more of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# Probabilities are float32 softmax: a row may sum to a little more than 1.
ROUNDING = 1e-6


@dataclass
class Votes:
    """Sums of weighted probabilities for N images from U units of work (a checkpoint through a view).

    `weights` (U,) are what each unit's vote counts, `prior` (K,) answers for an image that has no vote.
    """

    n_images: int
    weights: np.ndarray
    prior: np.ndarray
    totals: np.ndarray = field(init=False)
    seen: np.ndarray = field(init=False)
    dead: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.totals = np.zeros((self.n_images, len(self.prior)))
        self.seen = np.zeros((self.n_images, len(self.weights)), bool)
        self.dead = np.zeros(self.n_images, bool)

    def add(self, unit: int, rows: np.ndarray, probabilities: np.ndarray) -> None:
        """Count one unit's vote on `rows` (n,), probabilities (n, K); a row that is not finite does not vote."""
        finite = np.isfinite(probabilities).all(axis=1)
        self.seen[rows, unit] = True
        self.totals[rows[finite]] += self.weights[unit] * probabilities[finite]

    def give_up(self, rows: np.ndarray) -> None:
        """Images that cannot be read: the prior answers, whatever was counted for them."""
        self.dead[rows] = True
        self.totals[rows] = 0

    def labels(self) -> np.ndarray:
        """The class with the most votes (N,); the prior's where there are none."""
        answers = self.totals.argmax(axis=1)
        answers[self.totals.sum(axis=1) == 0] = self.prior.argmax()
        return answers

    def probabilities(self) -> np.ndarray:
        """The mean of the votes counted, (N, K), rows sum to 1; the prior where there are none."""
        counted = self.totals.sum(axis=1, keepdims=True)
        return np.where(counted > 0, self.totals / np.where(counted > 0, counted, 1), self.prior)

    def margins(self) -> np.ndarray:
        """Votes of the leading class less those of the next one, (N,)."""
        ordered = np.partition(self.totals, -2, axis=1)
        return ordered[:, -1] - ordered[:, -2]

    def seen_weight(self) -> np.ndarray:
        """Weight of the votes counted for each image, (N,)."""
        return self.seen @ self.weights

    def left_weight(self, planned: np.ndarray) -> np.ndarray:
        """Weight of the planned units (U,) bool that have not yet seen each image, (N,)."""
        return (~self.seen & planned) @ self.weights

    def unseen(self) -> np.ndarray:
        """Readable images (N,) for which nothing has voted yet."""
        return ~self.dead & ~self.seen.any(axis=1)

    def unsureness(self) -> np.ndarray:
        """(N,), larger is less sure: 1 less the margin as a share of the votes counted; images without votes lead."""
        return 1 - self.margins() / np.maximum(self.seen_weight(), ROUNDING)


@dataclass(frozen=True)
class StopRule:
    """When an image needs no further vote: `off` (never early) or `certified`.

    Certified: the leading class is ahead by more than all votes still to come. It cannot change, so the labels are the
    full ensemble's.
    """

    kind: str = "certified"

    def __post_init__(self) -> None:
        if self.kind not in ("off", "certified"):
            raise ValueError(f"early stopping must be off or certified, got {self.kind!r}")

    def finished(self, votes: Votes, planned: np.ndarray) -> np.ndarray:
        """Which images (N,) need no further vote from the planned units (U,) bool."""
        left = votes.left_weight(planned)
        done = votes.dead | ((~votes.seen & planned).sum(axis=1) == 0)
        return done if self.kind == "off" else done | (votes.margins() > left + ROUNDING)


def simulate_stop(
    pred_probs: np.ndarray, weights: np.ndarray, order: np.ndarray, rule: StopRule
) -> tuple[np.ndarray, float]:
    """Labels (N,) when each image stops by `rule` as the members vote in `order`, and the mean number of votes used."""
    n_members, n_images, n_classes = pred_probs.shape
    votes = Votes(n_images, np.asarray(weights, float), np.full(n_classes, 1 / n_classes))
    planned = np.ones(n_members, bool)
    for unit in order:
        rows = np.flatnonzero(~rule.finished(votes, planned) & ~votes.seen[:, unit])
        votes.add(int(unit), rows, pred_probs[unit, rows])
    return votes.labels(), float(votes.seen.sum(axis=1).mean())
