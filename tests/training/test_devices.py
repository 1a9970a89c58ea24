"""Several processes: the same weights as one process on the joint batch, every row once, state spread."""

from pathlib import Path

import pytest
import torch
from processes import start_python
from programs import command, run
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from cassava_kit.data.folds import read_folds, write_folds
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.models.network import create_model, stage_modules
from cassava_kit.models.weights import load_tensors
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices, check_devices, full_state, make_strategy, shard
from cassava_kit.training.module import unique_rows
from cassava_kit.training.optimizers import make_optimizer, parameter_groups


@pytest.fixture(scope="module")
def folds(tiny_folds, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("folds") / "folds.csv"
    write_folds(path, tiny_folds)
    return path


SGD = ("optimizer=sgd", "lr=0.1")


@pytest.fixture(scope="module")
def alone(tiny_dir, folds, tmp_path_factory) -> dict[tuple[str, ...], dict[str, torch.Tensor]]:
    """The weights that one process learns from batches of 16, by SGD with momentum and by AdamW."""
    learned = {}
    for optimizer in (SGD, ()):
        out = tmp_path_factory.mktemp("alone")
        run(command(tiny_dir, folds, out, settings=(*optimizer, "batch_size=16")))
        learned[optimizer] = load_tensors(out / "small_vit/fold0/best.safetensors")
    return learned


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "optimizer"), [("ddp", SGD), ("ddp_sharded", ()), ("fsdp", SGD)])
def test_two_processes_learn_what_one_learns_from_the_joint_batch(
    strategy, optimizer, alone, tiny_dir, folds, tmp_path
):
    """SGD passes on the rounding of sums as it is; AdamW, whose state is sharded, enlarges it in few weights."""
    more = ("--devices", "2", "--strategy", strategy)
    arguments = command(tiny_dir, folds, tmp_path, *more, settings=(*optimizer, "batch_size=8"))
    run_dir = tmp_path / "small_vit" / "fold0"
    if strategy != "ddp":  # and from a killed run's state as well
        process = start_python(arguments)
        process.wait_until((run_dir / "last.ckpt").is_file)
        process.kill()
        assert not (run_dir / "run.json").exists()
    run(arguments)
    together = load_tensors(run_dir / "best.safetensors")
    expected = alone[optimizer]
    assert together.keys() == expected.keys()
    differences = torch.cat([(together[name] - expected[name]).abs().flatten() for name in expected])
    # Some roundings of the largest weights, which are near one. Where a gradient is near zero, AdamW turns its rounding
    # into part of a whole step (.001): of one weight in two thousand.
    assert (differences.max() if optimizer else differences.quantile(0.999)) < 1e-6
    assert differences.max() < 1e-4
    rows = read_folds(folds).validation(0)["image_id"].tolist()
    assert sorted(read_predictions(run_dir / "oof.csv").ids) == sorted(rows)


@pytest.fixture
def process_group():
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ddp_sharded_spreads_the_optimisers_state_and_fsdp_the_weights(process_group):
    config = RunConfig(recipe="r", model="resnet10t")
    model = create_model("resnet10t", 5)
    groups = parameter_groups(model, lr=config.lr, weight_decay=config.weight_decay)
    optimizer = make_optimizer(groups, config.optimizer, lr=config.lr, sharded=True)
    assert isinstance(optimizer, ZeroRedundancyOptimizer) and isinstance(optimizer.optim, torch.optim.AdamW)
    shard(model, torch.distributed.init_device_mesh("cpu", (1,)), stage_modules(model))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    assert not any(isinstance(value, DTensor) for value in full_state(model).values())


@pytest.mark.parametrize(
    ("devices", "strategy", "changes", "message"),
    [
        (1, "fsdp", {}, "strategy fsdp shards over processes: give --devices 2 or more"),
        (2, "horovod", {}, "strategy must be one of auto, ddp, ddp_sharded, fsdp, got 'horovod'"),
        (2, "fsdp", {"ema": 0.99}, "ema does not go with strategy fsdp"),
        (2, "fsdp", {"epochs": 9, "swa_epochs": 2}, "swa_epochs does not go with strategy fsdp"),
        (2, "ddp_sharded", {"unfreeze_every": 1}, "unfreeze_every does not go with strategy ddp_sharded"),
        (2, "ddp", {"unfreeze_every": 1}, "unfreeze_every does not go with strategy ddp"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_before_work(devices, strategy, changes, message):
    config = RunConfig.from_values({"recipe": "r", "model": "resnet18", **changes})
    with pytest.raises(ValueError, match=message):
        check_devices(Devices(devices, strategy), config)


def test_more_gpus_than_there_are_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = RunConfig(recipe="r", model="resnet18")
    check_devices(Devices(2), config)
    with pytest.raises(ValueError, match="--devices 4: this machine has 2 GPUs"):
        check_devices(Devices(4), config)


def test_two_processes_on_one_gpu_talk_by_what_they_are_told():
    """NCCL refuses two processes on a GPU; without a word Lightning chooses by the device."""
    assert make_strategy(Devices(1, "ddp", 2, backend="gloo"))._process_group_backend == "gloo"
    assert make_strategy(Devices(1, "ddp", 2))._process_group_backend is None


def test_a_row_that_two_processes_saw_counts_once():
    rows = torch.tensor([[2.0, 20], [0, 0], [1, 10], [0, 0]])
    assert unique_rows(rows).tolist() == [[0, 0], [1, 10], [2, 20]]
