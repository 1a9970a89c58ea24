"""What pushing needs of Kaggle: the calls, what they answer, how long to wait, and how a refusal is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cassava_kit.errors import UserError

Say = Callable[[str], None]
# With less than this a GPU session is not worth its start.
FEWEST_HOURS = 0.25


class KaggleError(UserError):
    """A refusal of Kaggle's, in one line, with what to do about it."""


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
    """How long to wait, in seconds, and the clock to wait by.

    Polls start `first` seconds apart and slow down to `longest`. A call that fails with what may pass is tried
    `attempts` times; a read, or any call without an answer, is tried for `outage` seconds once Kaggle has answered
    before. `dataset`, `kernel` and `score` limit the waits. `sleep` and `clock` are replaced in tests.
    """

    first: float = 2.0
    longest: float = 60.0
    attempts: int = 6
    outage: float = 2 * 3600.0
    dataset: float = 3600.0
    kernel: float = 12 * 3600.0
    score: float = 12 * 3600.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic

    def polls(self, limit: float) -> Iterator[None]:
        """Yield at once and then after growing pauses, until `limit` seconds have passed."""
        pause, end = self.first, self.clock() + limit
        while True:
            yield
            if self.clock() + pause > end:
                return
            self.sleep(pause)
            pause = min(1.5 * pause, self.longest)


class Remote(Protocol):
    """What pushing needs of Kaggle: the real client, or one that only says what it would call."""

    def owner(self) -> str: ...
    def gpu_hours_left(self) -> float | None: ...
    def dataset_status(self, dataset: str) -> str | None: ...
    def dataset_build(self, dataset: str, manifest: str) -> str | None: ...
    def dataset_sizes(self, dataset: str) -> dict[str, int] | None: ...
    def dataset_version(self, dataset: str) -> int | None: ...
    def create_dataset(self, folder: Path) -> None: ...
    def create_version(self, folder: Path, notes: str, before: int | None) -> None: ...
    def push_kernel(self, folder: Path, newer_than: int = 0) -> int: ...
    def kernel_version(self, kernel: str, source: str) -> int | None: ...
    def kernel_status(self, kernel: str, version: int | None = None) -> tuple[str, str]: ...
    def kernel_log(self, kernel: str, version: int | None = None) -> str: ...
    def kernel_output(self, kernel: str, out: Path, pattern: str, *, version: int | None = None) -> None: ...
    def submissions_left(self) -> int | None: ...
    def rules_accepted(self) -> bool | None: ...
    def submit(self, kernel: str, version: int, description: str) -> int: ...
    def submissions(self) -> Iterator[Submission]: ...
