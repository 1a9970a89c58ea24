"""What the machine offers: the cores that a process may use."""

import os
import subprocess
import sys

import pytest

from cassava_kit.inference.machine import cpu_count


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("0", None), ("default", None), ("", None)])
def test_the_number_of_cores_can_be_given(given: str, expected: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_CPU_COUNT", given)
    assert cpu_count() == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python reads PYTHON_CPU_COUNT from 3.13 on")
def test_python_reads_the_same_variable() -> None:
    code = "import os; from cassava_kit.inference.machine import cpu_count; print(os.process_cpu_count(), cpu_count())"
    environment = os.environ | {"PYTHON_CPU_COUNT": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "3 3\n", done.stderr
