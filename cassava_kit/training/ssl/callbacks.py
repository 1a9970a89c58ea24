"""Callbacks of a pretraining run: `CollapseWatch`, `KnnProbe` and `PretrainMetrics`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn

from cassava_kit.training.callbacks import MetricsFile
from cassava_kit.training.ssl.collapse import CollapseError, Health, find_collapse, measure_health
from cassava_kit.training.ssl.config import MomentumConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.probe import KnnHalves

NEVER_HEALTHY_FACTOR = 5


class CollapseWatch(L.Callback):
    """Measures the head's output every few steps; several bad measurements in a row stop the run, or warn."""

    def __init__(self) -> None:
        self.bad = 0
        self.was_healthy = False
        self.warned = False
        self.last_step = -1
        self.latest: Health | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and raise CollapseError where the configuration says stop."""
        assert isinstance(pl_module, SSLModule)
        config, step = pl_module.config, trainer.global_step
        if step % config.watch_every or step == self.last_step or pl_module.embeddings is None:
            return
        self.last_step = step  # of the batches that are gathered for one step only the first is measured
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.latest = measure_health(pl_module.embeddings, pl_module.scores, loss)
        found = find_collapse(self.latest, min_std=config.min_std, min_rank=config.min_rank)
        self.was_healthy = self.was_healthy or found is None
        # A fresh head without norm looks collapsed at first; after the first healthy measurement the shorter grace
        # period applies.
        if step <= config.watch_after * (1 if self.was_healthy else NEVER_HEALTHY_FACTOR):
            return
        self.bad = self.bad + 1 if found else 0
        if found is None or self.bad < config.watch_patience:
            return
        message = (
            f"{config.method} has collapsed by step {step}: {found}; {config.remedies}, or go on with on_collapse=warn"
        )
        if config.on_collapse == "stop":
            raise CollapseError(message)
        if not self.warned:
            self.warned = True
            rank_zero_warn(message)

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far, for a resumed run."""
        return {name: getattr(self, name) for name in ("bad", "was_healthy", "warned", "last_step")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class KnnProbe(L.Callback):
    """kNN accuracy of the frozen backbone on labelled images, before the first epoch and every few."""

    def __init__(self, halves: KnnHalves) -> None:
        self.halves = halves
        self.history: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the backbone as it starts, random or given."""
        if not self.history:
            self._measure(trainer, pl_module, epoch=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure after every `knn_every` epochs and after the last."""
        assert isinstance(pl_module, SSLModule)
        epoch = trainer.current_epoch + 1
        if epoch % pl_module.config.knn_every == 0 or epoch == pl_module.config.epochs:
            self._measure(trainer, pl_module, epoch=epoch)

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, *, epoch: int) -> None:
        assert isinstance(pl_module, SSLModule)
        if trainer.is_global_zero:
            plain, balanced = self.halves.score(pl_module.backbone)
            self.history.append({"epoch": epoch, "knn": plain, "knn_balanced": balanced})
        trainer.strategy.barrier("knn")

    def at(self, epoch: int) -> dict[str, float]:
        """Return what was measured after this epoch; empty where nothing was."""
        return next((row for row in self.history if row["epoch"] == epoch), {})

    def verdict(self) -> str:
        """Return one sentence on whether pretraining moved the probe."""
        first, last = self.history[0]["knn_balanced"], self.history[-1]["knn_balanced"]
        text = f"kNN balanced accuracy {first:.3f} before, {last:.3f} after"
        return text if last > first else f"{text}: pretraining has NOT improved the backbone; do not expect it to help"

    def state_dict(self) -> dict[str, Any]:
        """Return the measurements so far."""
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.history = state_dict["history"]


class PretrainMetrics(MetricsFile):
    """One row an epoch: loss, rate, momentum, health of the embeddings, kNN."""

    def __init__(self, path: Path, watch: CollapseWatch, knn: KnnProbe | None) -> None:
        super().__init__(path)
        self.watch, self.knn = watch, knn

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's sums."""
        super().on_train_epoch_start(trainer, pl_module)
        self.total, self.batches = torch.zeros(()), 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss on its device, without waiting for it."""
        self.total = self.total.to(outputs["loss"].device) + outputs["loss"].detach() * trainer.accumulate_grad_batches
        self.batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the epoch's row."""
        assert isinstance(pl_module, SSLModule)
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "loss": float(self.total) / self.batches,
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
        }
        if isinstance(pl_module.config, MomentumConfig):
            row["momentum"] = pl_module.momentum_share(trainer.global_step - 1)
        if self.watch.latest is not None:
            row |= {name: value for name, value in vars(self.watch.latest).items() if value is not None}
        if self.knn is not None:
            measured = self.knn.at(trainer.current_epoch + 1)
            row |= {name: measured.get(name) for name in ("knn", "knn_balanced")}
        self.add(row)
        self.write(trainer)
