"""Stop a run whose loss is no longer finite: `StopDiverged`, a Lightning callback of training and pretraining."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from cassava_kit.errors import UserError
from cassava_kit.training.devices import process_rank
from cassava_kit.training.findings import not_finite


class DivergedError(UserError):
    """A run's loss became NaN or infinite; its weights are of no use."""


class StopDiverged(L.Callback):
    """Ends a run at its first loss that is not finite, before a checkpoint or a metric is written from it.

    Raises:
        DivergedError: names the epoch and the step, both counted from 1.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the loss of the batch."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        bad = 1 - torch.isfinite(loss.detach()).all().float()
        if process_rank()[1] > 1:  # all processes stop at the same step
            torch.distributed.all_reduce(bad)
        if bad:
            first = trainer.current_epoch == 0 and batch_idx == 0
            cause = not_finite(precision=str(trainer.precision), first=first)
            raise DivergedError(f"epoch {trainer.current_epoch + 1}, step {batch_idx + 1}: {cause}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look at the validation loss, where there is one."""
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not torch.isfinite(loss):
            cause = not_finite(precision=str(trainer.precision), first=False)
            raise DivergedError(f"epoch {trainer.current_epoch + 1}, validation: {cause}")
