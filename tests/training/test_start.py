"""What a run must not start from: labels that it is scored on, weights of another model, a loss that cannot be."""

import pytest
import torch
from safetensors.torch import save_file
from tiny import SILENT, TINY

from cassava_kit.competition import CASSAVA
from cassava_kit.data.stratify import split_folds
from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
from cassava_kit.models.network import create_model
from cassava_kit.settings import replace
from cassava_kit.training import recipe_run
from cassava_kit.training.checks import check_run, check_weights
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.recipe_run import train_recipe
from cassava_kit.training.rows import TrainData, TrainOptions


@pytest.fixture
def weights(data, tmp_path):
    """Writes weights of the tiny recipe with a header, by default of its fold 0 of this split."""

    def write(**said):
        header = {"n_classes": 5, "fold": 0, "fold_hash": data.folds.hash, **said}
        model = create_model(TINY.model, header["n_classes"], model_args=TINY.model_args)
        info = CheckpointInfo(
            model=TINY.model,
            model_args=TINY.model_args,
            input_size=(32, 32),
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            recipe="tiny",
            **header,
        )
        save_checkpoint(tmp_path / "w.safetensors", model.state_dict(), info)
        return tmp_path / "w.safetensors"

    return write


def test_weights_that_learnt_the_labels_of_a_fold_are_refused_before_any_fold_is_trained(data, weights, tmp_path):
    file, row = weights(), data.folds.validation(1)["image_id"].iloc[0]
    check_weights(TINY, data, [0], file)
    with pytest.raises(ValueError, match=rf"must not have seen the labels of fold 1 \(first row: {row}\)"):
        train_recipe(TINY, data.table, data.folds, tmp_path / "runs", options=TrainOptions(weights=file))
    with pytest.raises(ValueError, match=r"all folds but 0; give .*, --fold 0 alone"):
        fit_fold(TINY, data, 1, tmp_path / "runs", options=TrainOptions(weights=file, tell=lambda _: None))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"fold": None}, "trained on the labels of all rows"),
        ({"fold": None, "fold_hash": None}, "trained on the labels of all rows"),
        ({"fold_hash": "0" * 64}, "labels of another split, this one perhaps among them"),
        ({"competition": "cassava-leaf-disease-classification", "fold": 1}, "all folds but 1"),
        ({"n_classes": 0, "fold": 1, "config": {"init": "tiny-fold1"}}, "all folds but 1"),
        ({"classes": ("a", "b", "c", "d", "e"), "fold": 1}, "all folds but 1"),
        ({"classes": CASSAVA.classes[::-1], "fold_hash": "0" * 64}, "labels of another split"),
    ],
)
def test_weights_that_may_know_the_labels_are_refused(data, weights, said, reason):
    with pytest.raises(ValueError, match=reason):
        check_weights(TINY, data, [0], weights(**said))


@pytest.mark.parametrize(
    "said",
    [
        {"n_classes": 0, "fold": None, "fold_hash": None},
        {"competition": "plant-pathology-2020", "fold": None, "fold_hash": "0" * 64},
        {"classes": ("a", "b", "c", "d", "e"), "fold_hash": "0" * 64},
    ],
)
def test_weights_that_cannot_know_the_labels_are_taken(data, weights, said):
    check_weights(TINY, data, [0, 1], weights(**said))


def test_weights_of_this_table_under_other_folds_are_refused(data, weights, tiny_table):
    other = TrainData(tiny_table, split_folds(tiny_table.frame, n_splits=2, seed=9))
    with pytest.raises(ValueError, match="another split"):
        check_weights(TINY, other, [0], weights())


def test_weights_without_a_header_are_taken_and_those_of_another_model_refused(data, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file(create_model(TINY.model, 5, model_args=TINY.model_args).state_dict(), file)
    check_weights(TINY, data, [0, 1], file)
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="matches nothing of the model"):
        check_weights(TINY, data, [0], tmp_path / "w.pth")


def test_a_loss_that_cannot_be_is_refused_before_images_are_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr("cassava_kit.training.loaders.fill_cache", lambda *_: pytest.fail("too late"))
    config = replace(TINY, loss="bitempered", loss_args={"t1": 1.2}, train_pixels=(32, 32))
    with pytest.raises(ValueError, match="needs t1 <= 1 <= t2"):
        train_recipe(config, data.table, data.folds, tmp_path, options=TrainOptions(cache=tmp_path / "pixels"))


def test_the_pixel_cache_is_filled_before_the_first_fold(data, tmp_path, monkeypatch):
    """With `--workers` or folds side by side, each process would decode all images."""

    def first_job(jobs, *_, **__):
        assert len(list((tmp_path / "pixels").glob("*.npy"))) == 2, "the training's size and the evaluation's"
        raise KeyError("no job is run")

    monkeypatch.setattr(recipe_run, "run_jobs", first_job)
    config = replace(TINY, train_pixels=(40, 40))
    with pytest.raises(KeyError):
        train_recipe(config, data.table, data.folds, tmp_path, options=TrainOptions(cache=tmp_path / "pixels"))


def test_random_weights_are_told_where_others_are_meant(data, tmp_path, capsys):
    config = replace(TINY, epochs=1)
    train_recipe(config, data.table, data.folds, tmp_path, folds=[0], options=SILENT)
    assert "tiny starts from random weights, not from ImageNet's (python -m" in capsys.readouterr().err
    small = replace(config, recipe="small_tiny")
    train_recipe(small, data.table, data.folds, tmp_path, folds=[0], options=SILENT)
    assert "random weights" not in capsys.readouterr().err


def test_loader_processes_need_a_short_temporary_folder(data, monkeypatch):
    check_run(TINY, data, [0], TrainOptions(workers=1))
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 80)
    check_run(TINY, data, [0], TrainOptions())
    with pytest.raises(ValueError, match="--workers needs a temporary folder of at most 70 characters"):
        check_run(TINY, data, [0], TrainOptions(workers=1))
