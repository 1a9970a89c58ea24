"""Ends of a command: `UserError`, which the user can mend (`closest` finds the name that was meant), and `Stopped`."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


REPEATED_SECONDS = 2.0


class UserError(ValueError):
    """A mistake in what the user gave: an option, a setting, a file.

    The message says what was expected, what came, and what to do. The command line prints it as one line and exits
    with code 2; every other exception is a bug and keeps its traceback.

    Example:
        >>> raise UserError("fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds")
        Traceback (most recent call last):
        cassava_kit.errors.UserError: fold must be in 0..4, got 7; folds/kfold5.csv has 5 folds
    """


class Stopped(BaseException):
    """The end of a run by a signal: Ctrl-C (SIGINT) or SIGTERM.

    The command line prints the message as one line and exits with `code`: 130 or 143, 128 and the signal's number.
    """

    def __init__(self, message: str = "stopped", *, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code."""
        return 128 + self.number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Stopped` in the block; a signal that is ignored stays so.

    One that comes again at once counts once: `timeout`, for one, sends it to the program and to its group.
    """
    last = -math.inf

    def stop(number: int, _: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > REPEATED_SECONDS:
            raise Stopped(number=number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def closest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X or Y?)" with the nearest of `names`, or an empty text where no name is similar.

    Example:
        >>> closest("resnet5O", ["resnet50", "vit_base"])
        ' (did you mean resnet50?)'
    """
    near = get_close_matches(name, list(names), n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def format_errors(error: ValidationError) -> str:
    """Return pydantic's errors as one line: field, what is wrong, what came."""
    parts = []
    for item in error.errors():
        where = ".".join(map(str, item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}, got {item['input']!r}" if where else message)
    return "; ".join(parts)
