"""A holdout split through training, evidence and scores: one run, and a test part that nothing learns from."""

import dataclasses

import numpy as np
import pytest
from tiny import SILENT, TINY

from cassava_kit.competition import CASSAVA
from cassava_kit.data.dataset import ImageDataset
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_holdout
from cassava_kit.errors import UserError
from cassava_kit.evidence.oof import read_evidence
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference.folder import write_folder_predictions
from cassava_kit.settings import replace
from cassava_kit.training.baseline import LogReg, predict_fold, read_pixels, train_baseline
from cassava_kit.training.recipe_run import train_recipe
from cassava_kit.training.rows import TrainData


@pytest.fixture
def split(tiny_table):
    return split_holdout(tiny_table.frame, (0.6, 0.2, 0.2), seed=1)


def test_all_folds_are_one_run_that_never_reads_the_test_part(tiny_table, split, tmp_path, monkeypatch):
    read = set()
    original = ImageDataset.__init__
    monkeypatch.setattr(
        ImageDataset,
        "__init__",
        lambda self, paths, *more, **named: (
            read.update(path.name for path in paths),
            original(self, paths, *more, **named),
        )[1],
    )
    result = train_recipe(replace(TINY, epochs=1), tiny_table, split, tmp_path, options=SILENT)
    assert [one.run_dir.name for one in result.folds] == ["fold0"]
    oof = read_predictions(result.oof_file)
    assert set(oof.ids) == set(split.validation(0)["image_id"]) and set(oof.frame["fold"]) == {0}
    assert result.score.n == len(split.validation(0)) == 24
    assert read == set(split.training(0)["image_id"]) | set(oof.ids)
    evidence = read_evidence([result.oof_file], split)
    assert evidence.labels.tolist() == split.validation(0)["label"].tolist()

    folds = tmp_path / "folds.csv"
    write_folds(folds, split)
    images = tmp_path / "images"
    images.mkdir()
    for name in split.test["image_id"]:
        (images / name).symlink_to(tiny_table.image_dir / name)
    said = write_folder_predictions([result.folds[0].checkpoint], images, tmp_path / "test.csv", folds=folds)
    assert f"on {len(split.test)} given labels" in said
    name = split.training(0)["image_id"].iloc[0]
    (images / name).symlink_to(tiny_table.image_dir / name)
    with pytest.raises(ValueError, match=f"was trained on 1 of these rows .first: {name}"):
        write_folder_predictions([result.folds[0].checkpoint], images, tmp_path / "test.csv", folds=folds)


def test_logreg_learns_from_the_training_part_alone(tiny_table, split, tmp_path):
    """The test part's pixels and labels may be anything: the answers stay the same."""
    data = TrainData(tiny_table, split)
    pixels, readable = read_pixels(data.paths(split.frame), 8, progress=False)
    first = predict_fold(pixels, readable, data, 0, settings=LogReg())
    hidden = (split.frame["fold"] == -2).to_numpy()
    pixels[hidden] = 255 - pixels[hidden]
    changed = split.frame.assign(label=np.where(hidden, 4 - split.frame["label"], split.frame["label"]))
    other = TrainData(tiny_table, type(split)(changed))
    assert np.array_equal(predict_fold(pixels, readable, other, 0, settings=LogReg()), first)
    score = train_baseline(data, tmp_path, progress=False)
    assert score.n == 24
    read_evidence([tmp_path / "logreg" / "oof.csv"], split)


def test_folds_of_another_competition_are_refused_before_training(tiny_table, split, tmp_path):
    other = dataclasses.replace(split, task=dataclasses.replace(CASSAVA.task, competition="another-competition"))
    with pytest.raises(UserError, match=r"fold file is of another-competition \(5 classes\), .* cassava-leaf-disease"):
        train_recipe(TINY, tiny_table, other, tmp_path)
    with pytest.raises(UserError, match="fold file is of another-competition"):
        train_baseline(TrainData(tiny_table, other), tmp_path, progress=False)
    assert not list(tmp_path.iterdir())
