"""What pushing needs of Kaggle: the calls, what they answer, how long to wait, and how a refusal is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Say = Callable[[str], None]
# With less than this a GPU session is not worth its start.
FEWEST_HOURS = 0.25


class KaggleError(ValueError):
    """What Kaggle refused, in one line, with what to do about it."""


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it; `status` is pending, complete or error, `score` empty until it is known."""

    ref: int
    description: str
    status: str
    score: str
    error: str


@dataclass(frozen=True)
class Patience:
    """How long to wait: polls start `first` seconds apart and slow down to `longest`; limits in seconds."""

    first: float = 2.0
    longest: float = 60.0
    attempts: int = 6
    dataset: float = 3600.0
    kernel: float = 12 * 3600.0
    score: float = 12 * 3600.0

    def polls(self, limit: float) -> Iterator[None]:
        """Yield until `limit` seconds have passed, sleeping between."""
        pause, end = self.first, time.monotonic() + limit
        while True:
            yield
            if time.monotonic() + pause > end:
                return
            time.sleep(pause)
            pause = min(1.5 * pause, self.longest)


class Remote(Protocol):
    """What pushing needs of Kaggle: the real client, or one that only says what it would call."""

    def owner(self) -> str: ...
    def gpu_hours_left(self) -> float | None: ...
    def dataset_status(self, dataset: str) -> str | None: ...
    def dataset_build(self, dataset: str, manifest: str) -> str | None: ...
    def dataset_sizes(self, dataset: str) -> dict[str, int] | None: ...
    def create_dataset(self, folder: Path) -> None: ...
    def create_version(self, folder: Path, notes: str) -> None: ...
    def push_kernel(self, folder: Path, newer_than: int = 0) -> int: ...
    def kernel_version(self, kernel: str, source: str) -> int | None: ...
    def kernel_status(self, kernel: str) -> tuple[str, str]: ...
    def kernel_log(self, kernel: str) -> str: ...
    def kernel_output(self, kernel: str, out: Path, pattern: str) -> None: ...
    def submit(self, kernel: str, version: int, description: str) -> int: ...
    def submissions(self) -> list[Submission]: ...
