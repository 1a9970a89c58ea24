"""The calls to Kaggle that a push makes (`Remote`), and the error for its refusals (`KaggleError`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cassava_kit.errors import UserError

Say = Callable[[str], None]
# A GPU session is not started with fewer GPU hours left.
FEWEST_HOURS = 0.25


class KaggleError(UserError):
    """Kaggle refused a call or does not answer; the message says in one line what to do."""


@dataclass(frozen=True)
class Submission:
    """One submission as Kaggle lists it; `status` is pending, complete or error, scores are empty until they are known.

    `date` is when it was made, ISO 8601, or empty.
    """

    ref: int
    description: str
    status: str
    score: str
    error: str
    private_score: str = ""
    date: str = ""


@dataclass(frozen=True)
class Limits:
    """Submissions made today (UTC) and in all, how many are left today, and whether the total limits that number."""

    today: int
    total: int
    left: int
    by_total: bool = False

    def __str__(self) -> str:
        in_all = (
            f", which is all that is left ({self.total} made in all)"
            if self.by_total
            else (f"; {self.total} made in all")
        )
        return f"submissions left today: {self.left} ({self.today} made today){in_all}"


class Remote(Protocol):
    """The calls that a push makes; `KaggleClient` makes them, tests replace it."""

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
    def limits(self) -> Limits | None: ...
    def rules_accepted(self) -> bool | None: ...
    def submit(self, kernel: str, version: int, description: str) -> int: ...
    def submissions(self) -> Iterator[Submission]: ...
