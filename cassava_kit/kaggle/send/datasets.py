"""The datasets on their way up: created or versioned once, waited for, and held against their manifests.

`push.json` in the bundle's folder remembers what Kaggle has accepted, by build id; Kaggle itself is asked first
wherever it can tell. So a second call after a crash goes on where the first one stopped. Nothing is ever deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, write_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.manifest import MANIFESTS, problems, read_manifest
from cassava_kit.kaggle.send.remote import KaggleError, Patience, Remote, Say

JOURNAL = "push.json"


@dataclass(frozen=True)
class Trip:
    """One way to Kaggle and back: the bundle, who does the calls, and how long to wait."""

    bundle: Bundle
    remote: Remote
    patience: Patience
    say: Say = print
    # Whether what was done already is done once more.
    again: bool = False
    # Where the output is put; None: in the bundle's folder.
    output: Path | None = None
    # Answers a question before the last submission of the day is made; `asked`: it was answered, or need not be.
    confirm: Callable[[str], bool] = lambda question: False
    asked: bool = False

    @property
    def journal(self) -> Path:
        """The file that remembers what was accepted."""
        return self.bundle.home / JOURNAL

    def remember(self, **facts: Any) -> None:
        """Add facts to the journal."""
        write_json(self.journal, self.known() | facts)

    def known(self) -> dict[str, Any]:
        """What the journal holds."""
        return dict(read_json(self.journal)) if self.journal.is_file() else {}


def send_dataset(trip: Trip, folder: Path, kind: str) -> None:
    """Create or version one dataset, unless this build was sent already; then wait until it is ready and verified."""
    if found := problems(folder, kind):
        raise UserError(f"{folder} is damaged: {'; '.join(found)}; package it again")
    remote, build = trip.remote, read_manifest(folder, kind)["build_id"]
    dataset = read_json(folder / METADATA_FILE)["id"]
    status = remote.dataset_status(dataset)
    if status is not None and _holds(trip, dataset, kind, build):
        trip.say(f"{dataset} holds build {build[:12]} already")
    elif status is not None and _was_sent(trip, dataset, build, status):
        trip.say(f"build {build[:12]} of {dataset} was sent already; Kaggle still serves the version before")
    else:
        _upload(trip, folder, dataset, build, new=status is None)
    wait_for_dataset(trip, folder, kind)


def _upload(trip: Trip, folder: Path, dataset: str, build: str, *, new: bool) -> None:
    """Send a build; the journal says so before and after, as a run may be killed in between."""
    before = 0 if new else trip.remote.dataset_version(dataset)
    sending = {"build": build, "before": before}
    trip.remember(**{dataset: sending | {"sent": False}})
    if new:
        trip.say(f"creating {dataset} (build {build[:12]})")
        trip.remote.create_dataset(folder)
    else:
        trip.say(f"new version of {dataset} (build {build[:12]})")
        trip.remote.create_version(folder, f"build {build}", before)
    trip.remember(**{dataset: sending | {"sent": True}})


def _holds(trip: Trip, dataset: str, kind: str, build: str) -> bool:
    """Return whether Kaggle serves this build; the journal answers where the manifest cannot be fetched."""
    held, entry = trip.remote.dataset_build(dataset, MANIFESTS[kind]), _journal_entry(trip, dataset)
    return held == build if held is not None else bool(entry["build"] == build and entry["sent"])


def _was_sent(trip: Trip, dataset: str, build: str, status: str) -> bool:
    """Return whether this build was sent although Kaggle serves another one, as it does while it processes a version.

    The journal is believed until the dataset is ready; then the number of the latest version tells whether ours did
    arrive and whether a later one was uploaded elsewhere.
    """
    entry = _journal_entry(trip, dataset)
    if entry["build"] != build or status != "ready":
        return bool(entry["build"] == build)
    before, now = entry["before"], trip.remote.dataset_version(dataset)
    if trip.again or before is None or now is None:
        return bool(entry["sent"]) and not trip.again
    return bool(now <= before + 1 if entry["sent"] else now == before + 1)


def _journal_entry(trip: Trip, dataset: str) -> dict[str, Any]:
    """Return what the journal holds of a dataset: build, version before it, and whether Kaggle accepted it."""
    entry = trip.known().get(dataset)
    if isinstance(entry, str):  # the build alone, as earlier journals have it
        entry = {"build": entry, "sent": True}
    return {"build": None, "before": None, "sent": False} | (entry or {})


def wait_for_dataset(trip: Trip, folder: Path, kind: str) -> None:
    """Poll until the dataset is ready and what it holds is what was packed."""
    dataset = read_json(folder / METADATA_FILE)["id"]
    status: str | None = None
    verdict = "not looked at"
    for _ in trip.patience.polls(trip.patience.dataset):
        status = trip.remote.dataset_status(dataset)
        if status in ("failed", "deleted"):
            trip.remember(**{dataset: None})
            raise KaggleError(f"Kaggle could not process {dataset} ({status}); look at it on kaggle.com and push again")
        if status == "ready":
            verdict = verify_dataset(trip, folder, kind)
            if verdict != "stale":
                trip.say(f"{dataset} is ready; {verdict}")
                return
    if status == "ready":
        raise KaggleError(
            f"{dataset} is ready, but {verdict}: Kaggle serves another build than was sent; push again later, or with "
            "--again to upload it once more"
        )
    raise KaggleError(
        f"{dataset} is still processing ({status}, {verdict}); push again later, nothing is uploaded twice"
    )


def verify_dataset(trip: Trip, folder: Path, kind: str) -> str:
    """`verified ...`, `stale` (Kaggle still serves something else), or why it could not be looked at."""
    manifest, dataset = read_manifest(folder, kind), read_json(folder / METADATA_FILE)["id"]
    held = trip.remote.dataset_build(dataset, MANIFESTS[kind])
    if held is not None and held != manifest["build_id"]:
        return "stale"
    sizes = trip.remote.dataset_sizes(dataset)
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
