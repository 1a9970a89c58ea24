"""A dry run within a time limit: what is trained, when training ends, and the file that is there meanwhile."""

import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from cassava_kit.cli import dry_run_members
from cassava_kit.cli.app import run_app
from cassava_kit.cli.dry_run import write_first_answers
from cassava_kit.cli.dry_run_limit import (
    NOTEBOOK_SHARE,
    SLOWER,
    fit_members,
    is_time_up,
    notebook_minutes,
    training_seconds,
    until,
    with_epochs,
)
from cassava_kit.cli.dry_run_members import PlannedMembers
from cassava_kit.cli.submit import submit_app
from cassava_kit.competition import CASSAVA
from cassava_kit.data.table import read_competition
from cassava_kit.data.to_predict import read_test
from cassava_kit.errors import Stopped, UserError
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.submission import check_answers
from cassava_kit.training import recipe_run
from cassava_kit.training.recipe_run import PlannedRecipe
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.workers import Job


def plan(*names, after=()):
    return [PlannedRecipe(recipe(name), TrainOptions(), "pretraining" if name in after else None) for name in names]


def jobs(recipes, seconds, n_splits=2):
    return {one.label(fold): seconds[one.config.recipe] for one in recipes for fold in range(n_splits)}


def names(fitted):
    return [one.config.recipe for one in fitted.recipes]


def test_one_member_of_each_family_comes_first_the_shortest_ahead():
    recipes = plan("convnext_base", "convnext_small", "tiny_vit", "dinov2_small")
    seconds = {"convnext_base": 40.0, "convnext_small": 20.0, "tiny_vit": 10.0, "dinov2_small": 30.0}
    everything = fit_members(recipes, jobs(recipes, seconds), 1e6, n_splits=2, at_once=1)
    assert names(everything) == ["tiny_vit", "convnext_small", "dinov2_small", "convnext_base"]
    assert everything.seconds == (20, 40, 60, 80) and everything.left_out == ()
    # 2 folds of the first three take 120 s, of all four 200 s
    for available, fits in ((200 * SLOWER, 4), (200 * SLOWER - 1, 3), (120 * SLOWER, 3), (60 * SLOWER, 2)):
        fitted = fit_members(recipes, jobs(recipes, seconds), available, n_splits=2, at_once=1)
        assert names(fitted) == names(everything)[:fits] and len(fitted.left_out) == 4 - fits
    side_by_side = fit_members(recipes, jobs(recipes, seconds), 100 * SLOWER, n_splits=2, at_once=2)
    assert len(side_by_side.recipes) == 4, "two at once take half the time"
    assert "left out for lack of time: convnext_base" in str(
        fit_members(recipes, jobs(recipes, seconds), 130 * SLOWER, n_splits=2, at_once=1)
    )


def test_a_pretraining_counts_with_the_recipe_that_waits_for_it():
    recipes = plan("small_resnet", "small_ssl_resnet", after=["small_ssl_resnet"])
    due = {**jobs(recipes, {"small_resnet": 10.0, "small_ssl_resnet": 8.0}), "pretraining": 30.0}
    fitted = fit_members(recipes, due, 50 * SLOWER, n_splits=2, at_once=1)
    assert names(fitted) == ["small_resnet"], "20 s, then 16 and 30 more"
    assert fitted.jobs(due, 2) == jobs(recipes[:1], {"small_resnet": 10.0})
    everything = fit_members(recipes, due, 1e6, n_splits=2, at_once=1)
    assert everything.jobs(due, 2) == due
    kept = PlannedMembers(tuple(recipes), 1, Job("pretraining", print)).keep(fitted.recipes)
    assert kept.pretraining is None and kept.recipes == fitted.recipes
    assert PlannedMembers(tuple(recipes), 1, Job("pretraining", print)).keep(tuple(recipes)).pretraining is not None


def test_finished_folds_take_no_time():
    recipes = plan("small_resnet", "small_vit")
    fitted = fit_members(recipes, {recipes[0].label(1): 10.0}, 10 * SLOWER, n_splits=2, at_once=1)
    assert sorted(names(fitted)) == ["small_resnet", "small_vit"]


def test_where_no_recipe_fits_the_shortest_has_fewer_epochs():
    recipes = plan("small_resnet", "small_vit")
    epochs = recipe("small_vit").epochs
    due = jobs(recipes, {"small_resnet": 50.0, "small_vit": 10.0 * epochs})
    shortest = min((100.0, "small_resnet"), (20.0 * epochs, "small_vit"))
    each = shortest[0] / recipe(shortest[1]).epochs
    fitted = fit_members(recipes, due, 3.5 * each * SLOWER, n_splits=2, at_once=1)
    assert names(fitted) == [shortest[1]] and fitted.recipes[0].config.epochs == 3
    assert fitted.seconds == (pytest.approx(3 * each),) and "fewer epochs than the recipe's: 3" in str(fitted)
    with pytest.raises(UserError, match=r"one epoch of .* takes about .* give a larger --time-limit"):
        fit_members(recipes, due, 0.9 * each * SLOWER, n_splits=2, at_once=1)
    with pytest.raises(UserError, match="0 s are left"):
        fit_members(recipes, due, -5.0, n_splits=2, at_once=1)


@pytest.mark.parametrize("name", ["convnext_small", "dinov2_base", "resnet50", "efficientnet_b4", "vit_base"])
def test_a_shorter_run_of_any_recipe_is_a_valid_one(name):
    config = recipe(name)
    for epochs in range(1, config.epochs):
        assert with_epochs(config, epochs).epochs == epochs
    assert with_epochs(config, 1).warmup_epochs == pytest.approx(config.warmup_epochs / config.epochs)


def test_shares_of_the_limit():
    clock = Clock(1e6, started=time.time() - 1e5)
    assert training_seconds(clock) == pytest.approx(1e6 * (1 - NOTEBOOK_SHARE) - 1e5, abs=500)
    assert notebook_minutes(clock) == pytest.approx((1e6 - 5000 - 1e5) / 60, abs=10)
    assert notebook_minutes(Clock(10.0, started=time.time() - 100)) == 1
    assert training_seconds(Clock()) == float("inf") and notebook_minutes(Clock()) is None


def test_the_time_ends_the_block_as_a_signal_does():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Stopped) as stopped, until(0.05):
        time.sleep(60)
    assert is_time_up(stopped.value) and not is_time_up(Stopped(number=signal.SIGTERM))
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with until(60):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


@pytest.fixture
def trained(monkeypatch):
    """`train_recipes` replaced: it notes what it was asked for; on `small_vit` the time is up, and it waits."""
    asked = []

    def train(recipes, data, out, *, jobs, first):
        asked.append(([one.name for one in recipes], [job.name for job in first]))
        if recipes[0].name == "small_vit":
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            time.sleep(60)
        return [SimpleNamespace(name=recipes[0].name)]

    monkeypatch.setattr(recipe_run, "train_recipes", train)
    return asked


def test_members_that_are_not_whole_in_time_are_left_out(trained, monkeypatch):
    monkeypatch.setattr("cassava_kit.cli.dry_run_limit.training_seconds", lambda clock: 600)
    recipes = plan("small_ssl_resnet", "small_vit", "small_resnet", after=["small_ssl_resnet"])
    members = PlannedMembers(tuple(recipes), 1, Job("pretraining", print))
    results = dry_run_members._train_in_time(members, None, None, Clock(5.0))
    assert [each.name for each in results] == ["small_ssl_resnet"]
    assert trained == [(["small_ssl_resnet"], ["pretraining"]), (["small_vit"], [])], "the rest is not begun"
    with pytest.raises(UserError, match="no member was whole within 5 s"):
        dry_run_members._train_in_time(replace(members, recipes=tuple(recipes[1:])), None, None, Clock(5.0))


@pytest.mark.parametrize("columns", [(), ("a", "b", "c", "d", "e")])
def test_a_valid_file_is_there_early_and_never_replaces_one(tiny_dir, tmp_path, columns):
    competition = replace(CASSAVA, probability_columns=columns)
    table, tests = read_competition(tiny_dir), read_test(tiny_dir, CASSAVA)
    path = tmp_path / "submission.csv"
    write_first_answers(path, table, tests, competition)
    check_answers(path, tests.names, competition)
    rows, shares = pd.read_csv(path), table.frame["label"].value_counts(normalize=True)
    if columns:
        assert rows["b"].tolist() == pytest.approx([shares.get(1, 0)] * len(tests.names))
    else:
        assert set(rows["label"]) == {shares.idxmax()}
    path.write_text("mine")
    write_first_answers(path, table, tests, competition)
    assert path.read_text() == "mine"


def test_a_limit_that_is_too_short_is_said_and_leaves_the_file(tiny_dir, tmp_path, capsys):
    arguments = ["ensemble", "--data", tiny_dir, "--out", tmp_path, "--recipe", "small_resnet", "--time-limit", 1]
    assert run_app(submit_app, [str(each) for each in arguments]) == 2
    assert "give a larger --time-limit" in capsys.readouterr().err
    check_answers(tmp_path / "submission.csv", tiny_dir / "test_images")
