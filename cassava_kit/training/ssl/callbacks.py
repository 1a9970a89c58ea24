"""What happens around the steps of a pretraining run: collapse watch, kNN probe, metrics, resume point, progress."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from tqdm import tqdm

from cassava_kit.files import write_text
from cassava_kit.training.ssl.collapse import REMEDIES, CollapseError, Health, complaint, health
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.probe import Probe

NEVER_HEALTHY_FACTOR = 5
COLUMNS = (
    "epoch",
    "step",
    "loss",
    "lr",
    "momentum",
    "std",
    "rank",
    "cosine",
    "usage",
    "uniformity",
    "knn",
    "knn_balanced",
    "seconds",
)


class CollapseWatch(pl.Callback):
    """Looks at the head's output every few steps; several bad looks in a row stop the run, or warn."""

    def __init__(self) -> None:
        self.bad = 0
        self.was_healthy = False
        self.warned = False
        self.looked = -1
        self.latest: Health | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and raise CollapseError where the configuration says stop."""
        assert isinstance(pl_module, SSLModule)
        config, step = pl_module.config, trainer.global_step
        if step % config.watch_every or step == self.looked or pl_module.watched is None:
            return
        self.looked = step  # the batches that are gathered for one step are looked at once
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.latest = health(pl_module.watched, pl_module.watched_scores, loss)
        found = complaint(self.latest, min_std=config.min_std, min_rank=config.min_rank)
        self.was_healthy = self.was_healthy or found is None
        # A fresh head without norm looks collapsed until it has learnt a little; what was spread once has no excuse.
        if step <= config.watch_after * (1 if self.was_healthy else NEVER_HEALTHY_FACTOR):
            return
        self.bad = self.bad + 1 if found else 0
        if found is None or self.bad < config.watch_patience:
            return
        remedy = f"{REMEDIES[config.method]}, or go on with on_collapse=warn"
        message = f"{config.method} has collapsed by step {step}: {found}; {remedy}"
        if config.on_collapse == "stop":
            raise CollapseError(message)
        if not self.warned:
            self.warned = True
            pl.utilities.rank_zero_warn(message)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, for a resumed run."""
        return {name: getattr(self, name) for name in ("bad", "was_healthy", "warned", "looked")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class KnnProbe(pl.Callback):
    """kNN accuracy of the frozen backbone on labelled images, before the first epoch and every few."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.history: list[dict[str, float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The random (or given) backbone's accuracy, against which the run is held."""
        if not self.history:
            self._measure(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Probe after every `knn_every` epochs and after the last."""
        assert isinstance(pl_module, SSLModule)
        epoch = trainer.current_epoch + 1
        if epoch % pl_module.config.knn_every == 0 or epoch == pl_module.config.epochs:
            self._measure(trainer, pl_module, epoch=epoch)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, epoch: int) -> None:
        assert isinstance(pl_module, SSLModule)
        if trainer.is_global_zero:
            plain, balanced = self.probe.knn(pl_module.backbone)
            self.history.append({"epoch": epoch, "knn": plain, "knn_balanced": balanced})
        trainer.strategy.barrier("knn")

    def at(self, epoch: int) -> dict[str, float]:
        """What was measured after this epoch, if anything."""
        return next((row for row in self.history if row["epoch"] == epoch), {})

    def verdict(self) -> str:
        """One sentence on whether pretraining moved the probe."""
        first, last = self.history[0]["knn_balanced"], self.history[-1]["knn_balanced"]
        text = f"kNN balanced accuracy {first:.3f} before, {last:.3f} after"
        return text if last > first else f"{text}: pretraining has NOT improved the backbone; do not expect it to help"

    def state_dict(self) -> dict[str, Any]:
        """Measurements so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.history = state_dict["history"]


class Metrics(pl.Callback):
    """One row an epoch in the CSV file `path`, written whole each time; rows survive a resume."""

    def __init__(self, path: Path, watch: CollapseWatch, knn: KnnProbe | None) -> None:
        self.path, self.watch, self.knn = path, watch, knn
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the epoch's sums."""
        self.started, self.total, self.batches = time.perf_counter(), torch.zeros(()), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss on its device, without waiting for it."""
        self.total = self.total.to(outputs["loss"].device) + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.batches += 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        assert isinstance(pl_module, SSLModule)
        measured = self.watch.latest
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "loss": float(self.total) / self.batches,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": time.perf_counter() - self.started,
        }
        if pl_module.config.momentum is not None:
            row["momentum"] = pl_module.momentum_now(trainer.global_step - 1)
        if measured is not None:
            row |= {name: value for name, value in vars(measured).items() if value is not None}
        if self.knn is not None:
            row |= {name: value for name, value in self.knn.at(trainer.current_epoch + 1).items() if name != "epoch"}
        self.rows.append(row)
        if trainer.is_global_zero:
            write_text(self.path, csv_text(self.rows))

    def state_dict(self) -> dict[str, Any]:
        """Rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.rows = state_dict["rows"]


def csv_text(rows: Sequence[dict[str, float]]) -> str:
    """Rows as CSV with the columns that any of them has."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [",".join(f"{row[name]:.6g}" if name in row else "" for name in columns) for row in rows]
    return "\n".join([",".join(columns), *lines]) + "\n"


class Progress(pl.Callback):
    """One bar for the whole run; Lightning's own starts anew every epoch, which small runs drown in."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step reached."""
        assert isinstance(pl_module, SSLModule)
        self.bar = tqdm(
            total=pl_module.total_steps,
            initial=trainer.global_step,
            desc=f"pretraining ({pl_module.config.method})",
            unit="step",
            mininterval=0.5,
            disable=None if trainer.is_global_zero else True,  # None: a bar on a terminal, silence in a log
        )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on by the optimizer steps done."""
        self.bar.update(trainer.global_step - self.bar.n)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show epoch and loss."""
        metrics = next(callback for callback in trainer.callbacks if isinstance(callback, Metrics))
        if metrics.rows:
            self.bar.set_postfix(epoch=trainer.current_epoch + 1, loss=f"{metrics.rows[-1]['loss']:.3f}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, whatever ended the run."""
        if hasattr(self, "bar"):
            self.bar.close()
