"""What a submission run may be asked for: `RunOptions`; imports nothing heavy, so that a mistake is refused at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cassava_kit.errors import UserError

if TYPE_CHECKING:
    from cassava_kit.inference.kept_pixels import Budget


EARLY_STOP = ("certified", "off")


def check_device(device: str | Sequence[str]) -> None:
    """Raise UserError unless it is `auto`, `cpu`, `cuda` or a numbered GPU, or a list of the last three."""
    named = [device] if isinstance(device, str) else device
    if device != "auto" and not (named and all(re.fullmatch(r"cpu|cuda(:\d+)?", name) for name in named)):
        raise UserError(f"device must be auto, cpu, cuda or a GPU such as cuda:0, got {device!r}")


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out; None takes the ensemble's views, the device's batch size and the machine's budget.

    `memory` is how many gigabytes of pixels may be kept, beside the disk; a `budget` says both.
    """

    views: str | None = None
    early_stop: str = "certified"
    batch_size: int | None = None
    device: str | Sequence[str] = "auto"
    budget: Budget | None = None
    memory: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.views is not None:
            from cassava_kit.inference.tta import make_views

            make_views(self.views)
        if self.early_stop not in EARLY_STOP:
            raise UserError(f"early_stop must be one of {', '.join(EARLY_STOP)}, got {self.early_stop!r}")
        check_device(self.device)
        if self.memory is not None and not 0 <= self.memory < float("inf"):
            raise UserError(f"memory must be at least 0 gigabytes and finite, got {self.memory}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")
