"""The dry run by subprocess, `python submit.py ensemble`, on a tiny competition with broken images among it."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from processes import run_python
from safetensors.torch import save_file

from cassava_kit.cli import dry_run_members
from cassava_kit.cli.app import run_app
from cassava_kit.cli.dry_run_members import DryRun, PlannedMembers, parse_weights, recipe_for, train_members
from cassava_kit.cli.submit import submit_app
from cassava_kit.competition import CASSAVA
from cassava_kit.data.folds import read_folds, write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import read_competition
from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import check_oof
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference.submission import check_answers
from cassava_kit.models.checkpoint import read_info
from cassava_kit.training import recipe_run
from cassava_kit.training.recipe_run import PlannedRecipe
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.ssl.run_folder import BACKBONE
from cassava_kit.training.workers import Job

ROOT = Path(__file__).parents[2]


def submit(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python([ROOT / "submit.py", *arguments], cwd=ROOT, env={**os.environ, "COLUMNS": "150"})


def test_weights_are_given_by_recipe_or_timm_name(tmp_path):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"x")
    assert parse_weights([f"mobilenetv2_100={file}"]) == (("mobilenet", file),)
    assert recipe_for("vit_base_patch16_224.dino") == "timm:vit_base_patch16_224.dino"  # another mean and std
    assert recipe_for("vit_base_patch16_224") == "vit_base"
    assert recipe_for("resnet50") == "resnet50" and recipe_for("convnext_tiny") == "timm:convnext_tiny"
    with pytest.raises(ValueError, match="NAME=FILE"):
        parse_weights(["mobilenetv2_100"])
    with pytest.raises(FileNotFoundError, match="no weights file"):
        parse_weights(["mobilenetv2_100=nowhere.pth"])


def test_what_cannot_be_packed_is_known_before_the_training(tiny_dir, tmp_path, capsys):
    arguments = ["ensemble", "--data", str(tiny_dir), "--out", str(tmp_path), "--recipe", "small_resnet"]
    assert run_app(submit_app, [*arguments, "--owner", "me@x"]) == 2
    assert "id must be owner/slug" in capsys.readouterr().err
    (tmp_path / "bundle" / "kit").mkdir(parents=True)
    (tmp_path / "bundle" / "kit" / "thesis.txt").write_text("years of work")
    assert run_app(submit_app, arguments) == 2
    assert "is not part of a bundle" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "folds.csv").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "is not a plain state dict"),
        ("w.safetensors", b"junk", "is not a whole .safetensors file"),
        ("w.safetensors", {"a": torch.zeros(3)}, "matches nothing of the model"),
        ("w.txt", b"junk", "weights must be a .safetensors or a .pth"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_any_work(tmp_path, monkeypatch, capsys, name, content, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cassava_kit.cli.dry_run.load_data", lambda plan: pytest.fail("the data were read"))
    Path(name).write_bytes(content) if isinstance(content, bytes) else save_file(content, name)
    assert run_app(submit_app, ["ensemble", "--weights", f"resnet18={name}"]) == 2
    assert message in capsys.readouterr().err and [path.name for path in tmp_path.iterdir()] == [name]


def test_folds_of_runs_are_not_written_over(tiny_dir, tmp_path, capsys):
    arguments = ["ensemble", "--data", str(tiny_dir), "--out", str(tmp_path), "--recipe", "small_resnet"]
    first = split_folds(read_competition(tiny_dir).frame, n_splits=2)
    write_folds(tmp_path / "folds.csv", first)
    (tmp_path / "runs" / "small_resnet" / "fold0").mkdir(parents=True)
    before = (tmp_path / "folds.csv").read_bytes()
    for more in ([], ["--keep"]):
        assert run_app(submit_app, [*arguments, "--n-splits", "5", *more]) == 2
        said = capsys.readouterr().err
        assert "runs on other folds" in said and "--replace" in said and "another --out" in said
        assert (tmp_path / "folds.csv").read_bytes() == before


def test_processes_are_started_early_for_several_jobs_alone():
    members = PlannedMembers((), at_once=2)
    assert [members.ready(n_due) for n_due in (0, 1, 2, 9)] == [0, 0, 2, 2]
    assert replace(members, at_once=1).ready(9) == 0


def test_a_finished_pretraining_is_looked_at_in_this_process(tiny_table, tiny_folds, tmp_path, monkeypatch):
    asked = []

    def train(recipes, data, out, *, jobs, first):
        asked.append((jobs, len(first), [one.after for one in recipes]))
        raise UserError("far enough")

    monkeypatch.setattr(recipe_run, "train_recipes", train)
    looked = Job("pretraining", os.getpid)
    monkeypatch.setattr(dry_run_members, "run_jobs", lambda jobs, at_once: asked.append((jobs, at_once)))
    members = PlannedMembers((PlannedRecipe(recipe("small_ssl_resnet"), TrainOptions(), looked.name),), 2, looked)
    for backbone_is_there in (False, True):
        if backbone_is_there:
            (tmp_path / "pretrain").mkdir()
            (tmp_path / "pretrain" / BACKBONE).write_bytes(b"")
        with pytest.raises(UserError, match="far enough"):
            train_members(DryRun(), members, table=tiny_table, split=tiny_folds, out=tmp_path)
    assert asked == [(2, 1, ["pretraining"]), ([looked], 1), (2, 0, [None])]


@pytest.mark.slow
def test_the_whole_road_on_photographs_with_broken_ones_among_them(tiny_dir, tmp_path):
    data = tmp_path / "competition"
    shutil.copytree(tiny_dir, data)
    train = sorted((data / "train_images").iterdir())
    test = sorted((data / "test_images").iterdir())
    train[0].write_bytes(train[0].read_bytes()[:500])
    train[1].write_bytes(b"")
    test[0].write_bytes(b"<html>404</html>")
    test[1].write_bytes(test[1].read_bytes()[:300])
    arguments = ["ensemble", "--data", data, "--out", tmp_path / "out", "--n-splits", 2]
    arguments += ["--recipe", "small_resnet", "--recipe", "small_vit", "--recipe", "small_ssl_resnet"]
    arguments += ["--cpus", 1, "--memory", 8, "--minutes", 10, "--hidden", 30]
    first = submit(*arguments)
    assert first.returncode == 0, first.stderr[-3000:]
    out = tmp_path / "out"
    check_answers(out / "submission.csv", data / "test_images")
    assert len(pd.read_csv(out / "submission.csv")) == len(test)
    run = json.loads((out / "rehearsal" / "working" / "run.json").read_text())
    assert {test[0].name, test[1].name} <= set(
        json.dumps(run["images_failed"]).replace('"', " ").replace(",", " ").split()
    )
    folds = read_folds(out / "folds.csv")
    for name in ("small_resnet", "small_vit", "small_ssl_resnet"):
        check_oof(read_predictions(out / "runs" / name / "oof.csv"), folds, name)
        assert read_info(out / "bundle" / "weights" / f"{name}-fold1.safetensors").competition == CASSAVA.slug
        assert re.search(rf"{name} .*\d\.\d{{4}} ± \d\.\d{{4}}", first.stderr)
    assert "majority class" in first.stderr and "Seconds by stage" in first.stderr
    verdicts = [line for line in first.stderr.splitlines() if line.startswith("rehearsal passed")]
    assert ["1 images, every" in verdicts[0], f"{len(test)} images" in verdicts[1], "30 images" in verdicts[2]] == [
        True
    ] * 3
    assert "old layout" in verdicts[0] and all("limits 1 CPU, 8 GiB, 10 min" in verdict for verdict in verdicts)
    packed = submit("package", "--from", out, "--out", tmp_path / "again")
    assert packed.returncode == 0, packed.stderr
    for path in (path for path in (out / "bundle").rglob("*") if path.is_file()):
        assert (tmp_path / "again" / path.relative_to(out / "bundle")).read_bytes() == path.read_bytes()
    hint = first.stderr[first.stderr.index("Next:") :].splitlines()[1::2]
    assert len(hint) == 3 and "report" in hint[0] and all(f"--bundle {out}/bundle" in line for line in hint[1:])
    assert (
        "This run, and how long each stage takes here:" in first.stderr and "by a few steps timed now" in first.stderr
    )
    assert "the ensemble: " in first.stderr
    with Image.open(out / "submission.jpg") as picture:
        assert picture.width > 8 * 100 and str(out / "submission.jpg") in first.stderr
    proposed = submit(
        "finals", "--folds", out / "folds.csv", "--candidate", f"all={out}/ensemble-oof.csv",
        "--candidate", f"resnet={out}/runs/small_resnet/oof.csv",
    )  # fmt: skip
    assert proposed.returncode == (0 if "final 1" in proposed.stdout else 2), proposed.stderr
    assert "final 2" in proposed.stdout or "two different submissions are needed" in proposed.stderr
    examined = submit("doctor", "--bundle", out / "bundle")
    assert examined.returncode == 0 and "offline pip" in examined.stdout, examined.stdout + examined.stderr
    planned = submit("submit", "--dry-run", "--bundle", out / "bundle")
    assert planned.returncode == 0 and "CreateCodeSubmission" in planned.stdout, planned.stdout + planned.stderr
    before = (out / "submission.csv").read_bytes()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/fold*/best.safetensors")}
    second = submit(*arguments)
    assert second.returncode == 0 and (out / "submission.csv").read_bytes() == before
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps} and "(reused)" in second.stderr
    assert "nothing is to be trained, the rest as in the last run here" in second.stderr


@pytest.mark.slow
def test_a_changed_label_is_trained_again(tiny_dir, tmp_path):
    data = tmp_path / "competition"
    shutil.copytree(tiny_dir, data)
    arguments = ["ensemble", "--data", data, "--out", tmp_path / "out", "--n-splits", 2, "--recipe", "small_resnet"]
    assert submit(*arguments).returncode == 0
    table = pd.read_csv(data / "train.csv")
    table.loc[0, "label"] = (table.loc[0, "label"] + 1) % 5
    table.to_csv(data / "train.csv", index=False)
    refused = submit(*arguments)
    assert refused.returncode == 2 and "--replace" in refused.stderr
    again = submit(*arguments, "--replace")
    assert again.returncode == 0 and "(reused)" not in again.stderr
