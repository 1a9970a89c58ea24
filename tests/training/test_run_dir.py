"""Names of runs, finished runs that are kept, runs that fail, and the code that a run was trained by."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SILENT, TINY

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import CASSAVA
from cassava_kit.data.folds import write_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import accuracy
from cassava_kit.evidence.oof import fold_predictions
from cassava_kit.evidence.predictions import read_predictions, write_predictions
from cassava_kit.models.checkpoint import read_info
from cassava_kit.models.weights import load_tensors
from cassava_kit.settings import replace
from cassava_kit.training import recipe_run, run_dir
from cassava_kit.training.diverged import DivergedError
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.module import Classifier
from cassava_kit.training.recipe_run import train_recipe
from cassava_kit.training.recipes import recipe, recipe_names, run_name
from cassava_kit.training.rows import TrainData, TrainOptions

ONE = replace(TINY, epochs=1)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("small_resnet", [], "small_resnet"),
        ("small_resnet", ["epochs=10"], "small_resnet"),
        ("small_resnet", ["epochs=2", "lr=0.01"], "small_resnet--epochs-2--lr-0.01"),
        ("small_resnet", ["train_pixels=[48,64]", "ema=0.9"], "small_resnet--ema-0.9--train_pixels-48-64"),
        ("small_resnet", ["name=mine", "epochs=2"], "mine"),
        ("timm:convnext_tiny", ["epochs=2"], "convnext_tiny--epochs-2"),
        ("timm:resnet18", ["epochs=2"], "timm-resnet18--epochs-2"),
    ],
)
def test_a_run_is_named_by_its_recipe_and_what_was_changed_in_it(name, settings, expected):
    assert run_name(recipe(name).with_settings(settings)) == expected


def test_long_names_are_cut_and_differ():
    configs = [replace(recipe("small_resnet"), model_args={"x" * 90: k}) for k in range(2)]
    names = [run_name(config) for config in configs]
    assert len(set(names)) == 2 and all(len(name) == 72 for name in names)
    assert [run_name(recipe(name)) for name in recipe_names()] == recipe_names()


@pytest.mark.parametrize(
    "values",
    [
        [{"lr": 1e30}, {"lr": 1e-30}],
        [{"model_args": {"a": 1, "b": 2}}, {"model_args": {"a": (1,), "b": 2}}, {"model_args": {"a": "1", "b": 2}}],
    ],
)
def test_settings_that_differ_give_names_that_differ(values):
    names = [run_name(replace(recipe("small_resnet"), **value)) for value in values]
    assert len(set(names)) == len(values), names
    assert all(re.fullmatch(r"[A-Za-z0-9_.+-]+", name) for name in names)


@pytest.fixture
def train(tiny_dir, tiny_folds, tmp_path, capsys):
    """Runs the verb `train` on fold 0; returns exit code and what was printed."""
    write_folds(tmp_path / "folds.csv", tiny_folds)
    given = ["--data", str(tiny_dir), "--folds", str(tmp_path / "folds.csv"), "--fold", "0", "--out", str(tmp_path)]

    def run(*more: str) -> tuple[int, str]:
        small = ["image_size=32", "train_pixels=[32,32]", "epochs=1"]
        settings = [part for setting in small for part in ("--set", setting)]
        code = run_app(app, ["train", "small_resnet", *given, *settings, *more])
        return code, capsys.readouterr().err

    return run


def test_another_setting_leaves_yesterdays_run_alone(train, tmp_path):
    assert train()[0] == train("--set", "seed=7")[0] == train("--name", "mine", "--limit", "40")[0] == 0
    plain = "small_resnet--image_size-32--epochs-1--train_pixels-32-32"
    checkpoints = {path.parent.parent.name: path for path in tmp_path.glob("*/fold0/best.safetensors")}
    assert sorted(checkpoints) == sorted([plain, plain.replace("32-32", "32-32--seed-7"), "mine"])
    assert {read_info(path).name for path in checkpoints.values()} == {f"{name}-fold0" for name in checkpoints}
    sources = {read_predictions(path.with_name("oof.csv")).header.sources[0].name for path in checkpoints.values()}
    assert sources == {f"{name}-fold0" for name in checkpoints}
    before = checkpoints["mine"].read_bytes()
    code, said = train("--name", "mine")
    assert code == 2 and "mine/fold0 holds a finished run with other limit; train beside it with --name" in said
    assert checkpoints["mine"].read_bytes() == before
    assert train("--name", "mine", "--replace")[0] == 0 and checkpoints["mine"].read_bytes() != before
    assert train("--replace", "--keep")[0] == 2


def test_a_later_fold_is_refused_before_the_first_is_trained(tiny_table, tiny_folds, data, tmp_path):
    fit_fold(ONE, data, 1, tmp_path, options=SILENT)
    with pytest.raises(UserError, match="fold1 holds a finished run with other settings"):
        train_recipe(replace(ONE, lr=0.1), tiny_table, tiny_folds, tmp_path)
    assert not (tmp_path / "tiny" / "fold0").exists()


def test_a_run_of_another_version_of_the_code_is_kept_or_trained_again_as_asked(data, tmp_path, monkeypatch):
    first = fit_fold(ONE, data, 0, tmp_path, options=SILENT)
    monkeypatch.setattr(run_dir, "learning_code_hash", lambda **_: "another")
    with pytest.raises(UserError, match="was trained by another version of the code; keep it with --keep, train it"):
        fit_fold(ONE, data, 0, tmp_path, options=SILENT)
    keep, anew = (dataclasses.replace(SILENT, existing=what) for what in ("keep", "replace"))
    assert fit_fold(ONE, data, 0, tmp_path, options=keep).reused
    with pytest.raises(UserError, match="other settings, code"):
        fit_fold(replace(ONE, lr=0.1), data, 0, tmp_path, options=keep)
    again = fit_fold(ONE, data, 0, tmp_path, options=anew)
    assert not again.reused and again.score == first.score
    assert fit_fold(ONE, data, 0, tmp_path, options=SILENT).reused


@pytest.fixture
def unfinished(data, tmp_path, monkeypatch):
    """The folder of a run of three epochs that was killed at its third; from here on no run is killed."""
    step = Classifier.training_step

    def killed(self, batch, n):
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch, n)

    monkeypatch.setattr(Classifier, "training_step", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit_fold(replace(TINY, epochs=3), data, 0, tmp_path, options=SILENT)
    monkeypatch.setattr(Classifier, "training_step", step)
    folder = tmp_path / "tiny" / "fold0"
    assert (folder / "last.ckpt").is_file() and len(pd.read_csv(folder / "metrics.csv")) == 2
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_unfinished_run_of_other_settings_is_not_deleted_without_a_word(data, tmp_path, unfinished):
    before = content(unfinished)
    other = replace(TINY, epochs=3, lr=0.1)
    for existing in ("refuse", "keep"):
        with pytest.raises(UserError, match="fold0 holds an unfinished run with other settings; train beside it with"):
            fit_fold(other, data, 0, tmp_path, options=dataclasses.replace(SILENT, existing=existing))
    assert content(unfinished) == before
    result = fit_fold(other, data, 0, tmp_path, options=dataclasses.replace(SILENT, existing="replace"))
    assert not result.reused and pd.read_csv(unfinished / "metrics.csv")["epoch"].tolist() == [0, 1, 2]


def test_an_unfinished_run_of_other_code_goes_on_with_keep(data, tmp_path, unfinished, monkeypatch):
    config, keep = replace(TINY, epochs=3), dataclasses.replace(SILENT, existing="keep")
    before, code_hash = content(unfinished), run_dir.learning_code_hash
    monkeypatch.setattr(run_dir, "learning_code_hash", lambda **_: "another")
    with pytest.raises(UserError, match="unfinished run of another version of the code; go on with it with --keep"):
        fit_fold(config, data, 0, tmp_path, options=SILENT)
    assert content(unfinished) == before
    step, epochs = Classifier.training_step, set()

    def seen(self, batch, n):
        epochs.add(self.current_epoch)
        return step(self, batch, n)

    monkeypatch.setattr(Classifier, "training_step", seen)
    assert not fit_fold(config, data, 0, tmp_path, options=keep).reused and epochs == {2}
    done = json.loads((unfinished / "run.json").read_text())
    assert done["fingerprint"]["code"] == code_hash(), "two of three epochs are the older code's"


def test_a_failed_run_of_other_settings_is_trained_over(data, tmp_path, unfinished):
    run_dir.mark_failed(unfinished, "the loss is not finite")
    fit_fold(replace(TINY, epochs=1, lr=1e-3), data, 0, tmp_path, options=SILENT)
    assert len(pd.read_csv(unfinished / "metrics.csv")) == 1 and not (unfinished / "failed.json").exists()


def test_a_run_without_a_fingerprint_by_parts_is_not_replaced(data, tmp_path):
    done = fit_fold(ONE, data, 0, tmp_path, options=SILENT).run_dir / "run.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"fingerprint": "0" * 64}))
    with pytest.raises(UserError, match="a finished run of an earlier version of the kit"):
        fit_fold(ONE, data, 0, tmp_path, options=SILENT)


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_diverges_fails_with_the_finding_and_starts_anew(data, tmp_path, monkeypatch, select, epoch):
    config = replace(TINY, epochs=3, select=select)
    step, steps = Classifier.training_step, []

    def broken(self, batch, n):
        steps.append(self.current_epoch)
        return step(self, batch, n) * (np.nan if self.current_epoch == epoch and n == 1 else 1)

    monkeypatch.setattr(Classifier, "training_step", broken)
    for _ in range(2):
        steps.clear()
        with pytest.raises(DivergedError, match=f"epoch {epoch + 1}, step 2: the loss is not finite: lr too high"):
            fit_fold(config, data, 0, tmp_path, options=SILENT)
        assert steps[0] == 0 and steps[-1] == epoch, "each time from the beginning, and no step after the NaN"
        folder = tmp_path / "tiny" / "fold0"
        assert "not finite" in json.loads((folder / "failed.json").read_text())["reason"]
        assert not {"last.ckpt", "best.safetensors", "run.json", "oof.csv"} & {path.name for path in folder.iterdir()}
    monkeypatch.setattr(Classifier, "training_step", step)
    again = replace(config, lr=1e-3) if epoch else config
    result = fit_fold(again, data, 0, tmp_path, options=SILENT)
    assert not (folder / "failed.json").exists() and pd.read_csv(folder / "metrics.csv")["epoch"].tolist() == [0, 1, 2]
    assert all(torch.isfinite(value).all() for value in load_tensors(result.checkpoint).values())


def test_a_rate_that_is_too_high_is_told_as_such(data, tmp_path):
    with pytest.raises(DivergedError, match=r"epoch 1, step \d+: the loss is not finite: lr"):
        fit_fold(replace(TINY, optimizer="sgd", lr=1e30, clip_norm=None), data, 0, tmp_path, options=SILENT)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_fingerprint_names_what_differs(data):
    def differing(**options) -> list[str]:
        one, two = (run_dir.run_fingerprint(ONE, data, 0, each) for each in (SILENT, TrainOptions(**options)))
        return [part for part in one if one[part] != two[part]]

    assert differing(limit=9) == ["limit"] and differing() == []
    named = run_dir.run_fingerprint(replace(ONE, name="x", recipe="y"), data, 0, SILENT)
    assert named == run_dir.run_fingerprint(ONE, data, 0, SILENT) != run_dir.run_fingerprint(ONE, data, 1, SILENT)


def test_a_folds_line_gives_the_competitions_metric(tiny_table, tiny_folds, tmp_path, capsys):
    from sklearn.metrics import f1_score

    facts = dataclasses.replace(CASSAVA, metric="macro_f1")
    data = TrainData(tiny_table, tiny_folds, facts)
    labels = tiny_folds.validation(1)["label"].to_numpy()
    p = np.random.default_rng(0).dirichlet(np.ones(5), len(labels))
    write_predictions(tmp_path / "oof.csv", fold_predictions(tiny_folds, 1, p, "a-fold1"))
    result = run_dir.FoldResult(tmp_path, accuracy(labels, p), 2.0, reused=False)
    recipe_run._tell_fold("a fold1", result, data)
    value = f1_score(labels, p.argmax(axis=1), average="macro")
    said = "".join(capsys.readouterr())
    assert f"a fold1: macro F1 {value:.4f} ± " in said and "out of fold (2 s)" in said
    recipe_run._tell_fold("a fold1", result, dataclasses.replace(data, competition=CASSAVA))
    assert f"a fold1: {result.score} out of fold" in "".join(capsys.readouterr())
