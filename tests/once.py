"""What all processes of a test run share: `made_once`."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the folder that `make` fills, by the first process that asks for it; nobody changes it afterwards.

    pytest's folder for a run holds one for each process (`--numprocesses`), and what they share beside them.
    """
    base = factory.getbasetemp()
    whole = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    with whole.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            part = whole.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)  # of a process that failed in it
            part.mkdir()
            make(part)
            part.rename(whole)
    return whole
