"""Training a fold: what it writes, that it learns, that it resumes, and what it refuses."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import SILENT, TINY

from cassava_kit.data.folds import Folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import check_oof
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.models.checkpoint import read_info
from cassava_kit.models.weights import load_tensors
from cassava_kit.settings import replace
from cassava_kit.training import pretrained_recipes
from cassava_kit.training.callbacks import Resume
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.module import Classifier
from cassava_kit.training.recipe_run import train_recipe
from cassava_kit.training.recipes import recipe, recipe_names
from cassava_kit.training.rows import TrainData, TrainOptions, usable_rows
from cassava_kit.training.run_dir import run_fingerprint


def test_fold_writes_its_contract(data, tmp_path):
    result = fit_fold(TINY, data, 1, tmp_path, options=SILENT)
    assert result.run_dir == tmp_path / "tiny" / "fold1" and not result.reused
    info = read_info(result.checkpoint)
    assert (info.recipe, info.fold, info.fold_hash) == ("tiny", 1, data.folds.hash)
    assert info.oof_accuracy == result.score.accuracy and info.oof_rows == len(data.folds.validation(1))
    oof = read_predictions(result.oof_file)
    assert set(oof.ids) == set(data.folds.validation(1)["image_id"]) and set(oof.frame["fold"]) == {1}
    assert oof.header.fold_hash == data.folds.hash and oof.header.sources[0].fold == 1
    assert json.loads((result.run_dir / "config.json").read_text())["epochs"] == 3
    metrics = pd.read_csv(result.run_dir / "metrics.csv")
    assert metrics["epoch"].tolist() == [0, 1, 2] and {"train_loss", "val_loss", "val_accuracy"} <= set(metrics)
    assert not (result.run_dir / "last.ckpt").exists()


def test_all_folds_join_to_one_oof_file_and_are_reused(tiny_table, tiny_folds, tmp_path):
    first = train_recipe(TINY, tiny_table, tiny_folds, tmp_path)
    whole = check_oof(read_predictions(first.oof_file), tiny_folds, "tiny")
    assert len(whole.ids) == len(tiny_table.frame) and not first.reused
    again = train_recipe(TINY, tiny_table, tiny_folds, tmp_path)
    assert again.reused and again.score == first.score
    changed, anew = replace(TINY, lr=1e-3), TrainOptions(existing="replace")
    assert not train_recipe(changed, tiny_table, tiny_folds, tmp_path, folds=[0], options=anew).reused
    joined = tmp_path / "tiny" / "oof.csv"
    assert not joined.exists() and not joined.with_suffix(".json").exists(), "joined from a fold that is no longer"
    assert not train_recipe(changed, tiny_table, tiny_folds, tmp_path, options=anew).reused and joined.is_file()


def test_a_run_of_other_classes_is_another(data):
    six = dataclasses.replace(data.competition, classes=tuple("abcdef"), class_shares=())
    other = dataclasses.replace(data, competition=six)
    assert run_fingerprint(TINY, data, 0, SILENT) != run_fingerprint(TINY, other, 0, SILENT)


def test_a_picture_changed_under_the_same_name_is_trained_again(tiny_table, tiny_folds, tmp_path):
    images = tmp_path / "train_images"
    shutil.copytree(tiny_table.image_dir, images)
    config = replace(TINY, epochs=1)

    def run(options=SILENT):
        data = TrainData(TrainTable(tiny_table.frame, images, ()), tiny_folds)
        return fit_fold(config, data, 0, tmp_path / "runs", options=options)

    assert not run().reused and run().reused
    one, two = (images / name for name in tiny_folds.training(0)["image_id"][:2])
    content = one.read_bytes()
    one.write_bytes(content[:200] + bytes(255 - b for b in content[200:210]) + content[210:])
    assert one.stat().st_size == len(content) and two.is_file()
    with pytest.raises(UserError, match="holds a finished run with other images; train beside it with --name NAME"):
        run()
    assert not run(dataclasses.replace(SILENT, existing="replace")).reused


def test_same_seed_same_weights_and_other_seed_others(data, tmp_path):
    runs = [replace(TINY, epochs=1), replace(TINY, epochs=1), replace(TINY, epochs=1, seed=7)]
    weights = [
        load_tensors(fit_fold(config, data, 0, tmp_path / str(k), options=SILENT).checkpoint)
        for k, config in enumerate(runs)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["fc.weight"], weights[2]["fc.weight"])


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ema": 0.9, "mixup": 0.2, "cutmix": 0.5, "plain_epochs": 1, "select": "best"},
        # At this rate the loss rises a little each epoch: the rate falls after the third, the fourth is the last.
        {"schedule": "plateau", "early_stopping": 3, "lr": 1e-6, "epochs": 6},
        {"schedule": "plateau", "early_stopping": 1, "lr": 1e-6},
        {"swa_epochs": 2, "augment_on": "device", "train_pixels": (40, 48)},
        {"swa_epochs": 1, "epochs": 2, "unfreeze_every": 1, "augment_on": "device", "train_pixels": (40, 48)},
    ],
)
def test_interrupted_run_ends_as_an_unbroken_one(data, tmp_path, monkeypatch, changes):
    config = replace(TINY, **changes)
    unbroken = fit_fold(config, data, 0, tmp_path / "unbroken", options=SILENT)
    save = Resume.on_train_epoch_end

    def save_then_die(self, trainer, module):
        save(self, trainer, module)
        if trainer.current_epoch == 1:
            raise PowerCutError

    monkeypatch.setattr(Resume, "on_train_epoch_end", save_then_die)
    with pytest.raises(PowerCutError):
        fit_fold(config, data, 0, tmp_path / "broken", options=SILENT)
    assert not (tmp_path / "broken" / "tiny" / "fold0" / "run.json").exists()
    monkeypatch.setattr(Resume, "on_train_epoch_end", save)
    starts = []
    start = Classifier.on_train_epoch_start
    monkeypatch.setattr(
        Classifier, "on_train_epoch_start", lambda self: (starts.append(self.current_epoch), start(self))[1]
    )
    resumed = fit_fold(config, data, 0, tmp_path / "broken", options=SILENT)
    figures = [pd.read_csv(r.run_dir / "metrics.csv").drop(columns=["seconds", "note"]) for r in (unbroken, resumed)]
    assert starts == list(range(2, len(figures[0])))
    one, two = load_tensors(unbroken.checkpoint), load_tensors(resumed.checkpoint)
    assert all(torch.allclose(one[name].double(), two[name].double(), atol=1e-6) for name in one)
    pd.testing.assert_frame_equal(*figures, rtol=1e-4)


def test_weights_file_starts_the_run(data, tmp_path):
    first = fit_fold(TINY, data, 0, tmp_path / "a", options=SILENT)
    told = []
    frozen = replace(TINY, recipe="probe", epochs=1, freeze_backbone=True)
    second = fit_fold(frozen, data, 0, tmp_path / "b", options=TrainOptions(weights=first.checkpoint, tell=told.append))
    one, two = load_tensors(first.checkpoint), load_tensors(second.checkpoint)
    assert torch.equal(one["layer4.0.conv1.weight"], two["layer4.0.conv1.weight"])
    assert torch.equal(one["bn1.running_mean"], two["bn1.running_mean"])
    assert not torch.equal(one["fc.weight"], two["fc.weight"])
    assert any("tensors loaded" in line for line in told)


def test_broken_training_images_are_left_out_and_get_the_prior_out_of_fold(tiny_table, tmp_path):
    images = tmp_path / "train_images"
    shutil.copytree(tiny_table.image_dir, images)
    folds = split_folds(tiny_table.frame, n_splits=2, seed=0)
    seen, held_out = folds.training(0)["image_id"].iloc[0], folds.validation(0)["image_id"].iloc[0]
    (images / seen).write_bytes(b"")
    (images / held_out).write_bytes(b"<html>not found</html>")
    told = []
    data = TrainData(TrainTable(tiny_table.frame, images, ()), folds)
    result = fit_fold(replace(TINY, epochs=1), data, 0, tmp_path / "runs", options=TrainOptions(tell=told.append))
    assert f"unreadable images, which take no part in training: 1 (first: {seen})" in told
    oof = read_predictions(result.oof_file)
    assert len(oof.ids) == len(folds.validation(0))
    row = oof.frame.set_index("image_id").loc[held_out, ["p0", "p1", "p2", "p3", "p4"]].to_numpy(float)
    assert np.allclose(row, read_info(result.checkpoint).prior, atol=1e-6)


def test_fold_file_of_another_table_is_refused(tiny_table, tiny_folds, tmp_path):
    fewer = Folds(tiny_folds.frame.iloc[1:].reset_index(drop=True))
    with pytest.raises(ValueError, match="1 images of the table are not in it"):
        fit_fold(TINY, TrainData(tiny_table, fewer), 0, tmp_path, options=SILENT)
    other = tiny_folds.frame.copy()
    other.loc[0, "label"] = (other.loc[0, "label"] + 1) % 5
    with pytest.raises(ValueError, match=r"the fold file says (.*) for .*, the table says (?!\1;)[A-Z].*; make"):
        fit_fold(TINY, TrainData(tiny_table, Folds(other)), 0, tmp_path, options=SILENT)
    assert not (tmp_path / "tiny").exists()


def test_a_run_learns(data, tmp_path):
    result = fit_fold(
        replace(TINY, epochs=30, lr=1e-2, augmentation="none", label_smoothing=0), data, 0, tmp_path, options=SILENT
    )
    losses = pd.read_csv(result.run_dir / "metrics.csv")["train_loss"]
    assert losses.iloc[-1] < 0.6 * losses.iloc[0]


def test_limit_is_a_limit_on_training_rows_alone(data, tmp_path):
    result = fit_fold(replace(TINY, epochs=1), data, 0, tmp_path, options=TrainOptions(limit=20, tell=lambda _: None))
    assert result.score.n == len(data.folds.validation(0))
    assert len(usable_rows(data, 0, 20)[0]) == 20
    rows = np.array(read_info(result.checkpoint).prior) * 20
    assert rows.sum() == pytest.approx(20) and rows == pytest.approx(rows.round()), "shares of twenty rows"


# The same architectures with fewer blocks and, where those have most weights, narrower; the others at full size.
SHALLOW = {
    "vit_base": {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "deit_base": {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "vgg": {"mlp_ratio": 1 / 64},
    "resnet": {"layers": [1, 1, 1, 1]},
    "densenet": {"block_config": [2, 2, 2, 2]},
    "resnext50": {"layers": [1, 1, 1, 1]},
}


@pytest.mark.slow
# Those of pretrained_recipes.py take theirs in test_pretrained_recipes.py, made small.
@pytest.mark.parametrize("name", [name for name in recipe_names() if not hasattr(pretrained_recipes, name)])
def test_every_recipe_takes_a_real_step_and_comes_back(name, tiny_table, tmp_path):
    few = tiny_table.frame.groupby("label").head(4).reset_index(drop=True)
    table = TrainTable(few, tiny_table.image_dir, ())
    data, config = TrainData(table, split_folds(few, n_splits=2, seed=0)), recipe(name)
    small = next((args for model, args in SHALLOW.items() if config.model.startswith(model)), {})
    size = config.image_size if name == "small_vit" else 32
    config = replace(
        config,
        model_args={**config.model_args, **small},
        image_size=size,
        epochs=max(config.plain_epochs, config.unfreeze_every) + 1,
        batch_size=4,
        warmup_epochs=0,
        precision="32-true",
    )
    result = fit_fold(config, data, 0, tmp_path, options=TrainOptions(limit=8, tell=lambda _: None))
    assert read_info(result.checkpoint).config["recipe"] == name
