"""Metrics against scikit-learn, their bootstrap against redrawn rows, and comparisons that follow the metric."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from cassava_kit.evidence.compare import compare
from cassava_kit.evidence.metrics import (
    accuracy,
    baseline,
    format_score,
    gain,
    majority,
    metric_value,
    row_counts,
    score,
    statistic,
)
from cassava_kit.evidence.nested import judge_methods
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.weighing import greedy_weights


def task(n: int = 400, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) of four classes, one of them rare, and probabilities (n, 4) that know something of them."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, n, p=(0.55, 0.3, 0.1, 0.05))
    logits = np.random.default_rng(seed + 1).normal(size=(n, 4)) + sharpness * np.eye(4)[labels]
    p = np.exp(logits)
    return labels, p / p.sum(axis=1, keepdims=True)


def sklearn_value(metric: str, labels: np.ndarray, p: np.ndarray) -> float:
    if metric == "log_loss":
        return log_loss(labels, p, labels=range(4))
    if metric == "macro_f1":
        return f1_score(labels, p.argmax(axis=1), average="macro", labels=range(4), zero_division=0)
    return accuracy_score(labels, p.argmax(axis=1))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_the_bootstraps_sums_are_the_metric_on_the_rows_drawn(metric):
    labels, p = task()
    for counts in row_counts(len(labels), draws=20):
        rows = np.repeat(np.arange(len(labels)), counts)
        assert statistic(metric, labels, p)(counts) == pytest.approx(sklearn_value(metric, labels[rows], p[rows]))
    assert metric_value(metric, labels, p) == pytest.approx(sklearn_value(metric, labels, p))
    assert score(labels, p, metric).value == pytest.approx(metric_value(metric, labels, p))


def test_a_class_without_rows_counts_as_in_sklearn():
    labels, p = task()
    few = (labels != 3) & (p.argmax(axis=1) != 3)
    for metric in ("macro_f1", "log_loss"):
        expected = sklearn_value(metric, labels[few], p[few])
        assert statistic(metric, labels[few], p[few])(np.ones(few.sum())) == pytest.approx(expected)


def test_the_standard_error_is_that_of_repeated_samples():
    for metric in ("macro_f1", "log_loss"):
        values = [metric_value(metric, *task(seed=seed)) for seed in range(0, 400, 2)]
        assert score(*task(), metric).standard_error == pytest.approx(np.std(values), rel=0.25)


def test_accuracy_stays_what_it_was_and_stands_beside_the_others():
    labels, p = task()
    assert score(labels, p, "accuracy") == accuracy(labels, p) and baseline("accuracy", labels, 4) == majority(labels)
    assert format_score(accuracy(labels, p)) == f"accuracy {accuracy(labels, p)}"
    assert str(score(labels, p, "log_loss")).endswith(f"(accuracy {accuracy(labels, p)})")
    assert score(labels, p, "log_loss").accuracy == accuracy(labels, p).value
    assert format_score(score(labels, p, "macro_f1")).startswith("macro F1 0.")


def test_the_baseline_knows_the_class_shares_alone():
    labels, _ = task()
    shares = np.bincount(labels) / len(labels)
    assert baseline("log_loss", labels, 4).value == pytest.approx(-(shares * np.log(shares)).sum())
    assert baseline("macro_f1", labels, 4).value == pytest.approx(2 * shares[0] / (1 + shares[0]) / 4)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_better_one_gains_whichever_way_the_metric_runs(metric):
    (labels, good), (_, bad) = task(sharpness=2.5), task(sharpness=0.5)
    found = compare(labels, bad, good, metric=metric, names=("bad", "good"))
    assert found.difference > 0 and found.proved and found.interval[0] < found.difference < found.interval[1]
    assert found.difference == pytest.approx(gain(metric, found.a.value, found.b.value))
    back = compare(labels, good, bad, metric=metric)
    assert back.difference == pytest.approx(-found.difference) and back.proved
    assert "positive is better: +0." in str(found) and (found.images_needed or 0) < len(labels)


def test_no_difference_is_not_proved():
    labels, p = task()
    same = compare(labels, p, p, metric="log_loss")
    assert not same.proved and same.difference == 0 and same.images_needed is None
    assert "There is no difference to prove." in str(same)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_members_of_one_strength_are_rarely_proved_apart(metric):
    """Of ten pairs that differ by chance alone hardly one seems proved at 95 %."""
    proved = []
    for seed in range(10):
        labels, p = task(n=100, seed=10 * seed)
        logits = np.random.default_rng(10 * seed + 5).normal(size=p.shape) + np.eye(4)[labels]
        other = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        proved.append(compare(labels, p, other, metric=metric).proved)
    assert sum(proved) <= 2


SIGN = {"macro_f1": 1, "log_loss": -1}


def by_hand(metric: str, labels: np.ndarray, p: np.ndarray) -> float:
    """The metric, larger is better, from its definition."""
    if metric == "log_loss":
        return float(np.log(p[np.arange(len(labels)), labels]).mean())
    answers, total = p.argmax(axis=1), 0.0
    for k in range(4):
        hits, said, there = ((answers == k) & (labels == k)).sum(), (answers == k).sum(), (labels == k).sum()
        total += 2 * hits / (said + there) if said + there else 0.0
    return float(total / 4)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_the_interval_is_two_sided_and_of_the_metric_on_redrawn_rows(metric):
    """A transcription of the metric by hand on each redrawn set of rows, and its 2.5 and 97.5 percentiles."""
    (labels, a), (_, b) = task(n=80, sharpness=1.0), task(n=80, sharpness=1.6)
    assert by_hand(metric, labels, a) == pytest.approx(abs(sklearn_value(metric, labels, a)) * SIGN[metric])
    rng, gains = np.random.default_rng(0), []
    for _ in range(1000):
        rows = rng.integers(0, 80, 80)
        gains.append(by_hand(metric, labels[rows], b[rows]) - by_hand(metric, labels[rows], a[rows]))
    low, high = compare(labels, a, b, metric=metric).interval
    assert (low, high) == pytest.approx((np.percentile(gains, 2.5), np.percentile(gains, 97.5)), abs=1e-9)
    narrow = compare(labels, a, b, metric=metric, level=0.8).interval
    assert narrow == pytest.approx((np.percentile(gains, 10), np.percentile(gains, 90)), abs=1e-9)


def test_the_interval_is_of_the_paired_difference():
    labels, p = task()
    other = p * np.random.default_rng(3).uniform(0.99, 1.01, p.shape)
    other /= other.sum(axis=1, keepdims=True)
    paired = compare(labels, p, other, metric="log_loss")
    assert paired.half_width < score(labels, p, "log_loss").standard_error / 10


def test_weights_are_judged_by_the_competitions_metric():
    """A member that is right as often but sure of nothing: for accuracy it is as good, for log loss it costs."""
    labels, sure = task(n=1500, sharpness=3.0)
    flat = 0.97 / 4 + 0.03 * sure
    pair = np.stack([sure, flat])
    ids, fold = np.arange(len(labels)).astype(str), np.arange(len(labels)) % 3
    evidence = Evidence(("sure", "flat"), ids, labels, fold, pair, "0" * 64)
    assert judge_methods(evidence).chosen == "mean"
    by_loss = judge_methods(_with(evidence, "log_loss"))
    assert by_loss.chosen != "mean" and by_loss.weights[0] > 0.9
    assert greedy_weights(labels, pair, "log_loss")[0] == 1
    assert "against the mean +0." in str(by_loss) and "log loss" in str(by_loss)


def _with(evidence: Evidence, metric: str) -> Evidence:
    return Evidence(**{**vars(evidence), "metric": metric})
