"""How long to wait for Kaggle and which errors are retried; start with `WaitPolicy` and `may_pass`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class WaitPolicy:
    """How long to wait, in seconds, and the clock to wait by.

    The first two polls are `first` seconds apart; the pause grows to `longest`. A call that fails for a passing reason
    is tried `attempts` times. Once Kaggle has answered any call, reads and calls without an answer are tried for
    `outage` seconds. `dataset`, `kernel` and `score` limit the waits. Tests replace `sleep` and `clock`.
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


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error reports; None without an answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def answer_text(error: BaseException) -> str:
    """Return the text of the answer that an error reports; empty without an answer."""
    return str(getattr(getattr(error, "response", None), "text", ""))


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may succeed: HTTP 429 and 5xx, and connections that are lost or time out."""
    status = http_status(error)
    if not isinstance(error, OSError) or (status is not None and status != 429 and status < 500):
        return False
    # Without an answer, an error number that is no connection's belongs to a file of this machine.
    return status is not None or error.errno is None or isinstance(error, ConnectionError | TimeoutError)


def pause_before(error: BaseException, policy: WaitPolicy, attempt: int) -> float:
    """Return the seconds to wait before attempt `attempt + 1`: what Kaggle asks for, or twice as long each time."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    wait = float(asked) if str(asked).isdigit() else policy.first * 2.0 ** min(attempt - 1, 30)
    return min(wait, policy.longest)
