"""What a run was asked and what it did: options, the report that becomes `run.json`, and lines for the reader."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cassava_kit.errors import UserError
from cassava_kit.files import write_json
from cassava_kit.inference.choices import EARLY_STOP, VIEWS, check_choice, check_device

if TYPE_CHECKING:
    from cassava_kit.inference.pixels import Budget

REPORT_FILE = "run.json"


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
            check_choice("views", self.views, VIEWS)
        check_choice("early_stop", self.early_stop, EARLY_STOP)
        check_device(self.device)
        if self.memory is not None and not 0 <= self.memory < float("inf"):
            raise UserError(f"memory must be at least 0 gigabytes and finite, got {self.memory}")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass
class RunReport:
    """What a run did, as written to `run.json`; times in seconds since the process began."""

    submission: str
    n_images: int = 0
    finished: bool = False
    error: str | None = None
    prior_alone: bool = True
    views: str = ""
    early_stop: dict[str, Any] = field(default_factory=dict)
    time_limit: float | None = None
    members_used: list[dict[str, Any]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    images_failed: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    class_counts: list[int] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `run.json`; names of files that are not text are shown with their bytes escaped.

        A folder that cannot be written costs a warning: the submission is worth more than its report.
        """
        try:
            write_json(folder / REPORT_FILE, _printable(asdict(self)))
        except OSError as error:
            warn(f"{folder / REPORT_FILE} could not be written: {error}")


def say(text: str) -> None:
    """One line to standard output, at once."""
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"), flush=True)


def warn(text: str) -> None:
    """One line to standard error, at once."""
    print(f"WARNING: {text}".encode("utf-8", "backslashreplace").decode("utf-8"), file=sys.stderr, flush=True)


def _printable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value
