"""The clock of a submission, counted from the start of the process: `Clock`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from cassava_kit.errors import UserError

RESERVE_SHARE = 0.005
RESERVE_SECONDS = 0.5


def process_start() -> float:
    """Return when this process began, in seconds since the epoch; the present where the system does not say."""
    try:
        # The command's name may hold spaces and brackets: fields are counted from the last bracket.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


@dataclass
class Clock:
    """Seconds used and left; `limit` seconds count from `started` (epoch seconds), None is no limit.

    A small reserve (0.5 % of the limit, at least half a second) is kept for the last file.
    """

    limit: float | None = None
    started: float = field(default_factory=process_start)

    def __post_init__(self) -> None:
        if self.limit is not None and not 0 < self.limit < float("inf"):
            raise UserError(f"the time limit must be more than 0 seconds and finite, or none, got {self.limit}")
        # The wall clock may be set during the run: it is read once, and a monotonic one counts from there.
        self._offset = time.monotonic() - (time.time() - self.started)

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._offset

    @property
    def left(self) -> float:
        """Seconds until work must stop; infinite without a limit."""
        if self.limit is None:
            return float("inf")
        return self.limit - max(RESERVE_SECONDS, RESERVE_SHARE * self.limit) - self.used
