"""The command line: verbs end to end by subprocess, help, and errors as one line with exit code 2."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cassava_kit.cli import user_message
from cassava_kit.cost import train_hours
from cassava_kit.folds import read_folds
from cassava_kit.predictions import read_predictions
from cassava_kit.recipes import recipe

ROOT = Path(__file__).parent.parent


def kit(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "cassava_kit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=300)


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused call."""
    assert result.returncode == 2, result.stderr
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and "Traceback" not in result.stderr
    return lines[0]


def test_help_lists_every_verb_with_a_sentence():
    result = kit("--help")
    assert result.returncode == 0
    for verb in ("sample", "folds", "recipes", "train", "pretrain", "predict", "ensemble"):
        line = next(line for line in result.stdout.splitlines() if line.strip().startswith(verb + " "))
        assert len(line.split()) > 4


def test_start_up_imports_nothing_heavy():
    heavy = ("torch", "pandas", "lightning", "cv2", "timm", "sklearn")
    code = f"import cassava_kit.__main__, sys; print(*[m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0 and result.stdout.strip() == ""


def test_folds_are_the_same_file_byte_for_byte(tiny_dir, tmp_path):
    for name in ("a", "b"):
        result = kit("folds", "--labels", tiny_dir / "train.csv", "--n-splits", 4, "--out", tmp_path / f"{name}.csv")
        assert result.returncode == 0, result.stderr
    for suffix in (".csv", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert read_folds(tmp_path / "a.csv").n_splits == 4


def test_folds_count_images_that_no_row_names(tiny_dir, tmp_path):
    result = kit("folds", "--data", tiny_dir, "--n-splits", 3, "--out", tmp_path / "f.csv")
    assert "images that no row names are left out" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folds"], "give either --data DIR or --labels train.csv"),
        (["folds", "--labels", "nowhere.csv"], "nowhere.csv"),
        (["folds", "--labels", "train.csv", "--groups"], "no such file|give --data DIR instead"),
        (["train", "resnet", "--data", ".", "--folds", "f.csv"], "no recipe 'resnet'; recipes are resnet18"),
        (["train", "resnet18", "--data", ".", "--folds", "nowhere.csv"], "no fold file nowhere.csv"),
        (["train", "resnet18", "--data", ".", "--folds", "f.csv", "--set", "lr=-1"], "lr: .* greater than 0, got -1"),
        (["predict", "--members", "m.safetensors", "--images", ".", "--out", "p.csv"], "no checkpoint m.safetensors"),
        (["ensemble", "--oof", "o.csv", "--folds", "nowhere.csv"], "no fold file nowhere.csv"),
        (["nonsense"], "No such command 'nonsense'"),
        (["train", "resnet18"], "Missing option '--data'"),
        (["recipes", "nonsense"], "no recipe 'nonsense'"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path):
    line = refused(kit(*arguments, cwd=tmp_path))
    assert pd.Series([line]).str.contains(message).all(), line


def test_verbose_brings_the_traceback(tmp_path):
    result = kit("recipes", "nonsense", "--verbose", cwd=tmp_path)
    assert result.returncode != 0 and "Traceback" in result.stderr and "no recipe 'nonsense'" in result.stderr


def test_our_own_bugs_are_not_dressed_up_as_the_users():
    assert user_message(KeyError("x")) is None
    assert user_message(ValueError("a\nb")) == "a b"
    assert user_message(FileExistsError(17, "File exists", "runs")) == "[Errno 17] File exists: 'runs'"


def test_recipes_are_listed_and_printed():
    assert "resnet50" in kit("recipes").stdout
    assert '"lr": 0.01' in kit("recipes", "resnet34").stdout
    hours = f"{train_hours(recipe('resnet50'), 1000, 3):.1f} h"
    assert re.search(rf"resnet50 +{hours}", kit("recipes", "--hours", "--images", "1000", "--n-splits", "3").stdout)


@pytest.mark.slow
def test_the_verbs_go_the_whole_way(tiny_dir, tmp_path):
    folds, runs = tmp_path / "folds.csv", tmp_path / "runs"
    assert kit("folds", "--data", tiny_dir, "--n-splits", 2, "--out", folds).returncode == 0
    quick = ["--set", "epochs=1", "--set", "image_size=32"]
    for name in ("small_resnet", "timm:resnet10t"):
        result = kit("train", name, "--data", tiny_dir, "--folds", folds, "--fold", "all", "--out", runs, *quick)
        assert result.returncode == 0, result.stderr
    oof = [runs / name / "oof.csv" for name in ("small_resnet", "resnet10t")]
    result = kit("ensemble", "--oof", oof[0], "--oof", oof[1], "--folds", folds, "--out", tmp_path / "w.json")
    assert result.returncode == 0 and "plain mean" in result.stdout, result.stderr
    result = kit("compare", oof[0], oof[1], "--folds", folds)
    assert result.returncode == 0 and "against small_resnet" in result.stdout, result.stderr
    members = [runs / "small_resnet" / f"fold{k}" / "best.safetensors" for k in (0, 1)]
    given = [argument for member in members for argument in ("--members", member)]
    result = kit(
        "predict", *given, "--images", tiny_dir / "test_images", "--out", tmp_path / "p.csv", "--views", "flips"
    )
    assert result.returncode == 0, result.stderr
    assert len(read_predictions(tmp_path / "p.csv").ids) == 8
    line = refused(
        kit("predict", *given, "--images", tiny_dir / "train_images", "--folds", folds, "--out", tmp_path / "q.csv")
    )
    assert "was trained on" in line and "small_resnet-fold0" in line and not (tmp_path / "q.csv").exists()
    other = tmp_path / "other.csv"
    assert kit("folds", "--data", tiny_dir, "--n-splits", 2, "--seed", 7, "--out", other).returncode == 0
    assert "another split" in refused(kit("ensemble", "--oof", oof[0], "--folds", other))
