"""The verbs of training and of evidence from the command line's side: options that would do nothing are refused."""

import json
import re

import pytest

from cassava_kit.cli.app import run_app
from cassava_kit.cli.training import _fold_numbers
from cassava_kit.cli.verbs import app
from cassava_kit.errors import UserError
from cassava_kit.training.baseline import LogReg
from cassava_kit.training.cost import train_hours
from cassava_kit.training.recipes import recipe

GIVEN = ["--data", "nowhere", "--folds", "nowhere.csv"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "resnet18", *GIVEN, "--clean-action", "drop"], "--clean-action goes with --clean FILE"),
        (["ablate", "resnet18", *GIVEN, "--change", "lr=1", "--clean-action", "soften"], "goes with --clean FILE"),
        (["train", "logreg", *GIVEN, "--clean-action", "flip"], "trains no network"),
        (["train", "logreg", *GIVEN, "--strategy", "ddp"], "trains no network"),
        (["train", "logreg", *GIVEN, "--num-nodes", "2"], "trains no network"),
        (["recipes", "--n-images", "1000"], "--n-images, --n-splits and --gpu go with --hours"),
        (["recipes", "resnet50", "--n-splits", "3"], "--n-images, --n-splits and --gpu go with --hours"),
        (["recipes", "logreg", "--hours"], "logreg needs no GPU"),
    ],
)
def test_options_without_an_effect_are_refused(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_app(app, arguments) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and message in told[0]


def test_a_listed_recipe_is_printed_and_its_hours_are_those_of_the_list(capsys):
    assert run_app(app, ["recipes", "--hours", "--n-images", "1000", "--n-splits", "3"]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"logreg +Logistic regression", listed)
    assert run_app(app, ["recipes", "resnet50", "--hours", "--n-images", "1000", "--n-splits", "3"]) == 0
    hours = f"{train_hours(recipe('resnet50'), 1000, 3):.1f} h"
    assert capsys.readouterr().out.startswith(f"resnet50: {hours} of two T4s, with an assumed speed")
    assert re.search(f"resnet50 +{hours}", listed)
    assert run_app(app, ["recipes", "logreg"]) == 0
    assert json.loads(capsys.readouterr().out)["c"] == LogReg().c
    assert run_app(app, ["recipes", "small_simclr"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "simclr"


def test_decisions_of_several_looks_reach_the_verb_clean(tmp_path, monkeypatch):
    got = {}
    monkeypatch.setattr("cassava_kit.cli.clean.clean_files", lambda *_, **given: got.update(given))
    looks = [tmp_path / "one.csv", tmp_path / "two.csv"]
    arguments = ["clean", "--oof", "a.csv", "--folds", "f.csv"]
    arguments += [part for look in looks for part in ("--decisions", str(look))]
    assert run_app(app, arguments) == 0 and got["decisions"] == looks


def test_the_folds_are_those_given_once_each_in_order(tiny_folds):
    assert _fold_numbers([1, 0, 1], tiny_folds) == [0, 1] and _fold_numbers([1], tiny_folds) == [1]
    assert _fold_numbers(None, tiny_folds) == [0, 1]
    with pytest.raises(UserError, match=r"fold must be in 0\.\.1, got 2"):
        _fold_numbers([2], tiny_folds)
