"""Work in a notebook on Kaggle within its time, on its GPUs: `Session.run` for a verb, `train_folds` for folds."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import CONFIG_FILE, DONE_FILE, OOF_FILE, header_path, read_json

# How often a picture beside a training is drawn anew.
REDRAW_SECONDS = 15.0
# By these a notebook's kernel says that its output is a terminal; a verb then draws bars, line after line.
TERMINAL = ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TERM")
# The output of a notebook is in folders below notebooks/<owner>/<slug>.
DEEPEST_INPUT = 6


@dataclass(frozen=True)
class Session:
    """One run of a notebook: its input and output folders, and its own limit in seconds from `started` (epoch)."""

    input: Path
    output: Path
    started: float
    seconds: float

    @property
    def left(self) -> float:
        """Seconds until the session ends itself."""
        return self.seconds - (time.time() - self.started)

    def run(self, arguments: Sequence[Any], *, gpus: Sequence[int] = (), label: str = "") -> bool:
        """Run a verb in a separate process, on some GPUs or all, until it ends or the session's time is over.

        Its lines are printed, each after `label`. Its finished parts stay in the output, where the next session, with
        this one's output attached, goes on.

        Returns:
            Whether it succeeded.
        """
        before = f"{label} | " if label else ""
        if self.left <= 0:
            print(f"{before}no time left for:", *arguments)
            return False
        environment = {name: value for name, value in os.environ.items() if name not in TERMINAL}
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))} if gpus else {}
        print(f"{before}$ cassava-kit", *arguments, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "cassava_kit", *map(str, arguments)],
            env=environment,
            text=True,
            errors="replace",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the processes of data-parallel training end with it
        )
        timer = threading.Timer(self.left, os.killpg, (process.pid, signal.SIGTERM))
        timer.start()
        for line in process.stdout or ():
            print(f"{before}{line}", end="", flush=True)
        timer.cancel()
        if code := process.wait():
            advice = "attach this notebook's output to itself and run again to go on"
            print(f"{before}exit code {code}:", *arguments, f"({advice})")
        return code == 0

    def take_up(self, folder: Path) -> None:
        """Copy an earlier session's output of that name, if attached: what it has finished is not done again."""
        for depth in (1, 2, 3):
            for earlier in sorted(self.input.glob("*/" * depth + folder.name)):
                if earlier.is_dir():
                    shutil.copytree(earlier, folder, dirs_exist_ok=True)
                    print(f"went on from {earlier}")

    def find_file(self, name: str) -> Path | None:
        """Return an attached file by its name, of a dataset or another notebook's output; None for an empty name.

        Raises:
            FileNotFoundError: nothing that is attached has it.
            UserError: it is there more than once.
        """
        if not name:
            return None
        found = sorted(file for depth in range(1, DEEPEST_INPUT + 1) for file in self.input.glob("*/" * depth + name))
        if not found:
            raise FileNotFoundError(
                f"nothing that is attached has {name}; attach the dataset or the notebook that holds it"
            )
        if len(found) > 1:
            raise UserError(f"{name} is there more than once, give more of the path: {', '.join(map(str, found))}")
        return found[0]


def train_folds(
    session: Session,
    command: Sequence[Any],
    folds: Sequence[int],
    *,
    gpus: Sequence[Sequence[int]],
    watch: Callable[[], None] | None = None,
) -> dict[int, bool]:
    """Run `command --fold k` for each fold k, as many at once as there are sets of GPUs; returns which ended well.

    `watch` is called every few seconds meanwhile, and once at the end: it may draw what the runs have left so far.
    """
    free: SimpleQueue[Sequence[int]] = SimpleQueue()
    for each in gpus:
        free.put(each)

    def train(fold: int) -> bool:
        mine = free.get()
        try:
            return session.run([*command, "--fold", fold], gpus=mine, label=f"fold {fold}")
        finally:
            free.put(mine)

    with ThreadPoolExecutor(len(gpus)) as pool:
        jobs = [pool.submit(train, fold) for fold in folds]
        while wait(jobs, timeout=REDRAW_SECONDS).not_done:
            if watch is not None:
                watch()
    if watch is not None:
        watch()
    return {fold: job.result() for fold, job in zip(folds, jobs, strict=True)}


def share_gpus(count: int, each: int) -> tuple[int, list[list[int]]]:
    """Return how many GPUs a fold gets, and the sets of GPUs; without a GPU one empty set: the processor.

    A fold gets `each`, or all of them where there are fewer. The number is part of what identifies a run.
    """
    each = min(each, count or each)
    sets = [list(range(first, first + each)) for first in range(0, count - each + 1, each)]
    return each, sets or [[]]


def are_joinable(run: Path, n_splits: int) -> bool:
    """Return whether all folds of a run are finished with the same settings, given files, split, code and version."""
    kinds = [_describe_fold(run / f"fold{fold}") for fold in range(n_splits)]
    return None not in kinds and all(kind == kinds[0] for kind in kinds)


def _describe_fold(folder: Path) -> tuple[Any, ...] | None:
    """Return what must be the same in all folds that are joined; None where the fold is not finished."""
    files = [folder / DONE_FILE, folder / CONFIG_FILE, header_path(folder / OOF_FILE)]
    if not all(file.is_file() for file in files):
        return None
    done, config, header = map(read_json, files)
    code = (done.get("fingerprint") or {}).get("code")
    return done.get("given"), config, header["fold_hash"], code, header["kit_version"]
