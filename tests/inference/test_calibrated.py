"""What the ensemble file says of members and of stopping early is what happens on rows that were not used for it."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from cassava_kit.competition import Metric
from cassava_kit.inference.calibrated import (
    at_most,
    calibrate_stop,
    early_stop_evidence,
    ensemble_evidence,
    loss_without,
    vote_orders,
)
from cassava_kit.inference.votes import StopRule, simulate_stop


def members(n_images: int = 4000, n_members: int = 8, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and members' probabilities (M, N, K) that share much of what they get wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n_images)
    common = rng.normal(0, 1.5, (1, n_images, 5)) + 3.5 * np.eye(5)[labels]
    logits = common + rng.normal(0, 0.6, (n_members, n_images, 5))
    return labels, np.exp(logits) / np.exp(logits).sum(2, keepdims=True)


def test_the_promise_holds_on_fresh_rows_and_saves_votes() -> None:
    labels, p = members()
    weights = np.full(8, 1 / 8)
    told = early_stop_evidence(p[:, :2000], labels[:2000], weights)
    assert told is not None and told["rows"] == 2000
    assert 0 < told["changed"] < 2 * told["target"] and told["changed"] < told["changed_at_most"] < 0.01
    assert abs(told["accuracy"] - told["accuracy_full"]) <= told["changed"] + 1e-9
    rule = StopRule("calibrated", told["threshold"], told["min_share"], told["changed"])
    order = vote_orders(weights, None)[0]
    full = p[:, 2000:].mean(0).argmax(1)
    answers, used = simulate_stop(p[:, 2000:], weights, order, rule)
    assert np.mean(answers != full) <= told["changed_at_most"] + 0.003
    assert used / 8 == pytest.approx(told["votes"], abs=0.05)
    _, certified = simulate_stop(p[:, 2000:], weights, order, StopRule("certified"))
    assert used < 0.7 * certified


def test_the_least_threshold_that_keeps_the_target_is_found() -> None:
    _, p = members(500)
    weights, orders = np.full(8, 1 / 8), [np.arange(8)]
    full = p.mean(0).argmax(1)

    def changed(rule: StopRule) -> float:
        return float(np.mean(simulate_stop(p, weights, orders[0], rule)[0] != full))

    loose, tight = (calibrate_stop(p, weights, orders, target=target) for target in (0.02, 0.0))
    assert changed(loose) == loose.changed <= 0.02 and changed(tight) == 0
    assert changed(StopRule("calibrated", loose.threshold / 1.13, loose.min_share)) > 0.02
    assert loose.threshold < tight.threshold


def test_cheap_members_of_weight_vote_first() -> None:
    (order,) = vote_orders(np.array([0.2, 0.5, 0.3]), np.array([1.0, 5.0, 1.0]))
    assert order.tolist() == [2, 0, 1]
    drawn = vote_orders(np.full(6, 1 / 6), None)
    assert len({tuple(order) for order in drawn}) > 4 and all(sorted(order) == list(range(6)) for order in drawn)


def test_without_evidence_nothing_is_said() -> None:
    labels, p = members(100, 3)
    assert early_stop_evidence(p[:1], labels, [1.0]) is None
    assert early_stop_evidence(p, labels, [1.0, 0.0, 0.0]) is None
    assert "early_stop" not in ensemble_evidence("accuracy", ["a"], labels, p[:1], [1.0])
    # A rule that could never stop where the target is missed: pure noise, and no label may change.
    noise = np.random.default_rng(0).dirichlet(np.ones(5), (3, 400))
    rule = calibrate_stop(noise, np.full(3, 1 / 3), [np.arange(3)], target=0.0)
    answers, _ = simulate_stop(noise, np.full(3, 1 / 3), np.arange(3), rule)
    assert np.array_equal(answers, noise.mean(0).argmax(1))


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
def test_what_a_member_is_worth_is_what_the_metric_loses_without_it(metric: Metric) -> None:
    labels, p = members(1000, 3)
    p[2] = 0.2
    p[2, np.arange(1000), (labels + 1) % 5] = 1.0  # always wrong, and loud
    p[2] /= p[2].sum(1, keepdims=True)
    weights = np.array([0.5, 0.3, 0.2])
    score = {
        "accuracy": lambda q: accuracy_score(labels, q.argmax(1)),
        "macro_f1": lambda q: f1_score(labels, q.argmax(1), average="macro"),
        "log_loss": lambda q: -log_loss(labels, q),  # less of it is better
    }[metric]
    found = loss_without(metric, ["a", "b", "c"], labels, p, weights)
    whole = score(np.average(p, axis=0, weights=weights))
    for m, name in enumerate("abc"):
        kept = [i for i in range(3) if i != m]
        assert found[name] == pytest.approx(whole - score(np.average(p[kept], axis=0, weights=weights[kept])))
    assert found["c"] < 0 < found["a"]
    assert loss_without(metric, ["a"], labels, p[:1], [1.0]) == {}


def test_the_evidence_is_json_that_the_run_understands() -> None:
    labels, p = members(600, 3)
    told = json.loads(json.dumps(ensemble_evidence("accuracy", ["a", "b", "c"], labels, p, [0.4, 0.3, 0.3])))
    assert set(told["loss_without"]) == {"a", "b", "c"}
    assert {"threshold", "min_share", "changed", "changed_at_most"} <= told["early_stop"].keys()


def test_no_change_seen_is_no_proof_that_there_is_none() -> None:
    assert at_most(0, 1000) == pytest.approx(0.0027, abs=2e-4)
    assert 0.05 < at_most(50, 1000) < 0.065
