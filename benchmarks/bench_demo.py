"""The demo, `python submit.py ensemble` after installation: idle, a second call, and beside one busy core.

Each run works in a folder of its own, with a cache of its own, so that the sample is drawn and nothing is reused; the
second call is in the folder of the first. The busy core is a program that computes without pause. Seconds are wall
time, from the start of the program to its end; idle runs and runs beside the busy core take turns, figures are medians.
Nothing else should be running. Targets on two cores: 150 s idle, at most 1.4 times that beside one busy core, 20 s for
a second call.

    PYTHONPATH=. python benchmarks/bench_demo.py [--rounds 1] [--out TABLE.md]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from usage import Usage, measure_usage

from cassava_kit.files import write_text
from cassava_kit.inference.machine import cpu_count

ROOT = Path(__file__).resolve().parents[1]
IDLE, SECOND, BUSY = "idle", "second call", "beside one busy core"
TARGET_SECONDS, TARGET_RATIO, TARGET_SECOND = 150, 1.4, 20


@contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Keep one core busy in the block, by a program that is yielded."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_demo(folder: Path) -> Usage:
    """Run the demo in a folder; what it prints goes to `demo.log` there."""
    environment = {**os.environ, "CASSAVA_KIT_CACHE": str(folder / "cache")}
    command = [sys.executable, str(ROOT / "submit.py"), "ensemble", "--out", str(folder / "out")]
    return measure_usage(command, folder / "demo.log", environment)


def measure(rounds: int) -> dict[str, list[Usage]]:
    """Return what each kind of run used, kinds taking turns."""
    used: dict[str, list[Usage]] = {IDLE: [], SECOND: [], BUSY: []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="demo-") as folder:
            used[IDLE].append(run_demo(Path(folder)))
            used[SECOND].append(run_demo(Path(folder)))
        with tempfile.TemporaryDirectory(prefix="demo-") as folder, busy_core():
            used[BUSY].append(run_demo(Path(folder)))
        for kind, runs in used.items():
            print(f"{kind}: {runs[-1].seconds:.0f} s, {runs[-1].cpu_seconds:.0f} s of CPU", flush=True)
    return used


def table(used: dict[str, list[Usage]]) -> str:
    """Return the figures beside their targets, as Markdown."""
    seconds = {kind: statistics.median(run.seconds for run in runs) for kind, runs in used.items()}
    ratio = seconds[BUSY] / seconds[IDLE]
    targets = {
        IDLE: (f"{TARGET_SECONDS} s", seconds[IDLE] <= TARGET_SECONDS),
        SECOND: (f"{TARGET_SECOND} s", seconds[SECOND] <= TARGET_SECOND),
        BUSY: (f"{TARGET_RATIO} x idle", ratio <= TARGET_RATIO),
    }
    lines = ["| demo | seconds | CPU seconds | peak memory | target |", "|---|---:|---:|---:|---|"]
    for kind, runs in used.items():
        cpu = statistics.median(run.cpu_seconds for run in runs)
        peak = max(run.peak_bytes for run in runs) / 2**30
        shown = f"{seconds[kind]:.0f}" + (f" ({ratio:.2f} x idle)" if kind == BUSY else "")
        target, met = targets[kind]
        lines.append(f"| {kind} | {shown} | {cpu:.0f} | {peak:.1f} GiB | {target}: {'met' if met else 'MISSED'} |")
    return "\n".join([f"{cpu_count()} cores, {len(used[IDLE])} round(s)", "", *lines]) + "\n"


def main() -> None:
    """Measure and print; `--out` also writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each kind")
    parser.add_argument("--out", type=Path, help="file for the table")
    arguments = parser.parse_args()
    text = table(measure(arguments.rounds))
    print(text)
    if arguments.out:
        write_text(arguments.out, text)


if __name__ == "__main__":
    main()
