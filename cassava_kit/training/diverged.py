"""Stop a run whose loss is no longer finite: `StopDiverged`, a Lightning callback of training and pretraining."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from cassava_kit.errors import UserError
from cassava_kit.inference.device_queue import Answer, make_queue
from cassava_kit.training.devices import process_rank
from cassava_kit.training.findings import not_finite


class DivergedError(UserError):
    """A run's loss became NaN or infinite; its weights are of no use."""


class StopDiverged(L.Callback):
    """Ends a run at its first loss that is not finite, before a checkpoint or a metric is written from it.

    On a GPU a step's loss is looked at once the next step is ordered, so that the device need not wait for the host.

    Raises:
        DivergedError: names the epoch and the step, both counted from 1.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Answer, int, int]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Know the device."""
        self.queue = make_queue(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the batch, or on a GPU of the one before."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        bad = 1 - torch.isfinite(loss.detach()).all().float()
        if process_rank()[1] > 1:  # all processes stop at the same step
            torch.distributed.all_reduce(bad)
        self.waiting.append((self.queue.download(bad), trainer.current_epoch, batch_idx))
        self.look(trainer, ahead=1 if self.queue.runs_ahead else 0)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the losses that are left."""
        self.look(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the losses that are left, where nothing was validated."""
        self.look(trainer)

    def look(self, trainer: L.Trainer, *, ahead: int = 0) -> None:
        """Look at all losses but the `ahead` latest."""
        while len(self.waiting) > ahead:
            bad, epoch, step = self.waiting.pop(0)
            if bad.wait():
                cause = not_finite(precision=str(trainer.precision), first=epoch == 0 and step == 0)
                raise DivergedError(f"epoch {epoch + 1}, step {step + 1}: {cause}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the validation loss, where there is one."""
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not torch.isfinite(loss):
            cause = not_finite(precision=str(trainer.precision), first=False)
            raise DivergedError(f"epoch {trainer.current_epoch + 1}, validation: {cause}")
