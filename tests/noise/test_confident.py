import os
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues

from cassava_kit.noise.confident import (
    FILTERS,
    _joint,
    confident_class,
    find_issues,
    margin,
    smallest,
)

REAL = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")


def table(seed, n=None, k=None):
    """Labels drawn from random probabilities, a fifth of them made wrong."""
    rng = np.random.default_rng(seed)
    k, n = k or int(rng.integers(2, 8)), n or int(rng.integers(20, 400))
    p = rng.dirichlet(np.full(k, rng.choice([0.1, 0.5, 1.0, 3.0])), n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, k - 1)
    wrong = rng.random(n) < 0.2
    labels[wrong] = rng.integers(0, k, wrong.sum())
    return labels, p


def reference(labels, p, filter_by):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_label_issues(labels, p, filter_by=filter_by, n_jobs=1)


@pytest.mark.parametrize("filter_by", FILTERS)
def test_every_filter_equals_cleanlab_row_for_row(filter_by):
    flagged = 0
    for seed in range(40):
        labels, p = table(seed)
        ours = find_issues(labels, p, filter_by=filter_by)
        assert np.array_equal(ours, reference(labels, p, filter_by)), f"seed {seed}"
        flagged += ours.sum()
    assert flagged > 100


@pytest.mark.parametrize("filter_by", FILTERS)
def test_the_real_table_gets_cleanlab_s_mask(filter_by):
    path = REAL / "tables" / "oof_rank14.csv"
    if not path.is_file():
        pytest.skip(f"no real out-of-fold table at {path}")
    frame = pd.read_csv(path)
    labels, p = frame["label"].to_numpy(), frame[[f"c{k}" for k in range(5)]].to_numpy()
    ours = find_issues(labels, p, filter_by=filter_by)
    assert np.array_equal(ours, reference(labels, p, filter_by))
    assert 1000 < ours.sum() < 2500


def test_the_joint_equals_cleanlab_s():
    for seed in range(10):
        labels, p = table(seed, n=300, k=4)
        assert np.array_equal(_joint(labels, confident_class(labels, p), 4), compute_confident_joint(labels, p))


def test_a_class_without_rows_or_with_one_is_no_trouble():
    labels, p = table(3, n=200, k=5)
    labels[labels == 4] = 0
    labels[0] = 4
    for without in (labels, np.where(labels == 4, 0, labels)):
        for filter_by in FILTERS:
            assert np.array_equal(find_issues(without, p, filter_by=filter_by), reference(without, p, filter_by))


@pytest.mark.parametrize("filter_by", FILTERS)
def test_ties_go_to_the_earlier_row(filter_by):
    """Every row five times: of equal rows the earlier are flagged, never a later one alone."""
    labels, p = table(1, n=60, k=3)
    p = np.round(p, 1) + 1e-9
    p /= p.sum(axis=1, keepdims=True)
    repeated = find_issues(np.tile(labels, 5), np.tile(p, (5, 1)), filter_by=filter_by).reshape(5, 60)
    same = (p[:, None] == p[None]).all(axis=2) & (labels[:, None] == labels[None])
    for copy_of in np.unique(same.argmax(axis=1)):
        flags = repeated[:, same[copy_of]].ravel()
        assert (np.diff(flags.astype(int)) <= 0).all()


def test_smallest_takes_exactly_n_and_the_earlier_of_equals():
    values = np.array([2.0, 1.0, 1.0, 3.0, 1.0, 0.0])
    assert smallest(values, 3).tolist() == [False, True, True, False, False, True]
    assert smallest(values, 0).sum() == 0 and smallest(values, 9).all() and smallest(values, -1).sum() == 0


def test_margin_is_against_the_best_other_class():
    p = np.array([[0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    assert margin(np.array([1, 2]), p) == pytest.approx([0.2, -0.2])


def test_memory_stays_within_twice_the_input():
    labels, p = table(0, n=200_000, k=5)
    for filter_by in FILTERS:
        tracemalloc.start()
        find_issues(labels, p, filter_by=filter_by)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * p.nbytes, f"{filter_by}: {peak / p.nbytes:.2f} times the input"


def test_wrong_inputs_are_refused():
    labels, p = table(0, n=30, k=3)
    with pytest.raises(ValueError, match="filter_by must be one of prune_by_noise_rate"):
        find_issues(labels, p, filter_by="best")
    with pytest.raises(ValueError, match=r"labels must be whole numbers in 0..2"):
        find_issues(np.where(labels == 0, 3, labels), p)
    with pytest.raises(ValueError, match=r"expected labels \(N,\)"):
        find_issues(labels[:-1], p)
