"""The notebook on Kaggle: `send_kernel` pushes it once, `wait_for_kernel` waits until its run has ended."""

from __future__ import annotations

import json
from typing import Any

from cassava_kit.files import read_json, sha256_bytes
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.send.advice import NO_QUOTA
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.remote import FEWEST_HOURS, KaggleError

LOG_LINES = 30
# How a run ends that did not complete.
FAILED_STATUSES = ("error", "cancel_requested", "cancel_acknowledged")


def send_kernel(job: PushJob) -> int:
    """Push the notebook unless the same notebook runs or ran; return its version number.

    With `job.again` a complete run is repeated; one that still runs is waited for.

    Raises:
        KaggleError: Kaggle refuses the notebook, too few GPU hours are left, or the user does not want it beside one
            that runs.
    """
    folder, remote = job.bundle.kernel_dir, job.remote
    metadata = read_json(folder / KERNEL_METADATA)
    source = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    pushed = notebook_hash(metadata, source)
    key, known = _journal_key(job), pushed_before(job)
    before = int(known.get("version") or known.get("newer_than") or 0)
    if known.get("sha256") in (None, pushed):
        version = known.get("version")
        if version is None:  # killed while pushing, or without a journal: ask whether it arrived
            held = remote.kernel_version(metadata["id"], source)
            version = held if held is not None and held > before else None
        taken_up = ("queued", "running") if job.again else ("queued", "running", "complete")
        if version is not None and remote.kernel_status(metadata["id"], version)[0] in taken_up:
            job.remember(**{key: {"sha256": pushed, "version": version}})
            job.say(f"{metadata['id']} version {version} was pushed already")
            return int(version)
        before = max(before, version or 0)
    else:
        _ask_beside_running(job, metadata["id"], known.get("version"))
    hours = remote.gpu_hours_left() if metadata["enable_gpu"] else None
    if hours is not None and hours < FEWEST_HOURS:
        raise KaggleError(NO_QUOTA)
    job.remember(**{key: {"sha256": pushed, "version": None, "newer_than": before}})
    version = remote.push_kernel(folder, before)
    job.remember(**{key: {"sha256": pushed, "version": version}})
    job.say(f"pushed {metadata['id']} version {version}")
    return version


def _ask_beside_running(job: PushJob, kernel: str, version: int | None) -> None:
    """Ask before a changed notebook is pushed while the version before it still runs.

    Raises:
        KaggleError: It runs, and the user does not want a second session.
    """
    if version is None or job.remote.kernel_status(kernel, version)[0] not in ("queued", "running"):
        return
    running = f"{kernel} version {version}, of another notebook or with other settings, is still running"
    if not job.confirm(f"{running} and goes on to take GPU hours. Push this one beside it?"):
        raise KaggleError(
            f"not pushed: {running}; wait for it, or stop it on kaggle.com/code/{kernel}, and push again (--yes pushes "
            "beside it)"
        )


def notebook_hash(metadata: dict[str, Any], source: str) -> str:
    """Return the hash of a notebook's cells and metadata; it does not depend on how their JSON is written."""
    content = {"cells": code_cells(json.loads(source)), "metadata": metadata}
    return sha256_bytes(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def _journal_key(job: PushJob) -> str:
    kernel = job.bundle.kernel
    return "kernel" if kernel.weights else f"kernel {kernel.name}"


def pushed_before(job: PushJob) -> dict[str, Any]:
    """Return the journal's entry of the latest push: `sha256` and `version` (None: it may not have arrived)."""
    return dict(job.known().get(_journal_key(job)) or {})


def wait_for_kernel(job: PushJob, kernel: str, version: int | None = None) -> None:
    """Poll until a version's run has ended.

    Raises:
        KaggleError: The run failed or was cancelled (the end of its log is printed), or has not ended in time.
    """
    said = ""
    for _ in job.waits.polls(job.waits.kernel):
        status, message = job.remote.kernel_status(kernel, version)
        if status == "complete":
            return
        if status in FAILED_STATUSES:
            job.say(f"the end of the log of {kernel}:\n{_log_tail(job, kernel, version)}")
            raise KaggleError(
                f"{kernel} ended with {status}: {message or 'Kaggle gives no reason; see the log above'}; "
                "push again to run it once more"
            )
        if status != said:
            job.say(f"{kernel} is {status}")
            said = status
    raise KaggleError(f"{kernel} did not end in {job.waits.kernel / 3600:g} h; call again to go on waiting")


def _log_tail(job: PushJob, kernel: str, version: int | None) -> str:
    """Return the last lines of a run's log, or why there is none: that must not hide why the run failed."""
    try:
        return "\n".join(job.remote.kernel_log(kernel, version).splitlines()[-LOG_LINES:])
    except KaggleError as error:
        return str(error)


def code_cells(notebook: dict[str, Any]) -> list[str]:
    """Return the source of each cell, whether it is stored as one string or as lines."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]
