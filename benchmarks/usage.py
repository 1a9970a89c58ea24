"""Measure a program and its child processes: wall time, CPU time, peak memory (Linux). Entry point: `measure_usage`."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

INTERVAL = 0.1  # seconds between two readings of the memory


class Usage(NamedTuple):
    """Wall time and CPU time in seconds, peak memory in bytes; pages shared by processes count once for each."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure_usage(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Usage:
    """Run a command to its end, its output into `log`, and return what it used; RuntimeError where it fails."""
    with log.open("wb") as file:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        peak, ended = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peak, ended), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        ended.set()
        watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)}\nended with {process.returncode}:\n{last}")
    return Usage(seconds, usage.ru_utime + usage.ru_stime, peak[0])


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Record the peak memory of a process and its descendants until the event is set."""
    while not ended.is_set():
        peak[0] = max(peak[0], *read_memory(list_processes(pid)))
        ended.wait(INTERVAL)


def list_processes(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for one in found:
        for file in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                found += map(int, file.read_text().split())
            except OSError:  # the thread has ended
                continue
    return found


def read_memory(pids: Sequence[int]) -> tuple[int, int]:
    """Return the sum of the resident sizes of processes and the highest peak of any one, in bytes."""
    resident, highest = 0, 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        sizes = {
            line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))
        }
        resident += sizes.get("VmRSS", 0)
        highest = max(highest, sizes.get("VmHWM", 0))
    return resident, highest
