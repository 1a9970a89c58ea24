"""Folds at once: how many, by how many threads, and that their number changes no bit of a weight."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tiny import SILENT, TINY
from torch.autograd.graph import saved_tensors_hooks

from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.files import CHECKPOINT_FILE, OOF_FILE
from cassava_kit.settings import replace
from cassava_kit.training import side_by_side
from cassava_kit.training.devices import Devices
from cassava_kit.training.recipe_run import train_recipe
from cassava_kit.training.recipes import recipe
from cassava_kit.training.rows import TrainData
from cassava_kit.training.side_by_side import choose_jobs, choose_threads, fold_bytes, fold_threads

SMALL, LARGE = recipe("small_resnet"), recipe("resnet50")
NEEDS = [fold_bytes(SMALL)]


@pytest.mark.slow  # two more processes import torch
def test_the_weights_do_not_depend_on_how_many_folds_run_at_once(tiny_table, tmp_path, capsys):
    split = split_folds(tiny_table.frame, n_splits=3, seed=0)
    config = replace(TINY, epochs=2)
    together = train_recipe(config, tiny_table, split, tmp_path / "together", options=SILENT, jobs=2)
    said = capsys.readouterr().err
    alone = train_recipe(config, tiny_table, split, tmp_path / "alone", options=SILENT, jobs=1)
    for one, other in zip(together.folds, alone.folds, strict=True):
        for name in (CHECKPOINT_FILE, OOF_FILE):
            assert (one.run_dir / name).read_bytes() == (other.run_dir / name).read_bytes()
        figures = [pd.read_csv(each.run_dir / "metrics.csv").drop(columns="seconds") for each in (one, other)]
        pd.testing.assert_frame_equal(*figures, check_exact=True)
    assert all(f"tiny fold{k}: " in said for k in range(3)) and together.score == alone.score
    again = train_recipe(config, tiny_table, split, tmp_path / "together", options=SILENT, jobs=2)
    assert again.reused and again.seconds == 0


def test_a_fold_a_core_fewer_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(side_by_side, "cpu_count", lambda: 8)
    monkeypatch.setattr(side_by_side, "free_memory", lambda: 100 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_jobs(NEEDS, 5, Devices()) == 5 and choose_jobs(NEEDS, 50, Devices()) == 8
    assert choose_jobs(NEEDS, 5, Devices(), asked=2) == 2 and choose_jobs(NEEDS, 2, Devices(), asked=9) == 2
    monkeypatch.setattr(side_by_side, "free_memory", lambda: 3 * NEEDS[0] + 1)
    assert choose_jobs(NEEDS, 5, Devices()) == 3
    monkeypatch.setattr(side_by_side, "free_memory", lambda: 1)
    assert choose_jobs(NEEDS, 5, Devices()) == 1


def test_gpus_and_runs_of_several_processes_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(side_by_side, "free_memory", lambda: 100 * 2**30)
    for devices in (Devices(accelerator="gpu"), Devices(2, "ddp", accelerator="cpu")):
        assert choose_jobs(NEEDS, 5, devices) == 1 == choose_jobs(NEEDS, 5, devices, asked=1)
        with pytest.raises(UserError, match="--jobs 3 trains folds side by side on a CPU"):
            choose_jobs(NEEDS, 5, devices, asked=3)
        before = torch.get_num_threads()
        with fold_threads(SMALL, replace_devices(devices)):
            assert torch.get_num_threads() == before


def replace_devices(devices: Devices):
    from dataclasses import replace as with_fields

    return with_fields(SILENT, devices=devices)


def test_a_small_network_has_one_thread_a_large_one_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(side_by_side, "cpu_count", lambda: 8)
    assert [choose_threads(SMALL, jobs) for jobs in (1, 5)] == [1, 1]
    assert [choose_threads(LARGE, jobs) for jobs in (1, 3, 5, 20)] == [8, 2, 1, 1]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(KeyError), fold_threads(SMALL, SILENT):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_memory_grows_with_batch_and_copies_as_counted_by_hand():
    """A step keeps what the pass backward needs, and a quarter more; EMA is one more copy of the weights."""
    one, two = (fold_bytes(replace(SMALL, batch_size=n)) for n in (32, 64))
    ema = fold_bytes(replace(SMALL, ema=0.99))
    from cassava_kit.models.network import create_model

    model = create_model(SMALL.model, 2, model_args=SMALL.model_args).train()
    own, kept = {each.data_ptr() for each in (*model.parameters(), *model.buffers())}, {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        model(torch.zeros(2, 3, 64, 64))  # with numbers, not shapes alone
    by_hand = sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in own) // 2
    assert two - one == 1.25 * 32 * by_hand
    assert ema - one == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_fold_that_cannot_begin_is_refused_before_any_other(data: TrainData, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        train_recipe(TINY, data.table, data.folds, tmp_path, options=missing_weights(tmp_path), jobs=2)
    assert not list(tmp_path.iterdir())


def missing_weights(folder: Path):
    from dataclasses import replace as with_fields

    return with_fields(SILENT, weights=folder / "nowhere.pth")
