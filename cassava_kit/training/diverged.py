"""Stop a run whose loss is no longer finite: `StopDiverged`, a Lightning callback of training and pretraining."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from cassava_kit.errors import UserError

NOT_FINITE = "the loss is not finite: lr too high, or fp16 overflowed? lower lr, or set precision=32-true"


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
        if not bool(torch.isfinite(loss.detach()).all()):
            raise DivergedError(f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}: {NOT_FINITE}")
