"""A folder of images as a table: the plain loop's probabilities, and refusals before any image is read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_members import PRIOR, write_checkpoint

from cassava_kit.competition import CASSAVA, Task
from cassava_kit.data.folds import write_folds
from cassava_kit.data.images import load_image
from cassava_kit.data.stratify import split_folds, split_holdout
from cassava_kit.data.transforms import normalize
from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference.folder import find_checkpoints, predict_folder, write_folder_predictions
from cassava_kit.models.checkpoint import load_model


@torch.no_grad()
def by_hand(checkpoint: Path, paths: list[Path]) -> np.ndarray:
    model, info = load_model(checkpoint)
    x = torch.stack([torch.from_numpy(load_image(path, info.input_size)).permute(2, 0, 1) for path in paths])
    return model(normalize(x, info.mean, info.std)).softmax(1).numpy()


def test_the_table_is_the_mean_of_the_loops_by_hand(images: Path, weights: Path) -> None:
    checkpoints = [weights / "res-fold0.safetensors", weights / "eff-fold0.safetensors"]
    paths = sorted(images.iterdir())
    table = predict_folder(checkpoints, images, device="cpu")
    assert list(table.columns) == ["image_id", "p0", "p1", "p2", "p3", "p4"]
    assert table["image_id"].tolist() == [path.name for path in paths] and table.attrs["unreadable"] == []
    expected = (by_hand(checkpoints[0], paths) + by_hand(checkpoints[1], paths)) / 2
    assert np.abs(table.drop(columns="image_id").to_numpy() - expected).max() < 5e-5


def test_the_order_asked_for_and_the_shares_of_what_cannot_be_read(images: Path, weights: Path) -> None:
    (images / "004.jpg").write_bytes(b"<html>")
    wanted = ["007.jpg", "004.jpg", "001.jpg"]
    table = predict_folder(str(weights / "res-fold0.safetensors"), str(images), image_ids=wanted, device="cpu")
    assert table["image_id"].tolist() == wanted and table.attrs["unreadable"] == ["004.jpg"]
    p = table.drop(columns="image_id").to_numpy()
    assert p[1] == pytest.approx(PRIOR) and p.sum(axis=1) == pytest.approx(1)
    alone = predict_folder(weights / "res-fold0.safetensors", images, image_ids=["001.jpg"], device="cpu")
    assert p[2] == pytest.approx(alone.drop(columns="image_id").to_numpy()[0], abs=1e-6)


def test_checkpoints_are_files_folders_of_files_or_of_runs(weights: Path, tmp_path: Path) -> None:
    assert [path.name for path in find_checkpoints(weights)] == sorted(p.name for p in weights.glob("*.safetensors"))
    for fold in (1, 0):
        (tmp_path / "runs" / "res" / f"fold{fold}").mkdir(parents=True)
        write_checkpoint(tmp_path / "runs" / "res" / f"fold{fold}" / "best.safetensors", fold=fold)
    runs = [tmp_path / "runs" / "res" / f"fold{fold}" / "best.safetensors" for fold in (0, 1)]
    one = weights / "vit-fold0.safetensors"
    assert find_checkpoints([str(tmp_path / "runs" / "res"), one]) == [*runs, one]
    with pytest.raises(FileNotFoundError, match="holds no fold"):
        find_checkpoints(tmp_path / "runs")


def test_refusals_come_before_any_image_is_read(images: Path, weights: Path, tmp_path: Path) -> None:
    one = weights / "res-fold0.safetensors"
    other = write_checkpoint(tmp_path / "seven-fold0.safetensors", n_classes=7)
    with pytest.raises(UserError, match=r"the same classes, got \[5, 7\]"):
        predict_folder([one, other], images)
    with pytest.raises(UserError, match=r"lacks 1 of the images \(first: ghost.jpg\)"):
        predict_folder(one, images, image_ids=["000.jpg", "ghost.jpg"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        predict_folder(one, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in"):
        predict_folder(one, tmp_path / "empty")
    with pytest.raises(UserError, match=r"views must be one of none, hflip, flips, d4, d4\+zoom"):
        predict_folder(one, images, views="all")


def labelled(images: Path) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [path.name for path in sorted(images.iterdir())], "label": [0, 1, 2] * 7})


def test_a_test_part_is_predicted_and_scored_alone(images: Path, tmp_path: Path) -> None:
    split = split_holdout(labelled(images), (0.6, 0.2, 0.2), seed=1)
    write_folds(tmp_path / "folds.csv", split)
    checkpoint = write_checkpoint(tmp_path / "res-fold0.safetensors", fold_hash=split.hash, fold=0)
    out = tmp_path / "test.csv"
    told = write_folder_predictions([checkpoint], images, out, folds=tmp_path / "folds.csv", test_part=True)
    found = read_predictions(out)
    assert found.ids.tolist() == split.test["image_id"].tolist() and len(found.ids) < 21
    right = float(np.mean(found.probabilities.argmax(1) == split.test["label"].to_numpy()))
    assert f"on {len(found.ids)} given labels" in told and f"{right:.4f}" in told
    with pytest.raises(UserError, match="was trained on"):
        write_folder_predictions([checkpoint], images, tmp_path / "all.csv", folds=tmp_path / "folds.csv")
    assert not (tmp_path / "all.csv").exists()
    with pytest.raises(UserError, match="--test-part needs the fold file"):
        write_folder_predictions([checkpoint], images, out, test_part=True)
    write_folds(tmp_path / "kfold.csv", split_folds(labelled(images), n_splits=3, seed=1))
    with pytest.raises(UserError, match="has no test part"):
        write_folder_predictions([checkpoint], images, out, folds=tmp_path / "kfold.csv", test_part=True)


def test_checkpoints_of_two_competitions_are_refused(images: Path, tmp_path: Path) -> None:
    ours = CASSAVA.task.header()
    one = write_checkpoint(tmp_path / "a-fold0.safetensors", **ours)
    for change, said in (
        ({"competition": "flowers-2027"}, "has competition cassava-leaf.* has flowers-2027"),
        ({"classes": CASSAVA.classes[::-1]}, "has classes Cassava Bacterial.* has Healthy"),
        ({"competition": None, "classes": CASSAVA.classes[::-1]}, "expected Cassava Bacterial.*, got Healthy"),
    ):
        other = write_checkpoint(tmp_path / "b-fold0.safetensors", **(ours | change))
        with pytest.raises(UserError, match=said):
            predict_folder([one, other], images)
        with pytest.raises(UserError, match=said):
            write_folder_predictions([one, other], images, tmp_path / "p.csv")


def test_the_prediction_names_the_task_of_its_checkpoints_and_of_no_other_fold_file(
    images: Path, tmp_path: Path
) -> None:
    flowers = Task("flowers-2027", "macro_f1", ("a", "b", "c", "d", "e"))
    checkpoint = write_checkpoint(tmp_path / "a-fold0.safetensors", **flowers.header())
    write_folder_predictions([checkpoint], images, tmp_path / "p.csv")
    header = read_predictions(tmp_path / "p.csv").header
    assert header is not None and header.task == flowers
    split = split_holdout(labelled(images), (0.6, 0.2, 0.2), seed=1)
    write_folds(tmp_path / "folds.csv", replace(split, task=CASSAVA.task))
    with pytest.raises(UserError, match=r"has competition cassava-leaf.*, the checkpoints has flowers-2027"):
        write_folder_predictions([checkpoint], images, tmp_path / "q.csv", folds=tmp_path / "folds.csv")


def test_no_checkpoint_and_no_such_device_are_said(images: Path, weights: Path) -> None:
    with pytest.raises(UserError, match="expected one checkpoint or more, got none"):
        predict_folder([], images)
    with pytest.raises(UserError, match="device must be auto, cpu, cuda or a GPU such as cuda:0, got 'gpu'"):
        predict_folder(weights / "res-fold0.safetensors", images, device="gpu")
