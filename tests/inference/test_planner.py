"""The order of work, what is dropped when time is short, and which images come first."""

from pathlib import Path

import numpy as np
import pytest
from replayed_votes import simulate_votes

from cassava_kit.inference.members import load_members
from cassava_kit.inference.planner import Plan, choose_rows, make_units, member_worth, order_units
from cassava_kit.inference.votes import Votes

COST = {"res": 0.02, "eff": 0.01, "vit": 0.04}


@pytest.fixture
def plan(weights: Path) -> Plan:
    units = make_units(load_members(weights), "flips")
    seconds = np.array([COST[unit.checkpoint.member] for unit in units])
    return Plan(units, seconds, n_images=1000, data_seconds=0.005)


def test_weights_of_all_units_sum_to_one(plan: Plan) -> None:
    assert len(plan.units) == 16
    assert sum(unit.weight for unit in plan.units) == pytest.approx(1)


def test_further_views_of_a_checkpoint_are_worth_less_and_less(plan: Plan) -> None:
    worth = [unit.worth for unit in plan.units if unit.checkpoint.member == "eff"]
    assert worth == pytest.approx([0.3, 0.3 * 0.15, 0.3 * 0.05, 0.3 * 0.025])  # .3 / (i (i + 1)) of the plain view's


def test_with_time_every_unit_runs_and_the_cheapest_plain_view_leads(plan: Plan) -> None:
    done = order_units(plan)
    names = [done.units[u].name for u in done.order]
    assert names[0] == "eff-fold0.safetensors plain"
    assert [name.split()[0] for name in names[::4]] == [
        "eff-fold0.safetensors",
        "res-fold0.safetensors",
        "res-fold1.safetensors",
        "vit-fold0.safetensors",
    ]
    assert sorted(done.order) == list(range(16)) and done.kept.all() and done.fits
    assert done.total == pytest.approx(1000 * (0.005 + 8 * 0.02 + 4 * 0.01 + 4 * 0.04))


def test_on_a_gpu_reading_hides_behind_the_first_unit(plan: Plan) -> None:
    serial = order_units(plan).total
    plan.overlap = True
    assert order_units(plan).total == pytest.approx(serial - 5)
    plan.data_seconds = 0.03
    assert order_units(plan).total == pytest.approx(serial - 5 + 20)


@pytest.mark.parametrize("left", [300.0, 200.0, 100.0, 60.0, 30.0, 16.0, 1.0])
def test_the_least_valuable_work_is_dropped_first(plan: Plan, left: float) -> None:
    plan.left = left
    done = order_units(plan)
    value = np.array([unit.worth for unit in done.units]) / done.seconds
    first = done.order[0]
    kept = [u for u in np.flatnonzero(done.kept) if u != first]
    dropped = np.flatnonzero(~done.kept)
    assert sorted(done.order) == np.flatnonzero(done.kept).tolist()
    if len(kept) and len(dropped):
        assert value[kept].min() >= value[dropped].max()
    assert len(kept) == 0 or 15 + 0.15 * 1000 * done.seconds[kept].sum() <= left
    assert done.units[first].name == "eff-fold0.safetensors plain"
    assert len(dropped) or not done.fits


def test_less_time_never_keeps_more(plan: Plan) -> None:
    kept = []
    for left in (400.0, 80.0, 60.0, 40.0, 20.0, 10.0):
        plan.left = left
        kept.append(int(order_units(plan).kept.sum()))
    assert kept == sorted(kept, reverse=True) and kept[0] == 16 and kept[-1] == 1


def test_the_printed_plan_says_what_happens_to_every_unit(plan: Plan) -> None:
    plan.left = 40.0
    done = order_units(plan)
    text = "\n".join(done.format_lines())
    lines = {line.rsplit("  ", 1)[0].split("  ")[0]: line for line in text.splitlines()[1:-1]}
    assert set(lines) == {f"{unit.checkpoint.member} {unit.view.name}" for unit in done.units}
    for name, line in lines.items():
        kept = [
            k
            for unit, k in zip(done.units, done.kept, strict=True)
            if f"{unit.checkpoint.member} {unit.view.name}" == name
        ]
        assert ("dropped" in line) == (not all(kept))
    assert "dropped" in text and "40.0 s left" in text
    assert "all images" in lines["eff plain"] and "0.125" in lines["res plain"]
    assert done.to_json()["fits"] is False


@pytest.mark.parametrize(
    "oof",
    [
        {"accuracy": 0.90, "without": {"res": 0.88, "eff": 0.905, "vit": 0.899}},
        {"macro_f1": 0.7, "accuracy": 0.90, "loss_without": {"res": 0.02, "eff": -0.005, "vit": 0.001}},
        {"log_loss": 0.7, "accuracy": 0.9, "loss_without": {"res": 0.02, "eff": -1.0, "vit": 0.001}, "without": {}},
    ],
    ids=["accuracies of an older file", "macro F1", "log loss"],
)
def test_worth_follows_the_oof_loss_without_a_member(weights: Path, oof: dict[str, object]) -> None:
    members = load_members(weights)
    assert member_worth(members, members.checkpoints[0]) == 1.0
    assert members.ensemble is not None
    told = members.ensemble.model_copy(update={"oof": oof})
    informed = type(members)(members.checkpoints, {}, members.prior, "none", told)
    worth = {checkpoint.member: member_worth(informed, checkpoint) for checkpoint in informed.checkpoints}
    assert worth["res"] > worth["vit"] > worth["eff"] > 0


def test_time_for_all_takes_all_in_order_of_rows(plan: Plan) -> None:
    votes = Votes(1000, np.array([u.weight for u in plan.units]), np.full(5, 0.2))
    done = order_units(plan)
    assert np.array_equal(choose_rows(votes, done, done.order[0], left=1e9, certified=False), np.arange(1000))
    votes.add(done.order[0], np.arange(400), np.full((400, 5), 0.2))
    assert np.array_equal(choose_rows(votes, done, done.order[0], left=1e9, certified=False), np.arange(400, 1000))
    # The next unit is for all images then, and not first for those without any vote.
    assert np.array_equal(choose_rows(votes, done, done.order[1], left=1e9, certified=False), np.arange(1000))


def test_short_of_time_the_least_sure_come_first(plan: Plan) -> None:
    rng = np.random.default_rng(0)
    votes = Votes(1000, np.array([u.weight for u in plan.units]), np.full(5, 0.2))
    done = order_units(plan)
    first, second = done.order[:2]
    # Images without any vote go before all others, whatever the unit.
    votes.add(first, np.arange(900), rng.dirichlet(np.ones(5), 900))
    assert np.array_equal(choose_rows(votes, done, second, left=10.0, certified=False), np.arange(900, 1000))
    votes.add(first, np.arange(900, 1000), rng.dirichlet(np.ones(5), 100))
    rows = choose_rows(votes, done, second, left=10.0, certified=False)
    assert 0 < len(rows) < 1000 and np.array_equal(rows, np.sort(rows))
    taken = np.isin(np.arange(1000), rows)
    margins = votes.margins()
    assert margins[taken].max() <= margins[~taken].min()
    assert len(rows) == int(10.0 / done.seconds[list(done.order[1:])].sum())


def test_a_fifth_of_the_cost_gives_nearly_all_labels(plan: Plan) -> None:
    """Members that agree as real ones do: most images are easy, a tenth is not."""
    rng = np.random.default_rng(3)
    n, labels = 4000, rng.integers(0, 5, 4000)
    strength = np.where(rng.random(n) < 0.85, 5.0, rng.uniform(0, 3, n))
    common = rng.normal(0, 0.8, (n, 5)) + strength[:, None] * np.eye(5)[labels]
    logits = common + rng.normal(0, 0.6, (16, n, 5))
    p = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    weights = np.array([unit.weight for unit in plan.units])
    full, _ = simulate_votes(p, weights, np.arange(16), certified=False)
    plan.n_images, plan.data_seconds = n, 0.0
    budget = 0.2 * order_units(plan).total
    plan.left = budget
    done, votes, left = order_units(plan), Votes(n, weights, np.full(5, 0.2)), budget
    worked = True
    while worked:
        worked = False
        for u in done.order:
            rows = choose_rows(votes, done, u, left=left, certified=True)[: int(left / done.seconds[u])]
            if len(rows):
                votes.add(u, rows, p[u, rows])
                left -= len(rows) * done.seconds[u]
                worked = True
    assert left >= 0
    assert np.mean(votes.labels() == full) > 0.985
    first_only = p[done.order[0]].argmax(1)
    assert np.mean(first_only == full) < 0.97
