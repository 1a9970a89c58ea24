"""Lightning callbacks: `Metrics` with findings, `Resume`, `KeepBest`, `StopEarly`, `Bar`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd

from cassava_kit.data.progress import Display
from cassava_kit.files import METRICS_FILE, RESUME_FILE, atomic_path, write_text
from cassava_kit.training.findings import diagnose


class MetricsFile(L.Callback):
    """Keeps one row an epoch in a CSV file, written whole each time; a resumed run has the rows of finished epochs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of the epochs that were finished."""
        self.rows = list(state_dict["rows"])

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.perf_counter()

    def add(self, row: dict[str, Any]) -> None:
        """Add the epoch's row, with the seconds that it took."""
        row["seconds"] = time.perf_counter() - self.started
        self.rows.append(row)

    def write(self, trainer: L.Trainer) -> None:
        """Write all rows, on the first process."""
        if trainer.is_global_zero:
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


class Metrics(MetricsFile):
    """A fold's rows in `metrics.csv`: losses, accuracy, class shares; each finding of `diagnose` is printed once."""

    def __init__(self, run_dir: Path, classes: tuple[str, ...], tell: Callable[[str], None]) -> None:
        super().__init__(run_dir / METRICS_FILE)
        self.classes = classes
        self.tell = tell
        self.reported: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the findings already printed."""
        return {**super().state_dict(), "reported": sorted(self.reported)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        super().load_state_dict(state_dict)
        self.reported = set(state_dict["reported"])

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add the epoch's row; Lightning has validated by now."""
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row = {"epoch": trainer.current_epoch, "lr": trainer.optimizers[0].param_groups[-1]["lr"], **values}
        self.add(row)
        findings = diagnose(self.rows, self.classes, last=trainer.current_epoch + 1 == trainer.max_epochs)
        new = {key: text for key, text in findings.items() if key not in self.reported}
        row["note"] = "; ".join(new.values())
        self.reported |= set(new)
        if trainer.is_global_zero:
            for text in new.values():
                self.tell(f"epoch {trainer.current_epoch + 1}: {text}")
        self.write(trainer)


class Resume(L.Callback):
    """Writes `last.ckpt` atomically after every epoch, from which a killed run is resumed."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / RESUME_FILE

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save everything that training needs, atomically; every process takes part, the first one writes."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.path)
            return
        with atomic_path(self.path) as temporary:
            trainer.save_checkpoint(temporary)


class StopEarly(L.pytorch.callbacks.EarlyStopping):
    """Stops after `patience` epochs without a lower validation loss, or at one that is not finite; so does a restart.

    It acts after validation: Lightning would act after `Resume` has saved, which a resumed run does not repeat.
    """

    def __init__(self, patience: int) -> None:
        super().__init__("val_loss", patience=patience, check_on_train_epoch_end=False)
        self.stopped = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare the epoch's loss."""
        super().on_validation_end(trainer, pl_module)
        self.stopped = trainer.should_stop

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Train no further epoch where the run had stopped before it was killed."""
        trainer.should_stop = self.stopped

    def state_dict(self) -> dict[str, Any]:
        """Return Lightning's state, and whether training is over."""
        return {**super().state_dict(), "stopped": self.stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both."""
        super().load_state_dict(state_dict)
        self.stopped = state_dict["stopped"]


class KeepBest(L.Callback):
    """Calls `save` whenever the validation loss is lower than ever before."""

    def __init__(self, save: Callable[[], None]) -> None:
        self.save = save
        self.best = math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the lowest loss so far."""
        self.best = state_dict["best"]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compare this epoch's loss with the best."""
        loss = float(trainer.callback_metrics["val_loss"])
        if loss < self.best:
            self.best = loss
            self.save()


class Bar(L.Callback):
    """Shows a run on a display: a step a batch, and the figure of each epoch."""

    def __init__(self, display: Display, metrics: MetricsFile, *, label: str, column: str) -> None:
        self.display = display
        self.metrics = metrics
        self.label = label
        self.column = column

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin the task; a resumed run starts where it stopped."""
        per_epoch = int(trainer.num_training_batches)
        self.display.add(self.label, per_epoch * (trainer.max_epochs or 1), per_epoch * trainer.current_epoch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Advance by one step."""
        self.display.advance(self.label)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the epoch's figure."""
        figure = f"{self.column.replace('_', ' ')} {self.metrics.rows[-1][self.column]:.3f}"
        self.display.epoch(self.label, trainer.current_epoch + 1, trainer.max_epochs or 1, figure)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """End the task, also that of a run that failed or was stopped."""
        self.display.remove(self.label)
