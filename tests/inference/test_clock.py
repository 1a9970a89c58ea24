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
    assert 1.15 < seconds < 20
    assert process_start() < time.time()


def test_left_is_the_limit_less_what_is_used_and_the_reserve() -> None:
    clock = Clock(1000.0, time.time() - 100)
    assert clock.used == pytest.approx(100, abs=0.5)
    assert clock.left == pytest.approx(895, abs=0.5)
    assert Clock(10.0, time.time()).left == pytest.approx(9.5, abs=0.1)
    assert Clock(None, 0.0).left == float("inf")


def test_the_wall_clock_may_be_set_while_we_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(100.0, time.time())
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.used < 5


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_must_be_positive_and_finite(limit: float) -> None:
    with pytest.raises(ValueError, match=f"more than 0 seconds and finite, or none, got {limit}"):
        Clock(limit)
