"""Run a notebook in a separate process, in the strongest isolation that the machine allows: `run_notebook`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, write_json
from cassava_kit.kaggle.rehearse import execute
from cassava_kit.kaggle.rehearse.isolation import (
    Isolation,
    find_isolations,
    link_tree,
    private_environment,
    write_start,
)
from cassava_kit.kaggle.rehearse.options import CellProgress, NotebookRun

LONGEST_COMPLAINT = 2000


def run_notebook(run: NotebookRun, scratch: Path) -> tuple[dict[str, Any], Isolation]:
    """Run a notebook; `scratch` is a temporary folder.

    Returns:
        The result of `execute.py` (error, log, seconds, peak_memory; an error alone where it did not start), and the
        isolation that was used.

    Raises:
        UserError: the machine does not allow the isolation that was asked for.
    """
    for isolation in find_isolations(run.options.isolation):
        place = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
        environment = _make_environment(run, place, isolation)
        spec = _make_spec(run, place, isolation)
        write_json(place / "spec.json", spec)
        script = Path(execute.__file__).resolve()
        # -P: the script's own folder, which is the kit's, does not go on the path.
        command = [*isolation.command, run.options.python, "-P", str(script), str(place / "spec.json")]
        code, complaint = _follow(command, environment, place, run.options.progress)
        if code == execute.NO_NAMESPACE:
            continue
        if Path(spec["result"]).is_file():
            return read_json(spec["result"]), isolation
        return {"error": f"the notebook could not be run (exit code {code}): {complaint}"}, isolation
    raise UserError("this machine cannot set up the isolation that was asked for; leave the choice to the rehearsal")


def _follow(
    command: Sequence[str], environment: dict[str, str], place: Path, progress: CellProgress | None
) -> tuple[int, str]:
    """Run a command and pass on its progress; returns its exit code and the end of its standard error.

    What ends this function ends the command and all that it started: a notebook does not go on behind a stopped run.
    """
    with (place / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            for line in process.stdout or ():
                if progress and line.startswith('{"cell"'):
                    step = json.loads(line)
                    progress(step["cell"], step["cells"])
            code = process.wait()
        except BaseException:
            for pid in (process.pid, *execute.descendants(process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
            raise
        errors.seek(0)
        return code, errors.read().strip()[-LONGEST_COMPLAINT:]


def _make_environment(run: NotebookRun, place: Path, isolation: Isolation) -> dict[str, str]:
    environment = private_environment(place)
    if run.options.minutes:
        # As on Kaggle, where the notebook stops itself after 8.5 of the 9 hours.
        own_share = run.competition.submission_seconds / (run.competition.gpu_hours * 3600)
        environment["CASSAVA_KIT_TIME_LIMIT"] = f"{run.options.minutes * 60 * own_share:.1f}"
    if not isolation.mounts:
        environment["KAGGLE_INPUT_DIR"] = str(link_tree(run.mounts, place / "input"))
        environment["KAGGLE_WORKING_DIR"] = str(run.working)
    environment["PYTHONPATH"] = str(write_start(place, closed=not isolation.network))
    return environment


def _make_spec(run: NotebookRun, place: Path, isolation: Isolation) -> dict[str, Any]:
    options = run.options
    return {
        "scratch": str(place),
        "notebook": str(run.notebook),
        "executed": str(run.out / run.notebook.name),
        "result": str(place / "result.json"),
        "working": str(run.working),
        "cwd": "/kaggle/working" if isolation.mounts else str(run.working),
        "mounts": [[str(mount.source), str(mount.target)] for mount in run.mounts],
        "network_namespace": isolation.network,
        "mount_namespace": isolation.mounts,
        "cpus": options.cpus,
        "memory": int(options.memory * 2**30) if options.memory else None,
        "seconds": options.minutes * 60 if options.minutes else None,
    }
