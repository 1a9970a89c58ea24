"""Lightning's Trainer as the kit uses it, for training and for pretraining: `make_trainer`, `quiet_lightning`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L
import torch

from cassava_kit.training.devices import Devices, make_strategy


class TrainerSettings(Protocol):
    """What a Trainer needs to know of a configuration."""

    @property
    def epochs(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def clip_norm(self) -> float | None: ...
    @property
    def precision(self) -> Any: ...


def make_trainer(
    config: TrainerSettings,
    callbacks: Sequence[L.Callback],
    *,
    devices: Devices,
    sync_batchnorm: bool = True,
    logger: Any = False,
) -> L.Trainer:
    """Return Lightning's Trainer with the kit's callbacks, without Lightning's files, bars and messages.

    A CPU computes 16-mixed in 32-true. BatchNorm statistics are shared between GPUs where `sync_batchnorm` says so; on
    CPUs each process keeps those of its batches.
    """
    on_gpu = devices.accelerator == "gpu" or (devices.accelerator == "auto" and torch.cuda.is_available())
    return L.Trainer(
        max_epochs=config.epochs,
        accelerator="gpu" if on_gpu else "cpu",
        devices=devices.devices,
        num_nodes=devices.num_nodes,
        strategy=make_strategy(devices),
        use_distributed_sampler=False,  # `loaders.EpochSampler` deals the rows out
        sync_batchnorm=sync_batchnorm and on_gpu and devices.processes > 1,
        precision="32-true" if config.precision == "16-mixed" and not on_gpu else config.precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_norm,
        callbacks=list(callbacks),
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's device lines, loader advice and warnings off the terminal; errors still come through."""
    names = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning")
        warnings.filterwarnings("ignore", message=r".*does not have many workers.*|.*LeafSpec.*|.*lr_scheduler.step.*")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
