"""The commands of `submit.py`: options of each, mistakes as one line before any work, spellings of before."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cassava_kit.cli.app import run_app
from cassava_kit.cli.submit import COMMANDS, submit_app
from cassava_kit.cli.verbs import app
from cassava_kit.kaggle.rehearse.options import RehearsalOptions

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {"--cpus", "--memory", "--minutes", "--hidden"}
KERNEL = {"--kernel", "--param", "--attach"}
OPTIONS = {
    "ensemble": LIMITS
    | {"--data", "--out", "--recipe", "--weights", "--n-splits", "--seed", "--groups", "--no-groups", "--views"}
    | {"--owner", "--replace", "--keep", "--set", "--jobs", "--time-limit"},
    "package": KERNEL | {"--from", "--member", "--ensemble-weights", "--folds", "--views", "--out", "--owner"},
    "rehearse": LIMITS | KERNEL | {"--bundle", "--data", "--image", "--image-python"},
    "doctor": LIMITS
    | {"--bundle", "--kernel", "--notebook", "--kernel-metadata", "--run", "--data", "--dataset", "--json"},
    "push": KERNEL | {"--bundle", "--owner", "--again", "--yes", "--dry-run"},
    "submit": {"--bundle", "--again", "--yes", "--dry-run", "--ledger"},
    "fetch": {"--bundle", "--kernel"},
    "history": {"--ledger", "--offline", "--json"},
    "finals": {"--ledger", "--candidate", "--folds", "--json"},
}


def run(*arguments: object) -> int:
    """Run `submit.py` in this process."""
    return run_app(submit_app, [str(argument) for argument in arguments])


def one_line(text: str) -> str:
    """The one line that a mistake leaves on standard error, after the heading of the stage that met it."""
    lines = [line for line in text.strip().splitlines() if line != "1. Competition data"]
    assert len(lines) == 1 and lines[0].startswith("error: "), text
    return lines[0]


@pytest.mark.parametrize("command", OPTIONS)
def test_help_shows_the_options_of_the_command_alone(command, capsys):
    assert run(command, "--help") == 0
    shown = capsys.readouterr().out
    listed = set(re.findall(r"--[a-z-]+", "\n".join(re.findall(r"^  (--.*?)(?:  |$)", shown, flags=re.MULTILINE))))
    assert listed == OPTIONS[command] | {"--help"}
    assert f"python submit.py {command}" in shown.split("Example:")[1]


@pytest.mark.parametrize("installed", [True, False])
def test_a_folder_without_submit_py_is_told_the_verb(installed, tmp_path):
    """An installed kit, the package without kernels/ and submit.py; or the repository's, called from another folder."""
    if installed:
        shutil.copytree(ROOT / "cassava_kit", tmp_path / "cassava_kit", ignore=shutil.ignore_patterns("__pycache__"))
    calls = [["--help"], ["doctor", "--help"], ["--doctor", "--bundle", "a b"]]
    program = (
        "from cassava_kit.cli.app import run_app\nfrom cassava_kit.cli.submit import submit_app\n"
        f"for arguments in {calls!r}:\n    run_app(submit_app, arguments)\n"
    )
    command = [sys.executable, "-c", program]
    alone = os.environ | {"PYTHONPATH": str(tmp_path if installed else ROOT)}
    said = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=alone, timeout=120)
    assert "submit.py" not in said.stdout + said.stderr
    assert "`cassava-kit submit COMMAND --help`" in said.stdout
    assert "  cassava-kit submit doctor --bundle build/mine" in said.stdout.split("Example:")[1]
    assert "--doctor is now a command: cassava-kit submit doctor --bundle 'a b'" in said.stderr


def test_the_commands_are_listed_without_a_command_and_as_one_of_the_kits(capsys):
    assert run() == 0
    alone = capsys.readouterr().out
    assert run_app(app, ["submit"]) == 0
    inside = capsys.readouterr().out
    for name in OPTIONS:
        assert re.search(rf"^  {name} ", alone, flags=re.MULTILINE) and re.search(rf"^  {name} ", inside, flags=re.M)
    assert {name for commands in COMMANDS.values() for name in commands} == OPTIONS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor"], "give --bundle DIR"),
        (["sumbit"], "Did you mean 'submit'"),
        (["ensemble", "--dry-run"], "No such option: --dry-run"),
        (["push", "--bundle", "nowhere"], "nowhere"),
        (["ensemble", "--data", "nowhere"], "nowhere"),
        (["ensemble", "--recipe", "nonsense"], "no recipe 'nonsense'"),
        (["ensemble", "--recipes", "small_vit,small_resnet"], "--recipes is now --recipe (once for each)"),
        (["ensemble", "--views", "upside-down"], "views"),
        (["ensemble", "--weights", "x"], "NAME=FILE"),
        (["ensemble", "--n-splits", "1"], "n-splits"),
        (["doctor", "--bundle", "x", "--cpus", "2"], "--cpus goes with --notebook FILE"),
        (["doctor", "--notebook", "x.ipynb", "--cpus", "2"], "--cpus goes with --run"),
        (["doctor", "--notebook", "x.ipynb", "--bundle", "y"], "give it, or --bundle and --kernel, not both"),
        (["doctor", "--notebook", "x.ipynb"], "no notebook x.ipynb"),
        (["doctor", "--notebook", "a.pth"], "a.pth must be a notebook"),
        (["fetch", "--again"], "No such option: --again"),
        (["package", "--weights", "a=b"], "No such option: --weights"),
        (["package", "--from", "nowhere"], "nowhere holds no ensemble.json"),
        (["package", "--member", "nowhere"], "nowhere holds no fold*/best.safetensors"),
        (["package", "--from", "a", "--member", "b"], "--from names the folder of a dry run"),
        (["package", "--folds", "f.csv"], "--folds goes with --member or --ensemble-weights"),
        (["package"], "say what to pack, found none in build/"),
        (["package", "--kernel", "nonsense"], "no kernel 'nonsense'"),
        (["push", "--bundle", "x", "--param", "RECIPE=a"], "--param goes with --kernel train-folds"),
        (["rehearse", "--bundle", "x", "--attach", "a/b"], "--attach goes with --kernel train-folds"),
        (["push", "--bundle", "x", "--owner", "me"], "--owner goes with `package`"),
        (["submit", "--bundle", "x", "--kernel", "eda"], "No such option: --kernel"),
        (["rehearse", "--bundle", "x", "--image-python", "3.12"], "--image-python goes with --image"),
        (["rehearse", "--kernel", "eda", "--hidden", "9"], "eda has no weights and no submission: leave out --hidden"),
        (["rehearse", "--kernel", "eda", "--image"], "leave out --image"),
        (["package", "--kernel", "eda", "--folds", "f.csv"], "leave out --folds"),
        (["package", "--kernel", "eda", "--from", "x", "--views", "d4"], "leave out --from, --views"),
        (["finals", "--candidate", "a=b"], "--candidate needs --folds"),
        (["finals", "--folds", "nowhere.csv"], "--folds goes with it; the ledger has its own"),
        (["finals", "--candidate", "a=b", "--folds", "f", "--ledger", "l"], "--candidate stands in place of"),
        (["finals", "--ledger", "nowhere.json"], "no ledger nowhere.json"),
        (["fetch", "--bundle", "nowhere"], "nowhere"),
        (["ensemble", "--recipe", "small_vit", "--recipe", "small_vit"], "--recipe names small_vit more than once"),
        (["ensemble", "--weights", "resnet50=a.pth", "--weights", "resnet50=a.pth"], "--weights names resnet50"),
        (["--push", "--kernel", "eda", "--dry-run"], "now a command: python submit.py push --kernel eda --dry-run"),
        (["--bundle", "a b", "--submit"], "--submit is now a command: python submit.py submit --bundle 'a b'"),
        (["--doctor", "--bundle", "x"], "--doctor is now a command: python submit.py doctor --bundle x"),
        (["--ensemble", "--doctor"], "give one command, got --ensemble and --doctor"),
        (["--ensemble", "--recipes", "small_vit"], "--recipes is now --recipe"),
    ],
)
def test_mistakes_are_one_line_before_any_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pth").write_bytes(b"x")
    assert run(*arguments) == 2
    assert message in one_line(capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("arguments", [["package", "--from", "nowhere"], ["--doctor", "--bundle", "x"]])
def test_the_process_of_a_mistake_ends_with_one_line_and_code_2(arguments, tmp_path):
    command = [sys.executable, str(ROOT / "submit.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert result.returncode == 2 and result.stdout == ""
    one_line(result.stderr)


def test_ensemble_as_a_flag_still_means_the_command(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr("cassava_kit.cli.dry_run.dry_run", plans.append)
    options = ["--data", tmp_path, "--n-splits", 4, "--no-groups", "--views", "d4", "--owner", "me", "--hidden", 30]
    options += ["--recipe", "small_vit", "--recipe", "small_resnet", "--seed", 7, "--cpus", 2, "--out", tmp_path / "o"]
    assert run("ensemble", *options) == run("--ensemble", *options) == run(*options, "--ensemble") == 0
    assert run_app(app, ["submit", "--ensemble", *map(str, options)]) == 0
    assert run("ensemble", "--replace") == run("ensemble", "--keep") == run("ensemble") == 0
    assert [each.existing for each in plans] == ["refuse"] * 4 + ["replace", "keep", "refuse"]
    plan = plans[0]
    assert plans[:4] == [plan] * 4
    assert (plan.data, plan.out, plan.recipes) == (tmp_path, tmp_path / "o", ("small_vit", "small_resnet"))
    assert (plan.n_splits, plan.seed, plan.groups, plan.views, plan.owner) == (4, 7, False, "d4", "me")
    assert plan.setting == RehearsalOptions(cpus=2, hidden=30)
