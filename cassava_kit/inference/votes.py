"""Weighted votes by image, and which images need no more of them: `Votes`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cassava_kit.evidence.calibration import apply_temperatures, tempered_scores

# Probabilities are float32 softmax: a row may sum to a little more than 1.
ROUNDING = 1e-6


@dataclass
class Votes:
    """Sums of weighted probabilities for N images from U units of work (a checkpoint through a view).

    `weights` (U,) are what each unit's vote counts; `prior` (K,) answers for an image without a vote. `temperatures`
    (K,) of the classes apply to the mean of the votes, where they are given.
    """

    n_images: int
    weights: np.ndarray
    prior: np.ndarray
    temperatures: np.ndarray | None = None
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
        """Return the most probable class (N,); the prior's where there are no votes."""
        return np.where(self._counted() > 0, self._scores(self._shares()).argmax(axis=1), self.prior.argmax())

    def moved_by_temperatures(self) -> int:
        """Return for how many images temperatures change the class that has the most votes."""
        return int(((self.totals.argmax(axis=1) != self.labels()) & (self._counted() > 0)).sum())

    def probabilities(self) -> np.ndarray:
        """Return the mean of the votes counted, with temperatures, (N, K), rows sum to 1; the prior without votes."""
        shares = self._shares()
        answers = shares if self.temperatures is None else apply_temperatures(shares, self.temperatures)
        return np.where(self._counted()[:, None] > 0, answers, self.prior)

    def _counted(self) -> np.ndarray:
        """Return the sum of all votes for each image, (N,)."""
        return self.totals.sum(axis=1)

    def _shares(self) -> np.ndarray:
        """Return the mean of the votes counted, (N, K); 0 without votes."""
        counted = self._counted()[:, None]
        return self.totals / np.where(counted > 0, counted, 1)

    def _scores(self, shares: np.ndarray) -> np.ndarray:
        """Return what ranks the classes (N, K): the votes' shares, or log p_k / T_k."""
        return shares if self.temperatures is None else tempered_scores(shares, self.temperatures)

    def margins(self) -> np.ndarray:
        """Return the probability of the leading class less that of the next one, (N,); 0 without votes."""
        ordered = np.partition(self.probabilities(), -2, axis=1)
        return np.where(self._counted() > 0, ordered[:, -1] - ordered[:, -2], 0.0)

    def left_weight(self, planned: np.ndarray) -> np.ndarray:
        """Return the weight of the planned units (U,) bool that have not yet seen each image, (N,)."""
        return (~self.seen & planned) @ self.weights

    def without_vote(self) -> np.ndarray:
        """Return which readable images (N,) have no vote yet."""
        return ~self.unreadable & ~self.seen.any(axis=1)

    def finished(self, planned: np.ndarray, *, certified: bool) -> np.ndarray:
        """Return which images (N,) need no further vote from the planned units (U,) bool.

        An image is finished when every planned unit has seen it. With `certified` it is finished earlier, as soon as
        its label can no longer change.
        """
        done = self.unreadable | ~(~self.seen & planned).any(axis=1)
        return done | self._certain(self.left_weight(planned)) if certified else done

    def _certain(self, left: np.ndarray) -> np.ndarray:
        """Return which images (N,) keep their class whatever the votes still to come, of weight `left` (N,), say.

        The leading class's share is least when it gets none of them, another's is most when it gets all of them.
        """
        final = np.maximum(self._counted() + left, ROUNDING)[:, None]
        low = self._scores(self.totals / (final + ROUNDING))
        high = self._scores((self.totals + left[:, None] + ROUNDING) / final)
        leader, rows = low.argmax(axis=1), np.arange(len(low))
        high[rows, leader] = -np.inf
        return (low[rows, leader] > high.max(axis=1)) & (self._counted() > 0)
