"""The clock counts from the process's start and keeps a reserve."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from cassava_kit.inference.clock import Clock, process_start

ROOT = Path(__file__).parents[2]


def test_time_before_our_first_line_counts() -> None:
    code = (
        "import time; time.sleep(1.2)\n"
        "from cassava_kit.inference.clock import process_start\n"
        "print(time.time() - process_start())"
    )
    seconds = float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    )
    assert 1.15 < seconds < 600
    assert process_start() < time.time()


def test_left_is_the_limit_less_what_is_used_and_the_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, monotonic = 5000.0, 70.0
    monkeypatch.setattr(time, "time", lambda: wall)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic)
    clock, short, free = Clock(1000.0, 4900.0), Clock(10.0, 5000.0), Clock(None, 0.0)
    assert (clock.used, clock.left) == (100.0, 895.0)  # .5 % of 1000 s are kept
    assert short.left == 9.5 and free.left == float("inf")  # never less than half a second
    monotonic += 20.0
    assert (clock.used, clock.left, short.left) == (120.0, 875.0, -10.5)


def test_the_wall_clock_may_be_set_while_we_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0, time.time())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= clock.used < 600


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_positive_and_finite(limit: float) -> None:
    with pytest.raises(ValueError, match=f"more than 0 seconds and finite, or none, got {limit}"):
        Clock(limit)
