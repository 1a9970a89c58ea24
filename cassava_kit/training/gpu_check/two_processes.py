"""Part 4 of a GPU check: two processes on one card, or one on each of two, `check_two_processes`.

Each process is a machine of its own to Lightning, with one GPU. On one card they talk by gloo, because NCCL refuses two
processes on a GPU; with two cards each process sees one of them, and they talk by NCCL.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from cassava_kit.competition import CASSAVA
from cassava_kit.data.stratify import split_folds
from cassava_kit.files import CHECKPOINT_FILE, RESUME_FILE, read_json, write_json
from cassava_kit.models.weights import load_tensors
from cassava_kit.settings import replace
from cassava_kit.training.callbacks import Resume
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.gpu_check.findings import Bound
from cassava_kit.training.gpu_check.numbers import single_precision_exact
from cassava_kit.training.gpu_check.setting import Part, Setting
from cassava_kit.training.rows import TrainData, TrainOptions

# Loaded once, by the process from which the others are forked. Lightning comes first: it lets torch count GPUs without
# beginning to use one.
LOADED = ("lightning", "timm", "cassava_kit.training.gpu_check.two_processes", "cassava_kit.training.ssl.simclr")
RANKS = (0, 1)
# Of SGD's weights: what the order of sums changes. Gradients that are not shared move them by more than .001.
SAME_WEIGHTS = Bound(name="largest_difference", at_most=1e-4)
SAME_LOSS = Bound(name="relative_difference", at_most=1e-3)
KILLED = Bound(name="epochs_before", at_least=1.0)
_POLL_SECONDS = 0.02


def check_two_processes(setting: Setting, part: Part) -> None:
    """Compare weights of two processes, unbroken and killed, and SimCLR's loss with those of one on the joint batch."""
    alone = setting.folder / "alone"
    with single_precision_exact():
        train(setting.sizes.joined, setting, alone, Devices(accelerator=accelerator(setting)), factor=2)
    backend = backend_of(setting)
    batchnorm = "not shared on a CPU" if setting.stand_in else "shared"
    expected = load_tensors(checkpoint(alone, setting))

    def unbroken() -> dict[str, float | str]:
        out = setting.folder / "together"
        run_ranks(setting, "train", out, part)
        return {"largest_difference": largest_difference(out, setting, expected)}

    def broken() -> dict[str, float | str]:
        out = setting.folder / "killed"
        run_ranks(setting, "killed", out, part)
        state = torch.load(out / "joined" / "fold0" / RESUME_FILE, weights_only=True, map_location="cpu")
        run_ranks(setting, "train", out, part)
        return {
            "epochs_before": float(state["epoch"] + 1),
            "largest_difference": largest_difference(out, setting, expected),
        }

    def simclr() -> dict[str, float | str]:
        out = setting.folder / "simclr"
        run_ranks(setting, "simclr", out, part)
        losses = [read_json(out / f"{rank}.json")["loss"] for rank in RANKS]
        with single_precision_exact():
            one = simclr_loss(setting, 0, 1)
        return {"loss": one, "relative_difference": abs(sum(losses) / len(losses) - one) / one}

    tried: list[tuple[str, tuple[Callable[[], dict[str, float | str]], tuple[Bound, ...]]]] = [
        (f"DDP by {backend}, BatchNorm {batchnorm}", (unbroken, (SAME_WEIGHTS,))),
        ("resumed after a kill", (broken, (KILLED, SAME_WEIGHTS))),
        ("SimCLR, negatives of both", (simclr, (SAME_LOSS,))),
    ]
    for name, (check, bounds) in part.each(tried):
        part.add(name, check(), bounds)


def accelerator(setting: Setting) -> Any:
    """Return Lightning's name for the kind of device."""
    return "cpu" if setting.stand_in else "gpu"


def backend_of(setting: Setting) -> Literal["gloo", "nccl"]:
    """Return what the processes talk by."""
    return "nccl" if len(setting.devices) > 1 else "gloo"


def checkpoint(out: Path, setting: Setting) -> Path:
    """Return the checkpoint that a run in `out` leaves."""
    return out / "joined" / "fold0" / CHECKPOINT_FILE


def largest_difference(out: Path, setting: Setting, expected: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a weight from those expected."""
    found = load_tensors(checkpoint(out, setting))
    return max((found[name].float() - expected[name].float()).abs().max().item() for name in expected)


def train(config: RunConfig, setting: Setting, out: Path, devices: Devices, *, factor: int = 1) -> None:
    """Train fold 0 of two by the kit's own way, on batches of `factor` times the configuration's size."""
    config = replace(config, name="joined", batch_size=factor * config.batch_size)
    data = TrainData(setting.table, split_folds(setting.table.frame, n_splits=2, seed=0), CASSAVA)
    fit_fold(config, data, 0, out, options=TrainOptions(devices=devices, tell=lambda _: None))


class KeepLoss(L.Callback):
    """Keeps the loss of the last training step."""

    value = float("nan")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """Keep it."""
        self.value = float(rest[0]["loss"])


def simclr_loss(setting: Setting, rank: int, world: int) -> float:
    """Return SimCLR's loss of this process's share of a fixed batch, after one training step in the kit's Trainer."""
    from torch.utils.data import DataLoader

    from cassava_kit.training.ssl.methods import make_ssl_module
    from cassava_kit.training.ssl.recipes import pretrain_recipe
    from cassava_kit.training.trainer import make_trainer, quiet_lightning

    # Without BatchNorm in the head, and on a CPU in the backbone: a process's own statistics are not the joint ones.
    changes = {"epochs": 1, "warmup_epochs": 0.0, "head_norm": "none"}
    config = replace(pretrain_recipe(setting.sizes.simclr), **changes)
    if setting.stand_in:
        joined = setting.sizes.joined
        view = config.views[0].model_copy(update={"size": joined.image_size})
        given = {"backbone": joined.model, "model_args": joined.model_args, "image_size": joined.image_size}
        config = replace(config, **given, views=(view,))
    torch.manual_seed(0)
    module, n = make_ssl_module(config), 16
    size = config.views[0].size
    views = [torch.randn(n, 3, size, size) for _ in range(2)]
    share = [view[rank::world] for view in views]
    devices = rank_devices(setting) if world > 1 else Devices(accelerator=accelerator(setting))
    loss = KeepLoss()
    with quiet_lightning():
        trainer = make_trainer(config, [loss], devices=devices, sync_batchnorm=config.sync_batchnorm)
        trainer.fit(module, train_dataloaders=DataLoader([share], batch_size=None))
    return loss.value


def rank_devices(setting: Setting) -> Devices:
    """Return the devices of one of the processes: a machine with one of them."""
    return Devices(1, "ddp", len(RANKS), accelerator(setting), backend_of(setting))


def rank_main(setting: Setting, what: str, out: Path, rank: int, environment: dict[str, str]) -> None:
    """Be one of the processes: train, be killed after the first epoch, or take SimCLR's step and write its loss."""
    from lightning.pytorch.utilities import rank_zero_only

    os.environ.update(environment)
    rank_zero_only.rank = rank
    torch.set_num_threads(1)
    with single_precision_exact():
        if what == "killed":
            die_after_epoch()
        if what in ("train", "killed"):
            train(setting.sizes.joined, setting, out, rank_devices(setting))
        else:
            write_json(out / f"{rank}.json", {"loss": simclr_loss(setting, rank, len(RANKS))})


def die_after_epoch() -> None:
    """Let this process be killed as soon as its first epoch is saved."""
    save = Resume.on_train_epoch_end

    def save_and_die(self: Resume, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        save(self, trainer, pl_module)
        os.kill(os.getpid(), signal.SIGKILL)

    Resume.on_train_epoch_end = save_and_die  # type: ignore[method-assign]


def run_ranks(setting: Setting, what: str, out: Path, part: Part) -> None:
    """Run both processes to their end.

    Raises:
        RuntimeError: A process failed, was not killed where it should be, or did not end in the part's time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    setting.table  # noqa: B018 - drawn once, before the processes need it
    port = str(free_port())
    processes = []
    for rank in RANKS:
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": "0"}
        environment |= {"NODE_RANK": str(rank), "RANK": str(rank)}
        if len(setting.devices) > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(setting.devices[rank].index)
        process = context.Process(target=rank_main, args=(setting, what, out, rank, environment), daemon=True)
        process.start()
        processes.append(process)
    expected = -signal.SIGKILL if what == "killed" else 0
    try:
        # One that has failed leaves the other waiting for it.
        while any(one.is_alive() for one in processes) and all(one.exitcode in (None, expected) for one in processes):
            if part.left <= 0:
                raise RuntimeError(f"{what} in two processes did not end in its time; give more --minutes")
            time.sleep(_POLL_SECONDS)
    finally:
        codes = [process.exitcode for process in processes]
        for process in processes:
            process.kill()
            process.join()
    if codes != [expected] * len(RANKS):
        raise RuntimeError(f"{what} in two processes: exit codes {codes}, expected {expected}; its error is above")


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
