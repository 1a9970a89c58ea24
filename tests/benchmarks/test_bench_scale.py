"""The full-size benchmark's own figures: memory of child processes counts, and growth beyond linear is reported."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import bench_scale
import pytest
import usage

CHILD = "import time; held = bytearray(150_000_000); time.sleep(1)"


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="memory is read from /proc, which Linux has")
def test_memory_of_children_counts(tmp_path):
    parent = f"import subprocess, sys; held = bytearray(100_000_000); subprocess.run([sys.executable, '-c', {CHILD!r}])"
    use = usage.measure_usage([sys.executable, "-c", parent], tmp_path / "log.txt", os.environ)
    assert 250e6 < use.peak_bytes < 400e6
    assert 1 < use.seconds < 300
    assert use.cpu_seconds < use.seconds


def test_a_step_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 3:\nno such thing"):
        program = "import sys; print('no such thing'); sys.exit(3)"
        usage.measure_usage([sys.executable, "-c", program], tmp_path / "log.txt", os.environ)


def test_steps_bring_those_that_they_need_in_order():
    assert bench_scale.with_needs(["review"]) == ["folds", "groups", "clean", "review"]
    assert bench_scale.with_needs(["pixels"]) == ["pixels"]
    assert bench_scale.with_needs(list(bench_scale.STEPS)) == list(bench_scale.STEPS)


def records(cost) -> list[dict[str, float]]:
    sizes = (1000, 5000, 21_397)
    return [
        {
            "images": n,
            "seconds": cost(n),
            "cpu_seconds": cost(n),
            "peak_mb": 100 + n / 100,
            "written_mb": 0.0,
            "note": "",
        }
        for n in sizes
    ]


def test_growth_is_called_by_its_name():
    assert bench_scale.growth(records(lambda n: 3 + n / 1000)).startswith("linear: an image costs at 21,397 0.71 times")
    assert bench_scale.growth(records(lambda n: (n / 1000) ** 1.2)).startswith(
        "NOT LINEAR: an image costs at 21,397 1.34"
    )
    assert "each further one takes 1000.0 ms and 10 kB of memory" in bench_scale.growth(records(float))


def test_what_is_noted_of_the_largest_size_is_said():
    noted = records(float)
    noted[-1]["note"] = "80% of the votes counted"
    assert bench_scale.growth(noted).endswith("; 80% of the votes counted")


def test_the_table_shows_seconds_and_memory_by_size():
    text = bench_scale.table({"clean": {str(one["images"]): one for one in records(lambda n: 3 + n / 1000)}})
    assert text.startswith("| step | 1,000 images | 5,000 images | 21,397 images |\n")
    assert "| `clean` | 4.0 s, 110 MB | 8.0 s, 150 MB | 24.4 s, 314 MB |" in text
