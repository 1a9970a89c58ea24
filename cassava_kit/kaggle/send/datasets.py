"""Upload a bundle's datasets once and verify them: `send_dataset`.

The journal `push.json` in the bundle's folder holds the build that was sent last. Kaggle is asked first where it can
tell. So a second call continues after a crash. Nothing is deleted on Kaggle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.manifest import MANIFESTS, find_problems, read_manifest
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.remote import KaggleError


def send_dataset(job: PushJob, folder: Path, kind: str) -> None:
    """Create or version one dataset, unless this build was sent before; then wait until it is ready and verified.

    Raises:
        UserError: `folder` differs from its manifest.
        KaggleError: Kaggle refuses the dataset, cannot process it, or is not ready in time.
    """
    if found := find_problems(folder, kind):
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
    """Upload a build and write the journal before and after, so that a run killed in between is recognized."""
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
    """Return whether Kaggle serves this build; without a manifest from Kaggle the journal decides."""
    held, entry = job.remote.dataset_build(dataset, MANIFESTS[kind]), _journal_entry(job, dataset)
    return held == build if held is not None else bool(entry["build"] == build and entry["sent"])


def _was_sent(job: PushJob, dataset: str, build: str, status: str) -> bool:
    """Return whether this build was sent although Kaggle serves another one.

    While Kaggle processes a version it serves the one before: until the dataset is ready the journal decides. After
    that the number of the latest version shows whether this build arrived and whether another one came after it.
    """
    entry = _journal_entry(job, dataset)
    if entry["build"] != build or status != "ready":
        return bool(entry["build"] == build)
    before, now = entry["before"], job.remote.dataset_version(dataset)
    if job.again or before is None or now is None:
        return bool(entry["sent"]) and not job.again
    return bool(now <= before + 1 if entry["sent"] else now == before + 1)


def _journal_entry(job: PushJob, dataset: str) -> dict[str, Any]:
    """Return the journal's entry of a dataset: `build`, the version `before` it, and whether it was `sent`."""
    entry = job.known().get(dataset)
    if isinstance(entry, str):  # an earlier journal: the build id alone
        entry = {"build": entry, "sent": True}
    return {"build": None, "before": None, "sent": False} | (entry or {})


def wait_for_dataset(job: PushJob, folder: Path, kind: str) -> None:
    """Poll until the dataset is ready and holds the files that were packed.

    Raises:
        KaggleError: Kaggle cannot process the dataset, or the wait is over.
    """
    dataset = read_json(folder / METADATA_FILE)["id"]
    status: str | None = None
    verdict = "not compared"
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
    """Compare what Kaggle serves with the manifest of `folder`.

    Returns:
        `verified ...`, `stale` (Kaggle serves another build), or why the content could not be compared.

    Raises:
        KaggleError: A file is missing or has another size.
    """
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
        return "its content could not be listed (the notebook will check it against the manifest)"
    return "verified against the manifest"
