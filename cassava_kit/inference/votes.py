"""Weighted votes by image, and which images need no more of them: `Votes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

# Probabilities are float32 softmax: a row may sum to a little more than 1.
ROUNDING = 1e-6


@dataclass
class Votes:
    """Sums of weighted probabilities for N images from U units of work (a checkpoint through a view).

    `weights` (U,) are what each unit's vote counts; `prior` (K,) answers for an image without a vote.
    """

    n_images: int
    weights: np.ndarray
    prior: np.ndarray
    totals: np.ndarray = field(init=False)
    seen: np.ndarray = field(init=False)
    unreadable: np.ndarray = field(init=False)
    _by_unit: dict[int, np.ndarray] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.totals = np.zeros((self.n_images, len(self.prior)))
        self.seen = np.zeros((self.n_images, len(self.weights)), bool)
        self.unreadable = np.zeros(self.n_images, bool)

    def add(self, unit: int, rows: np.ndarray, probabilities: np.ndarray) -> None:
        """Count one unit's vote on `rows` (n,), probabilities (n, K); a row that is not finite does not vote."""
        finite = np.isfinite(probabilities).all(axis=1)
        self.seen[rows, unit] = True
        self.totals[rows[finite]] += self.weights[unit] * probabilities[finite]
        own = self._by_unit.setdefault(unit, np.zeros(self.totals.shape, np.float32))
        own[rows[finite]] += probabilities[finite]

    def drop(self, units: Sequence[int]) -> None:
        """Take back all votes of units; the totals are summed anew, so that no rounding error stays as a vote."""
        self.seen[:, units] = False
        for unit in units:
            self._by_unit.pop(unit, None)
        self.totals[:] = 0
        for unit, probabilities in self._by_unit.items():
            self.totals += self.weights[unit] * probabilities
        self.totals[self.unreadable] = 0

    def mark_unreadable(self, rows: np.ndarray) -> None:
        """Give images that cannot be read the prior's answer; votes counted for them are dropped."""
        self.unreadable[rows] = True
        self.totals[rows] = 0

    def labels(self) -> np.ndarray:
        """Return the class with the most votes (N,); the prior's where there are no votes."""
        answers = self.totals.argmax(axis=1)
        answers[self.totals.sum(axis=1) == 0] = self.prior.argmax()
        return answers

    def probabilities(self) -> np.ndarray:
        """Return the mean of the votes counted, (N, K), rows sum to 1; the prior where there are no votes."""
        counted = self.totals.sum(axis=1, keepdims=True)
        return np.where(counted > 0, self.totals / np.where(counted > 0, counted, 1), self.prior)

    def margins(self) -> np.ndarray:
        """Return the votes of the leading class less those of the next one, (N,)."""
        ordered = np.partition(self.totals, -2, axis=1)
        return ordered[:, -1] - ordered[:, -2]

    def seen_weight(self) -> np.ndarray:
        """Return the weight of the votes counted for each image, (N,)."""
        return self.seen @ self.weights

    def left_weight(self, planned: np.ndarray) -> np.ndarray:
        """Return the weight of the planned units (U,) bool that have not yet seen each image, (N,)."""
        return (~self.seen & planned) @ self.weights

    def without_vote(self) -> np.ndarray:
        """Return which readable images (N,) have no vote yet."""
        return ~self.unreadable & ~self.seen.any(axis=1)

    def uncertainty(self) -> np.ndarray:
        """Return 1 less the margin as a share of the votes counted, (N,); it is 1 for images without votes."""
        return 1 - self.margins() / np.maximum(self.seen_weight(), ROUNDING)

    def finished(self, planned: np.ndarray, *, certified: bool) -> np.ndarray:
        """Return which images (N,) need no further vote from the planned units (U,) bool.

        An image is finished when every planned unit has seen it. With `certified` it is finished earlier, as soon as
        the leading class is ahead by more than all votes still to come: the label can no longer change.
        """
        done = self.unreadable | ~(~self.seen & planned).any(axis=1)
        return done | (self.margins() > self.left_weight(planned) + ROUNDING) if certified else done
