"""The interval of public scores: against scipy's binomial, and against redrawn competitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm
from sklearn.metrics import f1_score, log_loss

from cassava_kit.evidence.expected import ExpectedScore, expect_from_folder, expect_public, short


def answers(n: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and probabilities (n, 2) of which that share is right."""
    right = np.arange(n) < round(accuracy * n)
    return np.zeros(n, int), np.eye(2)[(~right).astype(int)]


def test_with_endless_evidence_it_is_the_binomial_interval() -> None:
    """With N far above n the rate is certain, and the public score is binomial."""
    labels, p = answers(2_000_000, 0.9)
    found = expect_public(labels, p, public_rows=500)
    low, high = binom.ppf([0.025, 0.975], 500, 0.9) / 500
    assert (found.low, found.high) == pytest.approx((low, high), abs=1 / 500)


def test_both_numbers_of_rows_widen_it() -> None:
    """By hand: sqrt(.9 * .1 / 21,397 + .9 * .1 / 5,000) = .00471, times 1.96 = .0092; without the public part .0040."""
    labels, p = answers(21_397, 0.9)
    with_public, alone = expect_public(labels, p, public_rows=5_000), expect_public(labels, p)
    assert (with_public.high - with_public.low) / 2 == pytest.approx(0.0092, abs=2e-4)
    error = norm.ppf(0.975) * (0.9 * 0.1 / 21_397) ** 0.5
    assert (alone.high - alone.low) / 2 == pytest.approx(error, rel=0.02) == pytest.approx(0.0040, rel=0.02)
    assert str(with_public).startswith(
        "expected public accuracy .891 to .909 (95%, 5,000 public images; out of fold .9000"
    )
    assert "public ones not known" in str(alone)


@pytest.mark.parametrize(("rows", "public"), [(400, 150), (60, 2000)])
def test_it_holds_95_of_100_public_scores(rows: int, public: int) -> None:
    """A true rate, evidence drawn from it, a public score drawn from it: how often the second lies inside."""
    rng, inside, draws = np.random.default_rng(0), 0, 400
    for _ in range(draws):
        found = expect_public(*answers(rows, rng.binomial(rows, 0.8) / rows), public_rows=public)
        inside += found.low <= rng.binomial(public, 0.8) / public <= found.high
    assert inside / draws == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_other_metrics_are_drawn_and_scikit_learns(metric: str) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 600)
    p = rng.dirichlet(np.ones(3), 600) * 0.8 + np.eye(3)[labels] * 0.2
    found = expect_public(labels, p, metric=metric, public_rows=300)  # type: ignore[arg-type]
    drawn = []
    for _ in range(400):
        rows = rng.choice(rng.integers(0, 600, 600), 300)
        y, q = labels[rows], p[rows]
        drawn.append(
            f1_score(y, q.argmax(1), average="macro") if metric == "macro_f1" else log_loss(y, q, labels=[0, 1, 2])
        )
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.2 * (high - low)) and found.high == pytest.approx(
        high, abs=0.2 * (high - low)
    )
    alone = expect_public(labels, p, metric=metric)  # type: ignore[arg-type]
    assert found.low < alone.low < alone.value < alone.high < found.high


def test_a_score_is_compared_and_what_to_look_for_is_said() -> None:
    found = ExpectedScore(0.901, 0.897, 0.905, "accuracy", 21_397, 5_000)
    assert found.compare(0.9012) == "public .9012 inside .897 to .905"
    worse = found.compare(0.88)
    assert worse.startswith("public .8800 outside .897 to .905: worse") and all(
        w in worse for w in ("Shift?", "Leak?", "Bug?")
    )
    assert "better than out of fold" in found.compare(0.95)
    loss = ExpectedScore(0.5, 0.4, 0.6, "log_loss", 100, None)
    assert "worse" in loss.compare(0.9) and "better" in loss.compare(0.1)
    assert (short(1.0), short(0.5), short(-0.5), short(1.25, 2)) == ("1.000", ".500", "-0.500", "1.25")


def test_a_folder_without_evidence_expects_nothing(tmp_path: Path) -> None:
    assert expect_from_folder(tmp_path) is None
    (tmp_path / "oof.csv").write_text("nonsense")
    (tmp_path / "folds.csv").write_text("nonsense")
    assert expect_from_folder(tmp_path) is None
