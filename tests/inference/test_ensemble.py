"""The ensemble file: what it refuses, and what each member is worth."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from cassava_kit.competition import Metric
from cassava_kit.errors import UserError
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, loss_without, read_ensemble


def members(n_images: int = 4000, n_members: int = 8, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Labels (N,) and members' probabilities (M, N, K) that share much of what they get wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n_images)
    common = rng.normal(0, 1.5, (1, n_images, 5)) + 3.5 * np.eye(5)[labels]
    logits = common + rng.normal(0, 0.6, (n_members, n_images, 5))
    return labels, np.exp(logits) / np.exp(logits).sum(2, keepdims=True)


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
    for powers in (None, np.array([0.6, 1.0, 1.4, 2.0, 0.8])):
        temperatures = None if powers is None else 1 / powers
        found = loss_without(metric, ["a", "b", "c"], labels, p, weights, temperatures=temperatures)

        def mean_of(kept: list[int], powers: np.ndarray | None = powers) -> np.ndarray:
            q = np.average(p[kept], axis=0, weights=weights[kept]) ** (1 if powers is None else powers)
            return np.asarray(q / q.sum(axis=1, keepdims=True))

        for m, name in enumerate("abc"):
            kept = [i for i in range(3) if i != m]
            assert found[name] == pytest.approx(score(mean_of([0, 1, 2])) - score(mean_of(kept)))
    assert found["c"] < 0 < found["a"]
    assert loss_without(metric, ["a"], labels, p[:1], [1.0]) == {}


@pytest.mark.parametrize(
    ("temperatures", "message"),
    [
        ([1.0, 1.0], "expected 5 temperatures, one for each class"),
        ([1.0, 1.0, 1.0, 1.0, 0.0], r"temperatures\.4: Input should be greater than 0"),
        ([1.0, float("nan"), 1.0, 1.0, 1.0], r"temperatures\.1: "),
    ],
)
def test_temperatures_that_do_not_fit_are_refused(weights: Path, temperatures: list[float], message: str) -> None:
    content = json.loads((weights / ENSEMBLE_FILE).read_text()) | {"temperatures": temperatures}
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_ensemble(weights / ENSEMBLE_FILE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": float("nan")}, r"members\.1\.weight: Input should be a finite number, got nan"),
        ({"weight": -0.3}, r"members\.1\.weight: .*greater than or equal to 0, got -0\.3"),
        ({"weight": float("inf")}, r"members\.1\.weight: "),
        ({"weight": 0.4}, "must be at least 0 and sum to 1"),
    ],
)
def test_weights_that_are_no_shares_are_refused_by_name(weights: Path, change: dict[str, float], message: str) -> None:
    content = json.loads((weights / ENSEMBLE_FILE).read_text())
    content["members"][1] |= change
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_ensemble(weights / ENSEMBLE_FILE)


@pytest.mark.parametrize("share", [float("nan"), -0.1, float("inf")])
def test_a_prior_that_is_no_share_is_refused(weights: Path, share: float) -> None:
    content = json.loads((weights / ENSEMBLE_FILE).read_text())
    content["prior"][0] = share
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"prior\.0: "):
        read_ensemble(weights / ENSEMBLE_FILE)
