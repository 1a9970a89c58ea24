import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from cassava_kit.evidence.calibration import (
    apply_temperatures,
    calibrate,
    calibrate_out_of_fold,
    ece,
    fit_temperatures,
    logloss,
)

K = 5


def drawn(n=20_000, seed=0):
    """True probabilities and labels drawn from them: perfectly calibrated."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(K, 0.4), n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    return labels, p


def sharpened(p, powers):
    q = p ** np.asarray(powers)
    return q / q.sum(axis=1, keepdims=True)


def test_ece_equals_torchmetrics():
    labels, p = drawn(2000)
    theirs = multiclass_calibration_error(torch.tensor(p), torch.tensor(labels), num_classes=K, n_bins=15, norm="l1")
    assert ece(labels, p) == pytest.approx(float(theirs), abs=1e-5)
    assert ece(np.array([0, 0]), np.array([[1.0, 0.0], [0.0, 1.0]])) == 0.5


def test_the_temperature_that_was_put_in_is_found():
    labels, p = drawn()
    assert fit_temperatures(labels, sharpened(p, 2.0)) == pytest.approx(np.full(K, 2.0), rel=0.1)
    each = fit_temperatures(labels, sharpened(p, [1, 2, 1, 0.5, 1]))
    assert each == pytest.approx([1, 2, 1, 0.5, 1], rel=0.1)


def test_scaling_mends_what_was_too_sure_out_of_fold():
    labels, p = drawn()
    fold = np.arange(len(labels)) % 5
    account = calibrate(labels, sharpened(p, 2.0), fold)
    mended = calibrate_out_of_fold(labels, sharpened(p, 2.0), fold)
    assert account.ece_before > 0.05 > 0.02 > account.ece_after == ece(labels, mended)
    assert account.logloss_after < account.logloss_before
    assert "temperatures [" in str(account)


def test_each_fold_is_scaled_by_the_others():
    labels, p = drawn(500)
    fold = np.arange(500) % 5
    changed = np.where(fold == 3, (labels + 1) % K, labels)
    before, after = (calibrate_out_of_fold(given, p, fold) for given in (labels, changed))
    assert np.array_equal(before[fold == 3], after[fold == 3])
    assert not np.isclose(before[fold == 2], after[fold == 2]).all()


def test_temperature_one_changes_nothing_and_a_certain_zero_survives():
    _, p = drawn(100)
    assert np.allclose(apply_temperatures(p, np.ones(K)), p)
    certain = apply_temperatures(np.array([[1.0, 0.0]]), np.array([3.0, 3.0]))
    assert np.isfinite(certain).all() and certain.sum() == pytest.approx(1)
    assert np.isfinite(logloss(np.array([1]), np.array([[1.0, 0.0]])))
