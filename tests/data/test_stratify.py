"""Stratified parts: each class by its quotas, groups kept together, the same parts in any order of rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cassava_kit.data.stratify import assign_parts, compute_quotas

SHARES = [(0.85, 0.15), (0.7, 0.3), (0.6, 0.2, 0.2)]


@pytest.mark.parametrize("shares", [*SHARES, (0.5, 0.25, 0.25), (0.2,) * 5])
def test_quotas_add_up_and_totals_stay_near(shares):
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(3, 400, rng.integers(2, 12))
        quotas = compute_quotas(counts, shares)
        assert (quotas.sum(axis=1) == counts).all()
        assert np.abs(quotas - np.outer(counts, shares)).max() < 1
        assert np.abs(quotas.sum(axis=0) - counts.sum() * np.array(shares)).max() < 2


def test_quotas_worked_out_by_hand():
    """Ideal 4.5 2.25 2.25, then 1.5 .75 .75: the parts that are owed most take the images that are left."""
    assert compute_quotas(np.array([9, 3]), (0.5, 0.25, 0.25)).tolist() == [[5, 2, 2], [1, 1, 1]]
    assert compute_quotas(np.array([4, 8]), (0.5, 0.25, 0.25)).tolist() == [[2, 1, 1], [4, 2, 2]]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("seed", range(5))
def test_without_groups_every_class_has_exactly_its_quotas(shares, seed):
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(4), (50, 7, 21, 90)))
    part = assign_parts(y, shares, seed=seed)
    counts = pd.crosstab(y, part).to_numpy()
    assert (counts == compute_quotas(np.array([50, 7, 21, 90]), shares)).all()


def test_parts_of_any_number_are_balanced_and_quick():
    labels = np.repeat(np.arange(5), (1087, 2189, 2386, 13158, 2577))
    groups = np.arange(21_397)
    groups[::50] = groups[1::50]  # 428 pairs
    part = assign_parts(labels, (0.2,) * 5, seed=0, groups=groups)
    assert (part[::50] == part[1::50]).all()
    counts = pd.crosstab(labels, part).to_numpy()
    assert np.abs(counts - counts.sum(axis=1, keepdims=True) / 5).max() <= 1


def test_the_names_of_groups_do_not_matter_and_the_seed_does():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 4, 300), rng.integers(0, 120, 300)
    first = assign_parts(y, (0.7, 0.3), seed=5, groups=groups)
    assert np.array_equal(first, assign_parts(y, (0.7, 0.3), seed=5, groups=1000 - groups))
    assert not np.array_equal(first, assign_parts(y, (0.7, 0.3), seed=6, groups=groups))


def test_a_large_group_goes_where_most_room_is():
    """Of 20 rows 12 are one group: only the part of .85 has room for it."""
    groups = np.where(np.arange(20) < 12, -1, np.arange(20))
    for seed in range(20):
        part = assign_parts(np.zeros(20, int), (0.85, 0.15), seed=seed, groups=groups)
        assert set(part[:12]) == {0} and (part == 0).sum() == 17
