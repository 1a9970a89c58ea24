"""Stopping early: certified stops never change a label, and nothing that is not a number is counted."""

import numpy as np
import pytest
from replayed_votes import simulate_votes

from cassava_kit.inference.votes import Votes


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities (U, N, K) that agree more or less, uneven weights, and an order, all drawn by the seed."""
    rng = np.random.default_rng(seed)
    n_units, n_images, n_classes = int(rng.integers(1, 30)), 200, int(rng.integers(2, 8))
    common = rng.normal(0, rng.uniform(0, 4), (1, n_images, n_classes))
    logits = common + rng.normal(0, rng.uniform(0.1, 3), (n_units, n_images, n_classes))
    p = np.exp(logits - logits.max(2, keepdims=True))
    p = (p / p.sum(2, keepdims=True)).astype(np.float32)
    weights = rng.dirichlet(np.full(n_units, rng.uniform(0.2, 5)))
    return p, weights, rng.permutation(n_units)


@pytest.mark.parametrize("seed", range(60))
def test_certified_labels_are_the_full_ensembles(seed: int) -> None:
    p, weights, order = random_case(seed)
    full, used_fully = simulate_votes(p, weights, order, certified=False)
    labels, used = simulate_votes(p, weights, order, certified=True)
    assert used_fully == len(p)
    assert np.array_equal(full, np.tensordot(weights, p.astype(float), axes=1).argmax(1))
    assert np.array_equal(labels, full)
    assert used <= used_fully


@pytest.mark.parametrize("seed", range(60))
def test_certified_labels_are_those_of_the_full_ensemble_with_temperatures(seed: int) -> None:
    p, weights, order = random_case(seed)
    temperatures = np.exp(np.random.default_rng(seed).normal(0, 0.6, p.shape[2]))
    full, _ = simulate_votes(p, weights, order, certified=False, temperatures=temperatures)
    labels, _ = simulate_votes(p, weights, order, certified=True, temperatures=temperatures)
    assert np.array_equal(full, (np.tensordot(weights, p.astype(float), axes=1) ** (1 / temperatures)).argmax(1))
    assert np.array_equal(labels, full)


def test_no_later_vote_moves_a_certified_label() -> None:
    """Against every way to spend what is left on a grid, votes that are not finite among them."""
    rng = np.random.default_rng(1)
    temperatures, certified = np.array([0.4, 1.0, 2.5]), 0
    grid = np.array([(a, b, 10 - a - b) for a in range(11) for b in range(11 - a)]) / 10
    for seen in rng.dirichlet(np.ones(3), 300):
        votes = Votes(1, np.array([0.7, 0.3]), np.full(3, 1 / 3), temperatures)
        votes.add(0, np.array([0]), seen[None])
        if votes.finished(np.array([True, True]), certified=True)[0]:
            certified += 1
            ends = np.vstack([0.7 * seen + 0.3 * share * grid for share in (0.0, 0.5, 1.0)])
            shares = ends / ends.sum(axis=1, keepdims=True)
            assert ((shares ** (1 / temperatures)).argmax(axis=1) == votes.labels()[0]).all()
    assert 50 < certified < 250


def test_temperatures_change_answers_as_by_hand() -> None:
    votes = Votes(3, np.array([0.5, 0.5]), np.array([0.9, 0.1]), np.array([2.0, 1.0]))
    votes.add(0, np.array([0, 1]), np.array([[0.4, 0.6], [0.36, 0.64]]))
    assert votes.labels().tolist() == [0, 1, 0]  # sqrt(.4) > .6, sqrt(.36) < .64; the third has no vote
    expected = [[0.4**0.5 / (0.4**0.5 + 0.6), 0.6 / (0.4**0.5 + 0.6)], [0.6 / 1.24, 0.64 / 1.24], [0.9, 0.1]]
    assert votes.probabilities() == pytest.approx(np.array(expected))
    assert votes.moved_by_temperatures() == 1
    assert votes.margins() == pytest.approx([(0.4**0.5 - 0.6) / (0.4**0.5 + 0.6), 0.04 / 1.24, 0])


def test_certified_stopping_saves_work_where_members_agree() -> None:
    rng = np.random.default_rng(0)
    sure = np.full((10, 500, 5), 0.02)
    sure[:, np.arange(500), rng.integers(0, 5, 500)] = 0.92
    _, used = simulate_votes(sure, np.full(10, 0.1), np.arange(10), certified=True)
    assert used == 6  # .9 a vote: after six of ten the lead .54 is more than the .4 to come


def test_no_certificate_is_given_while_a_tie_is_possible() -> None:
    votes = Votes(1, np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    votes.add(0, np.array([0]), np.array([[0.0, 1.0]]))
    assert not votes.finished(np.array([True, True]), certified=True)[0]
    assert votes.finished(np.array([True, False]), certified=True)[0]


def test_the_prior_answers_for_images_without_votes_and_for_dead_ones() -> None:
    votes = Votes(3, np.array([1.0]), np.array([0.1, 0.7, 0.2]))
    votes.add(0, np.array([0, 2]), np.array([[0.9, 0.05, 0.05], [0.0, 0.1, 0.9]]))
    votes.mark_unreadable(np.array([2]))
    assert votes.labels().tolist() == [0, 1, 1]
    assert votes.finished(np.array([True]), certified=False).tolist() == [True, False, True]


def test_a_vote_that_is_not_finite_is_not_counted() -> None:
    votes = Votes(2, np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    votes.add(0, np.array([0, 1]), np.array([[np.nan, np.nan], [0.2, 0.8]]))
    votes.add(1, np.array([0, 1]), np.array([[0.1, 0.9], [0.4, 0.6]]))
    assert votes.labels().tolist() == [1, 1]
    assert np.isfinite(votes.totals).all()


def test_votes_taken_back_leave_no_trace() -> None:
    rng = np.random.default_rng(5)
    p, weights, rows = rng.dirichlet(np.ones(4), (3, 50)).astype(np.float32), np.array([0.5, 0.3, 0.2]), np.arange(50)
    votes, alone = (Votes(50, weights, np.full(4, 0.25)) for _ in range(2))
    for unit in (0, 1, 2):
        votes.add(unit, rows[: 40 - unit], p[unit, : 40 - unit])
    alone.add(1, rows[:39], p[1, :39])
    votes.mark_unreadable(rows[:3])
    alone.mark_unreadable(rows[:3])
    votes.drop([0, 2])
    assert np.array_equal(votes.totals, alone.totals) and np.array_equal(votes.seen, alone.seen)
    assert not votes.totals[39:].any()  # no rounding error that would count as a vote
