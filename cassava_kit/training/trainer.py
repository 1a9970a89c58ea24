"""Lightning's Trainer as the kit uses it, for training and for pretraining: `make_trainer`, `run_fit`."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning as L

from cassava_kit.errors import Stopped
from cassava_kit.training.devices import Devices, make_strategy, uses_gpu


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
    on_gpu = uses_gpu(devices)
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


def run_fit(trainer: L.Trainer, module: L.LightningModule, **arguments: Any) -> None:
    """Call `trainer.fit`, and say after which epoch the user stopped it.

    Raises:
        Stopped: SIGINT or SIGTERM came, and the command line raises it.
        KeyboardInterrupt: SIGINT came in a program of the user's, where Lightning would leave by SystemExit.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, **arguments)
    except (Stopped, SystemExit) as ended:
        cause = ended if isinstance(ended, Stopped) else ended.__context__
        if not isinstance(cause, Stopped | KeyboardInterrupt):
            raise
        launcher = trainer.strategy.launcher
        if hasattr(launcher, "kill"):  # the other processes of this run
            launcher.kill(signal.SIGTERM)
        text = stop_line(trainer.current_epoch) if trainer.is_global_zero else ""
        if isinstance(cause, Stopped):
            raise Stopped(text, number=cause.number) from None
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it from then on
        raise KeyboardInterrupt(text) from None


def stop_line(epochs: int) -> str:
    """Return what is said of a training that is stopped after this many finished epochs."""
    if not epochs:
        return "stopped before the first epoch ended; the same command begins again"
    return f"stopped after epoch {epochs}; the same command goes on"


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
