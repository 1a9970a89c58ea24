"""The command line: help, names that were meant, errors as one line with exit code 2, and verbs end to end."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from processes import run_python

from cassava_kit.cli.app import RENAMED, exit_with, run_app, user_message
from cassava_kit.cli.submit import submit_app
from cassava_kit.cli.verbs import VERBS, app
from cassava_kit.data.folds import read_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.training.recipes import recipe_names

ROOT = Path(__file__).parents[2]


def kit(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return run_python(["-m", "cassava_kit", *arguments], cwd=cwd, env=environment)


def run(*arguments: object) -> int:
    """Run the command in this process."""
    return run_app(app, [str(argument) for argument in arguments])


def one_line(text: str) -> str:
    """The one line that a mistake leaves on standard error."""
    lines = text.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), text
    return lines[0]


def commands() -> dict[str, Any]:
    """Every verb by name, as the command line knows it, without the groups of commands."""
    group: Any = typer.main.get_command(app)
    found = {name: group.get_command(None, name) for name in group.list_commands(None)}
    return {name: command for name, command in found.items() if not hasattr(command, "commands")}


def test_help_lists_every_verb_under_its_stage_with_a_whole_sentence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for verb in ("sample", "folds", "recipes", "train", "pretrain", "predict", "ensemble", "compare"):
        line = next(line for line in shown.splitlines() if line.startswith(f"  {verb} "))
        assert len(line.split()) > 4 and "..." not in line
    stages = [line[:-1] for line in shown.splitlines() if re.fullmatch(r"[A-Z][^:]+:", line)]
    assert stages == ["Options", *VERBS] and len(VERBS) >= 4 and shown.index("  kernels ") < shown.index("  submit ")
    assert shown.index("Train:") < shown.index("  pretrain ") < shown.index("Judge by") < shown.index("  compare ")


@pytest.mark.parametrize("verb", commands())
def test_every_verb_shows_one_example_that_its_options_allow(verb):
    command = commands()[verb]
    lines = command.epilog.removeprefix("\b\nExample:\n").splitlines()
    assert len(lines) == 1
    words = shlex.split(lines[0])
    assert words[:2] == ["cassava-kit", verb]
    command.make_context(verb, words[2:])  # parses, runs nothing; a usage error for an option that is not there


def test_no_verb_prints_the_help(capsys):
    assert run() == 0
    alone = capsys.readouterr()
    assert run("--help") == 0
    assert alone.out == capsys.readouterr().out and alone.out.count("\n") > 30 and alone.err == ""


def test_help_of_train_names_the_recipes_and_where_settings_are_listed(capsys):
    assert run("train", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ", ".join(recipe_names()) in shown and "timm:NAME" in shown and "`cassava-kit recipes NAME`" in shown


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["trian"], "Did you mean 'train'"),
        (["recipes", "resnet5O"], "(did you mean resnet50 or "),
        (["train", "efficientnet_b5", "--data", "d", "--folds", "f.csv"], "(did you mean efficientnet_b4 or "),
        (["recipes", "timm:resnet5O", "--hours"], "timm has no model 'resnet5O' (did you mean resnet50"),
        (["train", "resnet18", "--dta", "x"], "--data"),
        (["pretrain", "byol", "--init", "b.pth"], "--init is now --weights"),
        (["pretrain", "byol", "--backbone", "timm:resnet18"], "--backbone is now --model"),
        (["predict", "--members", "m"], "--members is now --member"),
        (["submission", "--weights", "d"], "--weights is now --ensemble"),
        (["recipes", "--hours", "--images", "3"], "--images is now --n-images"),
        (["train", "--recipe", "resnet50"], "--recipe is now an argument: train RECIPE"),
        (["train", "resnet50", "--epochs", "3"], "--epochs is a setting: use --set epochs=VALUE"),
        (["ablate", "resnet50", "--batch-size=8"], "--batch-size is a setting: use --set batch_size=VALUE"),
        (["pretrain", "byol", "--min-std", "1"], "--min-std is a setting: use --set min_std=VALUE"),
        (["pretrain", "byol", "--keep-stages", "1"], "No such option: --keep-stages"),
        (["report", "runs", "--epochs", "3"], "No such option: --epochs"),
    ],
)
def test_a_wrong_name_says_which_was_meant(capsys, arguments, meant):
    assert run(*arguments) == 2
    assert meant in one_line(capsys.readouterr().err)


def test_renamed_options_are_gone_and_the_new_ones_are_there():
    verbs = commands()
    for (verb, old), new in RENAMED.items():
        if verb == "ensemble":  # of submit.py
            continue
        options = [name for parameter in verbs[verb].params for name in parameter.opts]
        if new == f"an argument: {verb} RECIPE":
            assert old not in options and verbs[verb].params[0].metavar == "RECIPE"
            continue
        assert old not in options and new in options


def test_start_up_imports_nothing_heavy():
    heavy = ("torch", "pandas", "lightning", "cv2", "timm", "sklearn")
    code = f"import cassava_kit.cli.verbs, sys; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and result.stdout.strip() == ""


def test_folds_are_the_same_file_byte_for_byte(tiny_dir, tmp_path):
    for name in ("a", "b"):
        assert run("folds", "--labels", tiny_dir / "train.csv", "--n-splits", 4, "--out", tmp_path / f"{name}.csv") == 0
    for suffix in (".csv", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert read_folds(tmp_path / "a.csv").n_splits == 4


def test_folds_count_images_that_no_row_names(tiny_dir, tmp_path, capsys):
    assert run("folds", "--data", tiny_dir, "--n-splits", 3, "--out", tmp_path / "f.csv") == 0
    assert "images that no row names are left out" in capsys.readouterr().out


MISTAKES = [
    (["folds"], "give either --data DIR or --labels train.csv"),
    (["folds", "--labels", "nowhere.csv"], "nowhere.csv"),
    (["train", "resnet", "--data", ".", "--folds", "f.csv"], "no recipe 'resnet' .did you mean"),
    (["train", "resnet18", "--data", ".", "--folds", "nowhere.csv"], "no fold file nowhere.csv"),
    (["train", "resnet18", "--data", ".", "--folds", "f.csv", "--fold", "all"], "'--fold': .* valid integer"),
    (["train", "resnet18", "--data", ".", "--folds", "f.csv", "--set", "lr=-1"], "lr: .* greater than 0, got -1"),
    (["predict", "--member", "m.safetensors", "--images", ".", "--out", "p.csv"], "no checkpoint m.safetensors"),
    (["predict", "--member", ".", "--images", ".", "--out", "p.csv"], r"\. holds no fold\*/best\.safetensors"),
    (["ensemble", "--oof", "o.csv", "--folds", "nowhere.csv"], "no fold file nowhere.csv"),
    (["nonsense"], "No such command 'nonsense'"),
    (["train", "resnet18"], "Missing option '--data'"),
    (["recipes", "nonsense"], "no recipe 'nonsense'"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert re.search(message, one_line(capsys.readouterr().err))


@pytest.mark.parametrize("arguments", [["recipes", "nonsense"], ["train", "resnet18"]])
def test_the_process_of_a_mistake_ends_with_one_line_and_code_2(arguments, tmp_path):
    command = [sys.executable, "-m", "cassava_kit", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    one_line(result.stderr)


def test_verbose_brings_the_traceback(capsys):
    for arguments in (["recipes", "nonsense", "--verbose"], ["--verbose", "recipes", "nonsense"]):
        assert run(*arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("Traceback") and "error: no recipe 'nonsense'" in said.splitlines()[-1]


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (1, 1), (UserError("x"), 2), (ValueError("x"), 70)])
def test_the_process_exits_with_the_code_of_its_outcome(monkeypatch, capsys, outcome, code):
    """The codes of docs/formats.md; what examines returns its own 0 or 1."""

    def examine(*_, **__):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("cassava_kit.cli.kaggle.examine", examine)
    monkeypatch.setattr(sys, "argv", ["submit.py", "doctor", "--bundle", "x"])
    with pytest.raises(SystemExit) as ended:
        exit_with(submit_app)
    said = capsys.readouterr().err
    assert ended.value.code == code
    assert ("Traceback" in said) == (code == 70) and ("error: x\n" in said) == (code == 2)


def test_our_own_bugs_are_not_dressed_up_as_the_users():
    assert user_message(KeyError("x")) is None
    assert user_message(UserError("a\nb")) == "a b"
    assert user_message(FileExistsError(17, "File exists", "runs")) == "[Errno 17] File exists: 'runs'"


def test_recipes_are_listed_and_printed(capsys):
    assert run("recipes") == 0 and "resnet50" in capsys.readouterr().out
    assert run("recipes", "resnet34") == 0 and '"lr": 0.01' in capsys.readouterr().out


@pytest.mark.slow
def test_the_verbs_go_the_whole_way(tiny_dir, tmp_path):
    folds, runs = tmp_path / "folds.csv", tmp_path / "runs"
    assert kit("folds", "--data", tiny_dir, "--n-splits", 2, "--out", folds).returncode == 0
    quick = ["--set", "epochs=1", "--set", "image_size=32"]
    for model, name in (("small_resnet", "small_resnet"), ("timm:resnet10t", "resnet10t")):
        result = kit("train", model, "--data", tiny_dir, "--folds", folds, "--out", runs, "--name", name, *quick)
        assert result.returncode == 0, result.stderr
    oof = [runs / name / "oof.csv" for name in ("small_resnet", "resnet10t")]
    result = kit("ensemble", "--oof", oof[0], "--oof", oof[1], "--folds", folds, "--out", tmp_path / "w.json")
    assert result.returncode == 0 and "plain mean" in result.stdout, result.stderr
    result = kit("compare", oof[0], oof[1], "--folds", folds)
    assert result.returncode == 0 and "against small_resnet" in result.stdout, result.stderr
    members = [runs / "small_resnet" / f"fold{k}" / "best.safetensors" for k in (0, 1)]
    given = [argument for member in members for argument in ("--member", member)]
    result = kit(
        "predict", *given, "--images", tiny_dir / "test_images", "--out", tmp_path / "p.csv", "--views", "flips"
    )
    assert result.returncode == 0, result.stderr
    assert len(read_predictions(tmp_path / "p.csv").ids) == 8
    assert (
        kit(
            "predict",
            "--member",
            runs / "small_resnet",
            "--images",
            tiny_dir / "test_images",
            "--out",
            tmp_path / "r.csv",
            "--views",
            "flips",
        ).returncode
        == 0
    )
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "p.csv").read_bytes()
    images = ["--images", tiny_dir / "train_images", "--folds", folds, "--out", tmp_path / "q.csv"]
    line = one_line(kit("predict", *given, *images).stderr)
    assert "was trained on" in line and "small_resnet-fold0" in line and not (tmp_path / "q.csv").exists()
    other = tmp_path / "other.csv"
    assert kit("folds", "--data", tiny_dir, "--n-splits", 2, "--seed", 7, "--out", other).returncode == 0
    assert "another split" in one_line(kit("ensemble", "--oof", oof[0], "--folds", other).stderr)
