"""A week's plan: as many families as the hours can buy (against trying every choice), and hours that runs correct."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
from tiny import SILENT, TINY

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.errors import UserError
from cassava_kit.settings import replace
from cassava_kit.training.cost import epoch_seconds, train_hours
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.plan import (
    MODEL_FAMILIES,
    SESSION_HOURS,
    WeekCandidate,
    by_rule,
    family_of,
    fill,
    finished_folds,
    measured_speeds,
    plan_week,
)
from cassava_kit.training.recipes import recipe, recipe_names

N, K = 21_397, 5


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_of_whole_recipes_has_more_families(seed):
    """Every subset is tried: the most families that fit into the hours are those of the plan."""
    rng = np.random.default_rng(seed)
    candidates = [
        WeekCandidate(f"r{k}", f"f{rng.integers(4)}", float(rng.uniform(0.3, 4)), (0, 1, 2), "network")
        for k in range(8)
    ]
    hours = float(rng.uniform(2, 16))
    best = max(
        len({each.family for each in chosen})
        for n in range(9)
        for chosen in itertools.combinations(candidates, n)
        if sum(2 * each.hours_a_fold for each in chosen) <= hours  # three folds on two GPUs: two rounds
    )
    pushes, left_out = fill(by_rule(candidates), hours)
    whole = [push for push in pushes if push.whole]
    assert len({push.family for push in whole}) == best
    assert sum(push.hours for push in pushes) <= hours
    assert {push.name for push in pushes} | set(left_out) == {each.name for each in candidates}
    turns: dict[str, int] = {}
    for push in whole:
        turns[push.family] = turns.get(push.family, 0) + 1
        fewest = min(turns.get(each.family, 0) for each in candidates if 2 * each.hours_a_fold <= push.hours)
        assert turns[push.family] <= fewest + 1, "a family has a second turn before another that is no dearer its first"


def test_a_week_of_the_catalogue_has_every_family_first():
    plan = plan_week(30, [], N, K)
    names = [push.name for push in plan.pushes]
    families = [push.family for push in plan.pushes if push.whole]
    n = len(set(MODEL_FAMILIES.values()))
    assert set(families[:n]) == set(MODEL_FAMILIES.values()) and plan.hours <= 30
    assert [push.hours for push in plan.pushes[:n]] == sorted(push.hours for push in plan.pushes[:n])
    for push in plan.pushes[:n]:
        assert push.folds == tuple(range(K)) and push.hours == pytest.approx(train_hours(recipe(push.name), N, K))
    begun = [push for push in plan.pushes if not push.whole]
    assert all(len(push.folds) % 2 == 0 for push in begun) and set(names) | set(plan.left_out) == set(MODEL_FAMILIES)
    assert all(name in recipe_names() for name in MODEL_FAMILIES)


def test_sessions_end_before_kaggle_ends_them():
    long = WeekCandidate("r", "f", 5.0, (0, 1, 2, 3, 4), "network")
    pushes, _ = fill([long], 100)
    assert [(push.folds, push.hours, push.whole) for push in pushes] == [
        ((0, 1, 2, 3), 10.0, False),
        ((4,), 5.0, True),
    ]
    assert all(push.hours <= SESSION_HOURS for push in pushes)


def test_what_is_left_begins_the_next_recipe():
    one, two = (WeekCandidate(name, name, 2.0, (0, 1, 2, 3, 4), "network") for name in "ab")
    pushes, left_out = fill([one, two], 6 + 4.5)
    assert [(push.name, push.folds, push.whole) for push in pushes] == [
        ("a", (0, 1, 2, 3, 4), True),
        ("b", (0, 1, 2, 3), False),
    ]
    assert left_out == [] and fill([one], 1.9) == ([], ["a"])


def write_run(folder, name, *, device="Tesla T4", slower=1.0, config=None, rows=17_000, processes=1):
    """A finished run whose epochs took `slower` times what is counted."""
    config = config or recipe(name)
    folder.mkdir(parents=True)
    seconds = epoch_seconds(config, rows, 4000) * slower / processes
    pd.DataFrame({"epoch": [0, 1, 2], "seconds": [seconds * 4, seconds, seconds]}).to_csv(
        folder / "metrics.csv", index=False
    )
    (folder / "config.json").write_text(config.model_dump_json())
    done = {"oof_rows": 4000, "device": device, "training_rows": rows, "given": {"processes": processes}}
    (folder / "run.json").write_text(json.dumps(done))


def test_finished_folds_are_not_planned_again_and_begun_members_come_first(tmp_path):
    for fold in (0, 3):
        write_run(tmp_path / "convnext_base" / f"fold{fold}", "convnext_base")
    for fold in range(K):
        write_run(tmp_path / "tiny_vit" / f"fold{fold}", "tiny_vit")
    names = ["eva02_small", "convnext_small", "convnext_base", "tiny_vit", "resnext50"]
    plan = plan_week(30, names, N, K, runs=tmp_path)
    first = plan.pushes[0]
    assert (first.name, first.folds) == ("convnext_base", (1, 2, 4))
    assert first.hours == pytest.approx(train_hours(recipe("convnext_base"), N, K) * 2 / 3)
    assert [push.name for push in plan.pushes[1:]] == ["eva02_small", "resnext50", "convnext_small"]


def test_measured_epochs_correct_the_hours_of_the_same_gpu_alone(tmp_path):
    write_run(tmp_path / "tiny_vit" / "fold0", "tiny_vit", slower=1.5)
    write_run(tmp_path / "tiny_vit" / "fold1", "tiny_vit", slower=1.7, processes=2)
    write_run(tmp_path / "resnext50" / "fold0", "resnext50", slower=0.8)
    write_run(tmp_path / "deit_base" / "fold0", "deit_base", slower=9.0, device="cpu")
    speeds = measured_speeds(tmp_path, plan_week.__kwdefaults__["gpu"])
    assert speeds == {
        recipe("tiny_vit").model: pytest.approx(1.6, rel=1e-3),
        recipe("resnext50").model: pytest.approx(0.8, rel=1e-3),
    }
    plan = plan_week(100, ["convnext_small", "tiny_vit"], N, K, runs=tmp_path)
    hours = {name: sum(p.hours for p in plan.pushes if p.name == name) for name in ("convnext_small", "tiny_vit")}
    assert hours["convnext_small"] == pytest.approx(train_hours(recipe("convnext_small"), N, K) * 1.2, rel=1e-3)
    left = math.ceil(3 / 2) / math.ceil(5 / 2)
    assert hours["tiny_vit"] == pytest.approx(train_hours(recipe("tiny_vit"), N, K) * left * 1.6, rel=1e-3)


def test_a_run_leaves_what_a_plan_reads(data, tmp_path):
    result = fit_fold(replace(TINY, epochs=2), data, 0, tmp_path, options=SILENT)
    done = json.loads((result.run_dir / "run.json").read_text())
    assert done["device"] == "cpu" and done["training_rows"] == len(data.folds.training(0))
    assert measured_speeds(tmp_path, plan_week.__kwdefaults__["gpu"]) == {}
    (result.run_dir / "run.json").write_text(json.dumps({**done, "device": "Tesla T4"}))
    seconds = pd.read_csv(result.run_dir / "metrics.csv")["seconds"]
    counted = epoch_seconds(replace(TINY, epochs=2), done["training_rows"], done["oof_rows"])
    expected = seconds.median() / counted
    assert measured_speeds(tmp_path, plan_week.__kwdefaults__["gpu"]) == {TINY.model: pytest.approx(expected, rel=1e-3)}


def test_mistakes_are_refused(tmp_path, capsys):
    for hours in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match=f"--hours must be a number above 0, got {hours:g}"):
            plan_week(hours, [], N, K)
    with pytest.raises(UserError, match="timm: needs the name of a model behind it"):
        plan_week(9, ["timm:"], N, K)
    with pytest.raises(UserError, match="each recipe once"):
        plan_week(9, ["tiny_vit", "tiny_vit"], N, K)
    with pytest.raises(UserError, match="no recipe 'tiny'"):
        plan_week(9, ["tiny"], N, K)
    assert run_app(app, ["plan", "--runs", str(tmp_path / "none")]) == 2
    assert "must be a folder of runs" in capsys.readouterr().err
    assert family_of(recipe("timm:resnet18")) == "resnet"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", "5", "run.json must hold a JSON object, got int"),
        ("run.json", "{", "run.json is not valid JSON"),
        ("metrics.csv", "epoch,train_loss\n0,1\n", "metrics.csv must have a column of numbers, seconds"),
        ("metrics.csv", "epoch,seconds\n0,long\n", "metrics.csv must have a column of numbers, seconds"),
        ("metrics.csv", "", "metrics.csv is empty"),
    ],
)
def test_a_damaged_run_is_named(tmp_path, capsys, file, content, message):
    write_run(tmp_path / "tiny_vit" / "fold0", "tiny_vit")
    (tmp_path / "tiny_vit" / "foldX").mkdir()
    (tmp_path / "tiny_vit" / "foldX" / "run.json").write_text("{}")  # of nobody's fold
    assert finished_folds(tmp_path, "tiny_vit") == {0}
    (tmp_path / "tiny_vit" / "fold0" / file).write_text(content)
    assert run_app(app, ["plan", "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]


def test_the_verb_prints_commands_that_exist_and_json(capsys):
    given = ["plan", "--hours", "12", "--recipe", "tiny_vit", "--recipe", "eva02_small", "--recipe", "dinov2_base"]
    assert run_app(app, given) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0].startswith("Rule: one recipe of each family") and "eva02_small" in lines[3]
    commands = [line for line in lines if "push --kernel train-folds" in line]
    assert "--param RECIPE=eva02_small --param FOLDS=[0,1,2,3,4] --param N_SPLITS=5" in commands[0]
    assert run_app(app, [*given, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [push["name"] for push in values["pushes"]][:2] == ["eva02_small", "tiny_vit"]
    assert values["hours"] <= 12 and values["typical_ratio"] == 1
    assert run_app(app, ["plan", "--hours", "0.1"]) == 0 and "too few" in capsys.readouterr().out
