"""Ctrl-C and SIGTERM in a training: one line, the exit code, no process left, and the same command goes on."""

import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from processes import start_python
from programs import command

from cassava_kit.data.folds import write_folds


def children(pid: int) -> set[int]:
    """The processes that a process has started."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            found |= {int(folder.name)} if parent == pid else set()
    return found


@pytest.mark.slow  # programs that import torch
@pytest.mark.parametrize(("number", "code", "jobs"), [(signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 1)])
def test_a_stopped_training_says_after_which_epoch_and_goes_on(number, code, jobs, tiny_dir, tiny_folds, tmp_path):
    folds, out = tmp_path / "folds.csv", tmp_path / "runs"
    write_folds(folds, tiny_folds)
    settings = ("epochs=100000", "batch_size=8")
    arguments = command(tiny_dir, folds, out, "--jobs", str(jobs), settings=settings)
    arguments += ["--fold", "1"] if jobs == 2 else []
    figures = [out / f"small_vit/fold{k}/metrics.csv" for k in range(jobs)]

    def run_until(epochs: int) -> tuple[int, list[str]]:
        """Exit code and lines of a program that is stopped once every fold has so many epochs."""
        process = start_python(arguments)
        process.wait_until(lambda: all(file.is_file() and len(pd.read_csv(file)) >= epochs for file in figures))
        started = children(process.pid)
        process.send_signal(number)  # to the program alone, as `kill` sends it
        ended = process.wait()
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        return ended, process.err.read_text().splitlines()

    for epochs in (2, 5):
        ended, said = run_until(epochs)
        assert ended == code and "Traceback" not in "\n".join(said)
        done = [int(figure) for figure in re.findall(r"after epoch (\d+)", said[-1])]
        assert said[-1].startswith("stopped ") and said[-1].endswith("; the same command goes on")
        assert len(done) == jobs and min(done) >= epochs - 1  # the figures are written before what is resumed from
        assert sum(line.startswith("stopped") for line in said) == 1
    assert not any((file.parent / "run.json").exists() for file in figures)
