"""What jobs of tests do, in processes of their own: importable by name."""

import os
import signal
import time
from pathlib import Path

from cassava_kit.data.progress import current_display, tell
from cassava_kit.errors import UserError


def double(number: int) -> tuple[int, int]:
    """The double, and the process that computed it."""
    return 2 * number, os.getpid()


def fail(text: str, kind: type[Exception] = UserError) -> None:
    raise kind(text)


def die() -> None:
    """End as a process that the system kills where memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def note_start(folder: Path) -> None:
    """Leave the process's number, say that an epoch has ended, and take longer than any test waits."""
    (folder / str(os.getpid())).touch()
    display = current_display()
    assert display is not None
    display.add(folder.name, 10)
    display.epoch(folder.name, 3, 10, "loss 1.0")
    tell(f"{folder.name} waits")
    time.sleep(600)
