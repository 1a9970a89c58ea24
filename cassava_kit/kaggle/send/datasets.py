"""The datasets on their way up: created or versioned once, waited for, and held against their manifests.

`push.json` in the bundle's folder remembers what Kaggle has accepted, by build id; Kaggle itself is asked first
wherever it can tell. So a second call after a crash goes on where the first one stopped. Nothing is ever deleted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.manifest import MANIFESTS, problems, read_manifest
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.remote import KaggleError


def send_dataset(job: PushJob, folder: Path, kind: str) -> None:
    """Create or version one dataset, unless this build was sent already; then wait until it is ready and verified."""
    if found := problems(folder, kind):
        raise UserError(f"{folder} is damaged: {'; '.join(found)}; package it again")
    remote, build = job.remote, read_manifest(folder, kind)["build_id"]
    dataset = read_json(folder / METADATA_FILE)["id"]
    status = remote.dataset_status(dataset)
    if status is not None and _holds(job, dataset, kind, build):
        job.say(f"{dataset} holds build {build[:12]} already")
    elif status is not None and _was_sent(job, dataset, build, status):
        job.say(f"build {build[:12]} of {dataset} was sent already; Kaggle still serves the version before")
    else:
        _upload(job, folder, dataset, build, new=status is None)
    wait_for_dataset(job, folder, kind)


def _upload(job: PushJob, folder: Path, dataset: str, build: str, *, new: bool) -> None:
    """Send a build; the journal says so before and after, as a run may be killed in between."""
    before = 0 if new else job.remote.dataset_version(dataset)
    sending = {"build": build, "before": before}
    job.remember(**{dataset: sending | {"sent": False}})
    if new:
        job.say(f"creating {dataset} (build {build[:12]})")
        job.remote.create_dataset(folder)
    else:
        job.say(f"new version of {dataset} (build {build[:12]})")
        job.remote.create_version(folder, f"build {build}", before)
    job.remember(**{dataset: sending | {"sent": True}})


def _holds(job: PushJob, dataset: str, kind: str, build: str) -> bool:
    """Return whether Kaggle serves this build; the journal answers where the manifest cannot be fetched."""
    held, entry = job.remote.dataset_build(dataset, MANIFESTS[kind]), _journal_entry(job, dataset)
    return held == build if held is not None else bool(entry["build"] == build and entry["sent"])


def _was_sent(job: PushJob, dataset: str, build: str, status: str) -> bool:
    """Return whether this build was sent although Kaggle serves another one, as it does while it processes a version.

    The journal is believed until the dataset is ready; then the number of the latest version tells whether ours did
    arrive and whether a later one was uploaded elsewhere.
    """
    entry = _journal_entry(job, dataset)
    if entry["build"] != build or status != "ready":
        return bool(entry["build"] == build)
    before, now = entry["before"], job.remote.dataset_version(dataset)
    if job.again or before is None or now is None:
        return bool(entry["sent"]) and not job.again
    return bool(now <= before + 1 if entry["sent"] else now == before + 1)


def _journal_entry(job: PushJob, dataset: str) -> dict[str, Any]:
    """Return what the journal holds of a dataset: build, version before it, and whether Kaggle accepted it."""
    entry = job.known().get(dataset)
    if isinstance(entry, str):  # the build alone, as earlier journals have it
        entry = {"build": entry, "sent": True}
    return {"build": None, "before": None, "sent": False} | (entry or {})


def wait_for_dataset(job: PushJob, folder: Path, kind: str) -> None:
    """Poll until the dataset is ready and what it holds is what was packed."""
    dataset = read_json(folder / METADATA_FILE)["id"]
    status: str | None = None
    verdict = "not looked at"
    for _ in job.waits.polls(job.waits.dataset):
        status = job.remote.dataset_status(dataset)
        if status in ("failed", "deleted"):
            job.remember(**{dataset: None})
            raise KaggleError(f"Kaggle could not process {dataset} ({status}); look at it on kaggle.com and push again")
        if status == "ready":
            verdict = verify_dataset(job, folder, kind)
            if verdict != "stale":
                job.say(f"{dataset} is ready; {verdict}")
                return
    if status == "ready":
        raise KaggleError(
            f"{dataset} is ready, but {verdict}: Kaggle serves another build than was sent; push again later, or with "
            "--again to upload it once more"
        )
    raise KaggleError(
        f"{dataset} is still processing ({status}, {verdict}); push again later, nothing is uploaded twice"
    )


def verify_dataset(job: PushJob, folder: Path, kind: str) -> str:
    """`verified ...`, `stale` (Kaggle still serves something else), or why it could not be looked at."""
    manifest, dataset = read_manifest(folder, kind), read_json(folder / METADATA_FILE)["id"]
    held = job.remote.dataset_build(dataset, MANIFESTS[kind])
    if held is not None and held != manifest["build_id"]:
        return "stale"
    sizes = job.remote.dataset_sizes(dataset)
    if sizes is not None:
        wanted = {entry["name"]: entry["size"] for entry in manifest["files"]}
        # A size of 0 is one that Kaggle does not know yet.
        wrong = [name for name, size in wanted.items() if sizes.get(name) not in (size, 0)]
        if wrong and held is not None:
            missing = ", ".join(sorted(wrong))
            raise KaggleError(
                f"{dataset} arrived without, or with another size of: {missing}; push again with another build, or "
                "delete the dataset on kaggle.com and push again"
            )
        if wrong:
            return "stale"
    if held is None and sizes is None:
        return "its content could not be listed (the notebook will hold it against the manifest)"
    return "verified against the manifest"
