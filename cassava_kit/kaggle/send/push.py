"""Push a bundle and submit its notebook: every step is looked at, written down, and not done twice (`datasets.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cassava_kit.files import read_json, sha256_bytes, write_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.pack.manifest import MANIFESTS
from cassava_kit.kaggle.send.causes import NO_QUOTA
from cassava_kit.kaggle.send.datasets import Trip, send_dataset
from cassava_kit.kaggle.send.output import fetch_output
from cassava_kit.kaggle.send.remote import FEWEST_HOURS, KaggleError, Patience, Submission
from cassava_kit.kaggle.send.strict import code_cells

LOG_LINES = 30
# How a run ends that did not complete.
FAILED = ("error", "cancel_requested", "cancel_acknowledged")


@dataclass(frozen=True)
class Pushed:
    """A kernel that ran to its end on Kaggle, where its checked output lies here, and its submission if it was made."""

    kernel: str
    version: int
    output: Path
    submission: Submission | None = None


def push(trip: Trip) -> Pushed:
    """Send the datasets, run the kernel, fetch its output; each is checked."""
    bundle, remote = trip.bundle, trip.remote
    adopt_owner(bundle, remote.owner())
    for kind, folder in bundle.datasets:
        send_dataset(trip, folder, kind)
    version = send_kernel(trip)
    kernel = read_json(bundle.kernel_dir / KERNEL_METADATA)["id"]
    wait_for_kernel(trip, kernel, version)
    output = fetch_output(remote, bundle, kernel, version=version, out=trip.output)
    left = "its submission.csv is" if bundle.kernel.weights else "what it left is"
    trip.say(f"{kernel} version {version} ran to its end; {left} in {output}")
    return Pushed(kernel, version, output)


def fetch(bundle: Bundle, *, patience: Patience | None = None, output: Path | None = None) -> Path:
    """Fetch and check what the pushed version of a kernel left, without pushing anything; returns the folder.

    Without a journal of the push it is what the latest version left.
    """
    from cassava_kit.kaggle.send.client import KaggleClient

    patience = patience or Patience()
    remote = KaggleClient(bundle.competition.slug, patience=patience)
    adopt_owner(bundle, remote.owner())
    kernel = read_json(bundle.kernel_dir / KERNEL_METADATA)["id"]
    trip = Trip(bundle, remote, patience)
    version = _pushed_before(trip).get("version")
    wait_for_kernel(trip, kernel, version)
    return fetch_output(remote, bundle, kernel, version=version, out=output)


def adopt_owner(bundle: Bundle, owner: str) -> None:
    """Put the user's name where the bundle still has a placeholder; ValueError where it names somebody else."""
    for path in (*(folder / METADATA_FILE for _, folder in bundle.datasets), bundle.kernel_dir / KERNEL_METADATA):
        metadata = read_json(path)
        written = metadata["id"].partition("/")[0]
        if written not in (owner, PLACEHOLDER_OWNER):
            raise KaggleError(
                f"wrong owner: the bundle is for {written}, the credentials are {owner}'s; "
                "change the id in dataset-metadata.json and package again"
            )
        renamed = _renamed(metadata, f"{PLACEHOLDER_OWNER}/", f"{owner}/")
        if renamed != metadata:
            write_json(path, renamed)


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return [_renamed(item, old, new) for item in value] if isinstance(value, list) else value


def send_kernel(trip: Trip) -> int:
    """Push the notebook, unless this very notebook runs or ran already; returns its version number.

    With `trip.again` one that ran to its end is run once more; one that still runs is waited for all the same.
    """
    folder, remote = trip.bundle.kernel_dir, trip.remote
    metadata = read_json(folder / KERNEL_METADATA)
    source = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    pushed = notebook_hash(metadata, source)
    key, known = _journal_key(trip), _pushed_before(trip)
    before = int(known.get("version") or known.get("newer_than") or 0)
    if known.get("sha256") in (None, pushed):
        version = known.get("version")
        if version is None:  # stopped while pushing, or the journal is lost: did it arrive?
            held = remote.kernel_version(metadata["id"], source)
            version = held if held is not None and held > before else None
        taken_up = ("queued", "running") if trip.again else ("queued", "running", "complete")
        if version is not None and remote.kernel_status(metadata["id"], version)[0] in taken_up:
            trip.remember(**{key: {"sha256": pushed, "version": version}})
            trip.say(f"{metadata['id']} version {version} was pushed already")
            return int(version)
        before = max(before, version or 0)
    hours = remote.gpu_hours_left() if metadata["enable_gpu"] else None
    if hours is not None and hours < FEWEST_HOURS:
        raise KaggleError(NO_QUOTA)
    trip.remember(**{key: {"sha256": pushed, "version": None, "newer_than": before}})
    version = remote.push_kernel(folder, before)
    trip.remember(**{key: {"sha256": pushed, "version": version}})
    trip.say(f"pushed {metadata['id']} version {version}")
    return version


def notebook_hash(metadata: dict[str, Any], source: str) -> str:
    """Return the hash of a notebook's cells and its metadata, whichever way their JSON is written."""
    content = {"cells": code_cells(json.loads(source)), "metadata": metadata}
    return sha256_bytes(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def _journal_key(trip: Trip) -> str:
    kernel = trip.bundle.kernel
    return "kernel" if kernel.weights else f"kernel {kernel.name}"


def _pushed_before(trip: Trip) -> dict[str, Any]:
    """Return what the journal holds of the latest push: hash and version (None: not known to have arrived)."""
    return dict(trip.known().get(_journal_key(trip)) or {})


def planned_calls(bundle: Bundle, *, submit: bool = False) -> list[str]:
    """Return every call that pushing this bundle would make, in order; nothing is called."""
    slug = bundle.competition.slug
    calls = [f"GetCompetition {slug}: whether its rules are accepted"]
    calls += [f"GetSubmissionLimits {slug}: how many are left today"] if bundle.kernel.weights else []
    for kind, folder in bundle.datasets:
        dataset = read_json(folder / METADATA_FILE)["id"]
        files = sorted(path for path in folder.iterdir() if path.name != METADATA_FILE)
        calls.append(f"GetDatasetStatus {dataset}")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}: if it is this build, the upload is left out")
        calls += [f"StartBlobUpload {path.name}, PUT {path.stat().st_size} bytes" for path in files]
        calls.append(f"CreateDataset {dataset}, private (GetDataset and CreateDatasetVersion if it exists)")
        calls.append(f"GetDatasetStatus {dataset} until it is ready")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}, held against what was packed")
        calls.append(f"ListDatasetFiles {dataset}, held against the manifest")
    metadata = read_json(bundle.kernel_dir / KERNEL_METADATA)
    sources = metadata["dataset_sources"] + metadata["competition_sources"] + metadata["kernel_sources"]
    given = ", ".join(sources)
    calls.append(f"GetKernel {metadata['id']}: if it is this notebook and runs or ran, it is not pushed again")
    calls += ["GetAcceleratorQuotaStatistics"] if metadata["enable_gpu"] else []
    calls.append(f"SaveKernel {metadata['id']}, {metadata.get('machine_shape', 'CPU')}, internet off, with {given}")
    calls.append(f"GetKernelSessionStatus {metadata['id']} until it has ended")
    left = "GET submission.csv, GET run.json" if bundle.kernel.weights else "GET each file"
    calls.append(f"ListKernelSessionOutput {metadata['id']}, {left}")
    if submit:
        calls.append(f"ListSubmissions {slug}: if this build is there, it is not submitted again")
        calls.append(f"CreateCodeSubmission {slug} {metadata['id']} submission.csv")
        calls.append(f"ListSubmissions {slug} until it has a score")
    return calls


def wait_for_kernel(trip: Trip, kernel: str, version: int | None = None) -> None:
    """Poll until a version's run has ended.

    Raises:
        KaggleError: the run failed (with its message; the end of its log is printed), was cancelled, or has not ended.
    """
    said = ""
    for _ in trip.patience.polls(trip.patience.kernel):
        status, message = trip.remote.kernel_status(kernel, version)
        if status == "complete":
            return
        if status in FAILED:
            tail = "\n".join(trip.remote.kernel_log(kernel, version).splitlines()[-LOG_LINES:])
            trip.say(f"the end of the log of {kernel}:\n{tail}")
            raise KaggleError(
                f"{kernel} ended with {status}: {message or 'Kaggle gives no reason; see the log above'}; "
                "push again to run it once more"
            )
        if status != said:
            trip.say(f"{kernel} is {status}")
            said = status
    raise KaggleError(f"{kernel} did not end in {trip.patience.kernel / 3600:g} h; call again, it goes on from here")


def was_submitted(trip: Trip) -> bool:
    """Return whether a version of this build was submitted, and is not to be submitted again."""
    if trip.again:
        return False
    begins, known = f"{_description(trip.bundle)},", trip.known().get("submission") or {}
    return str(known.get("description", "")).startswith(begins) or any(
        each.description.startswith(begins) for each in trip.remote.submissions()
    )


def ask_before_last(trip: Trip) -> Trip:
    """Print how many submissions are left today, where Kaggle says so, and ask before the last one.

    Raises:
        KaggleError: none is left today, or the last one is to be kept.
    """
    left = trip.remote.submissions_left()
    if left is not None:
        trip.say(f"submissions left today: {left}")
    if left == 0:
        raise KaggleError("no submission is left today; submit again after midnight UTC (push runs the notebook now)")
    if left == 1 and not trip.confirm("This is the last submission of today. Make it?"):
        raise KaggleError("not submitted: it would be the last submission of today; --yes makes it without asking")
    return replace(trip, asked=True)


def submit(trip: Trip, pushed: Pushed) -> Submission:
    """Submit the pushed version once, and wait for its score."""
    description = f"{_description(trip.bundle)}, version {pushed.version}"
    known = trip.known().get("submission") or {}
    made = known if known.get("description") == description else _listed(trip, description)
    if made:
        trip.say(f"{pushed.kernel} version {pushed.version} was submitted already")
    else:
        trip = trip if trip.asked else ask_before_last(trip)
        ref = trip.remote.submit(pushed.kernel, pushed.version, description)
        made = {"ref": ref, "description": description}
        trip.remember(submission=made)
        trip.say(f"submitted {pushed.kernel} version {pushed.version}")
    if made.get("status") == "complete":
        found = Submission(**made)
    else:
        found = wait_for_score(trip, lambda each: each.ref == made["ref"] or each.description == description)
    trip.remember(submission=asdict(found))
    trip.say(f"public score {found.score or 'not shown'}")
    return found


def _description(bundle: Bundle) -> str:
    """Return how the description of a build's submissions begins."""
    return f"Cassava Kit build {bundle.build_id[:12]}"


def _listed(trip: Trip, description: str) -> dict[str, Any]:
    """The submission of that description, if it is among the latest that Kaggle lists; empty otherwise."""
    return next((asdict(each) for each in trip.remote.submissions() if each.description == description), {})


def wait_for_score(trip: Trip, ours: Callable[[Submission], bool]) -> Submission:
    """Poll until the submission has a score; KaggleError with Kaggle's reason where it has none."""
    for _ in trip.patience.polls(trip.patience.score):
        found = next((each for each in trip.remote.submissions() if ours(each)), None)
        if found is not None and found.status == "error":
            raise KaggleError(
                f"the submission was not scored: {found.error or 'Kaggle gives no reason'}; scoring runs the notebook "
                "on the hidden images: rehearse with many images and Kaggle's limits (--cpus 4 --memory 29), then "
                "package anew, or submit --again to run and submit this build once more"
            )
        if found is not None and found.status == "complete":
            return found
    raise KaggleError("the submission has no score yet; call again later, it is not submitted twice")
