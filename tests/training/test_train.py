"""`train_fold` of the public API: a DataFrame with folds in, a run out."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed

from cassava_kit.competition import CASSAVA
from cassava_kit.data.stratify import make_folds, split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.models.checkpoint import load_model, read_info, save_checkpoint
from cassava_kit.training.checks import refuse_seen_labels
from cassava_kit.training.rows import TrainData
from cassava_kit.training.train import table_data, train_fold

REAL = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
DINOV2 = REAL / "weights" / "vit_small_patch14_dinov2_lvd142m.safetensors"
QUICK = {"epochs": 1, "image_size": 32, "train_pixels": [32, 32], "name": "quick"}


@pytest.fixture
def table(tiny_table) -> pd.DataFrame:
    return make_folds(tiny_table.frame, n_splits=3, seed=0)


def test_a_fold_is_predicted_by_a_model_of_the_others(table, tiny_table, tmp_path):
    result = train_fold(table, 1, image_dir=tiny_table.image_dir, out=tmp_path, settings=QUICK)
    held_out = table[table["fold"] == 1]
    assert sorted(result.oof["image_id"]) == sorted(held_out["image_id"]) and set(result.oof["fold"]) == {1}
    assert result.checkpoint == tmp_path / "quick" / "fold1" / "best.safetensors" and result.checkpoint.is_file()
    p = result.oof.set_index("image_id").loc[held_out["image_id"], [f"p{k}" for k in range(5)]].to_numpy()
    assert np.allclose(p.sum(axis=1), 1) and result.score.n == len(held_out)
    assert result.score.accuracy == pytest.approx((p.argmax(axis=1) == held_out["label"]).mean())
    seen = np.bincount(table[table["fold"] != 1]["label"], minlength=5)
    assert read_info(result.checkpoint).prior == pytest.approx(seen / seen.sum())


def test_names_without_suffix_text_labels_and_other_columns(table, tiny_table, tmp_path):
    names = np.array(["wilt", "rust", "mosaic", "healthy", "blight"])
    other = pd.DataFrame(
        {
            "file": table["image_id"].str.removesuffix(".jpg"),
            "disease": names[table["label"]],
            "fold": table["fold"],
        }
    ).sample(frac=1, random_state=0)
    columns = {"id_column": "file", "label_column": "disease"}
    result = train_fold(other, 0, image_dir=str(tiny_table.image_dir), out=str(tmp_path), settings=QUICK, **columns)
    info = read_info(result.checkpoint)
    assert info.classes == ("blight", "healthy", "mosaic", "rust", "wilt") and info.id_column == "file"
    again = train_fold(table, 0, image_dir=tiny_table.image_dir, out=tmp_path / "b", settings=QUICK)
    assert set(again.oof["image_id"]) == set(result.oof["image_id"])
    assert (
        not result.reused
        and train_fold(
            other,
            0,
            image_dir=tiny_table.image_dir,
            out=tmp_path,
            settings=[f"{k}={v}" for k, v in QUICK.items()],
            **columns,
        ).reused
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop(columns="fold"),
            "expected the columns image_id, label, fold, got image_id, label; 'fold' is",
        ),
        (lambda t: t.assign(label=3), "expected two or more classes in label, got 3"),
        (lambda t: t.assign(label=t["label"].where(t.index != 4)), "label has no value in row 4"),
        (lambda t: t.assign(image_id="x" + t["image_id"]), r"120 images of the table are not in .* \(first: x"),
        (lambda t: pd.concat([t, t]), "names .* more than once"),
    ],
)
def test_a_table_that_cannot_be_trained_on_is_refused(table, tiny_table, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train_fold(change(table), 0, image_dir=tiny_table.image_dir, out=tmp_path, settings=QUICK)
    assert not list(tmp_path.iterdir())


def test_slips_are_refused(table, tiny_table, tmp_path):
    given = {"image_dir": tiny_table.image_dir, "out": tmp_path}
    with pytest.raises(UserError, match=r"fold must be in 0\.\.2, got 7"):
        train_fold(table, 7, **given)
    with pytest.raises(UserError, match=r"no recipe 'small_resnt' .*did you mean small_resnet"):
        train_fold(table, 0, "small_resnt", **given)
    with pytest.raises(UserError, match="no setting 'epoch'"):
        train_fold(table, 0, settings={"epoch": 3}, **given)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        train_fold(table, 0, weights="nowhere.pth", **given)


def test_weights_of_a_vision_transformer_made_for_another_size(table, tiny_table, tmp_path):
    small = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=48, **small)
    tensors = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"teacher": tensors}, tmp_path / "w.pth")
    settings = {"epochs": 1, "image_size": 32, "model_args": small, "freeze_backbone": True, "name": "quick"}
    given = {"image_dir": tiny_table.image_dir, "out": tmp_path, "settings": settings}
    result = train_fold(table, 0, "timm:vit_tiny_patch16_224", weights=tmp_path / "w.pth", **given)
    network, info = load_model(result.checkpoint)
    assert info.model_args == {**small, "img_size": 32} and info.input_size == (32, 32)
    resized = resample_abs_pos_embed(source.pos_embed, new_size=[4, 4], num_prefix_tokens=1)
    assert torch.allclose(network.pos_embed, resized, atol=1e-6)
    assert torch.equal(network.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


@pytest.mark.skipif(not DINOV2.is_file(), reason=f"no real weights {DINOV2}; set CASSAVA_KIT_REAL_DATA")
def test_published_dinov2_weights_are_trained_on(table, tiny_table, tmp_path):
    settings = {"epochs": 1, "image_size": 56, "freeze_backbone": True, "name": "quick"}
    given = {"image_dir": tiny_table.image_dir, "out": tmp_path, "settings": settings}
    result = train_fold(table, 0, "timm:vit_small_patch14_dinov2.lvd142m", weights=DINOV2, **given)
    kept = load_file(result.checkpoint)
    assert torch.equal(kept["blocks.11.mlp.fc2.weight"], load_file(DINOV2)["blocks.11.mlp.fc2.weight"].float())
    assert kept["pos_embed"].shape == (1, 17, 384)


def test_the_checkpoint_of_a_table_names_its_classes_and_no_competition(table, tiny_table, tmp_path):
    """Labels of the same split, or of the same classes, are not learnt a second time as if they were another's."""
    files = {"image_dir": tiny_table.image_dir, "settings": QUICK}
    first = train_fold(table, 0, out=tmp_path / "a", **files)
    info = read_info(first.checkpoint)
    assert info.competition is None and info.classes == ("0", "1", "2", "3", "4")
    assert read_predictions(first.oof_file).header.competition is None
    with pytest.raises(UserError, match="must not have seen the labels of fold 1"):
        train_fold(table, 1, out=tmp_path / "b", weights=first.checkpoint, **files)
    data = TrainData(tiny_table, split_folds(tiny_table.frame, n_splits=2, seed=9))
    with pytest.raises(UserError, match="another split, this one perhaps among them"):
        refuse_seen_labels(first.checkpoint, data, [0])
    named = table.assign(label=np.array(["wilt", "rust", "mosaic", "healthy", "blight"])[table["label"]])
    theirs = table_data(named.iloc[:-1], tiny_table.image_dir, id_column="image_id", label_column="label")
    ours = read_info(first.checkpoint).model_copy(update={"classes": CASSAVA.classes, "competition": CASSAVA.slug})
    save_checkpoint(tmp_path / "ours.safetensors", load_file(first.checkpoint), ours)
    refuse_seen_labels(tmp_path / "ours.safetensors", theirs, [0])
