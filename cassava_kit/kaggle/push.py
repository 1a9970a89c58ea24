"""Push a bundle and submit its notebook: every step is looked at, written down, and not done twice.

`push.json` beside the bundle remembers what Kaggle has accepted, by build id; Kaggle itself is asked first wherever it
can tell. So a second call after a crash goes on where the first one stopped. Nothing is ever deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.competition import CASSAVA, Competition
from cassava_kit.files import read_json, sha256_bytes, write_json
from cassava_kit.kaggle.bundle import Bundle
from cassava_kit.kaggle.client import KaggleError, Patience, Remote, Say, Submission
from cassava_kit.kaggle.config import METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.kernels import KERNEL_METADATA
from cassava_kit.kaggle.manifest import MANIFESTS, problems, read_manifest

JOURNAL = "push.json"
LOG_LINES = 30
FEWEST_HOURS = 0.25


@dataclass(frozen=True)
class Pushed:
    """A notebook that ran to its end on Kaggle, and where its checked output lies here."""

    kernel: str
    version: int
    output: Path


@dataclass(frozen=True)
class Trip:
    """One way to Kaggle and back: the bundle, who does the calls, and how long to wait."""

    bundle: Bundle
    remote: Remote
    patience: Patience
    say: Say = print

    @property
    def journal(self) -> Path:
        """The file that remembers what was accepted."""
        return self.bundle.kit_dir.parent / JOURNAL

    def remember(self, **facts: Any) -> None:
        """Add facts to the journal."""
        write_json(self.journal, self.known() | facts)

    def known(self) -> dict[str, Any]:
        """What the journal holds."""
        return dict(read_json(self.journal)) if self.journal.is_file() else {}


def go(
    root: Path, bundle: Bundle, *, send: bool = False, images_dir: Path | None = None, patience: Patience | None = None
) -> Pushed:
    """Examine the bundle with Kaggle's help, push it, and with `send` submit it; every step is printed.

    KaggleError where the doctor finds a cause that would end the submission: nothing has been uploaded then.
    """
    from cassava_kit.kaggle.client import KaggleClient
    from cassava_kit.kaggle.doctor import doctor

    patience = patience or Patience()
    remote = KaggleClient(CASSAVA.slug, patience=patience)
    adopt_owner(bundle, remote.owner())
    checks = doctor(root, bundle.kit_dir.parent, remote=remote)
    failed = [str(check) for check in checks if check.status == "failed"]
    print("\n".join(map(str, checks)))
    if failed:
        raise KaggleError(f"not pushed: {'; '.join(failed)}")
    trip = Trip(bundle, remote, patience)
    pushed = push(trip, images_dir=images_dir)
    if send:
        submit(trip, pushed)
    return pushed


def push(trip: Trip, *, images_dir: Path | None = None) -> Pushed:
    """Datasets up and verified, kernel run, output fetched and checked against `images_dir` if it is given."""
    bundle, remote = trip.bundle, trip.remote
    adopt_owner(bundle, remote.owner())
    for kind, folder in (("kit", bundle.kit_dir), ("weights", bundle.weights_dir)):
        send_dataset(trip, folder, kind)
    version = send_kernel(trip)
    kernel = read_json(bundle.kernel_dir / KERNEL_METADATA)["id"]
    wait_for_kernel(trip, kernel)
    output = bundle.kit_dir.parent / "output"
    output.mkdir(exist_ok=True)
    for stale in ("submission.csv", "run.json"):
        (output / stale).unlink(missing_ok=True)
    remote.kernel_output(kernel, output)
    check_output(output, images_dir)
    trip.say(f"{kernel} version {version} ran to its end; its submission.csv is in {output}")
    return Pushed(kernel, version, output)


def adopt_owner(bundle: Bundle, owner: str) -> None:
    """Put the user's name where the bundle still has a placeholder; ValueError where it names somebody else."""
    metadata = read_json(bundle.kit_dir / METADATA_FILE)["id"]
    written = metadata.partition("/")[0]
    if written not in (owner, PLACEHOLDER_OWNER):
        raise KaggleError(
            f"wrong owner: the bundle is for {written}, the credentials are {owner}'s; "
            "change the id in dataset-metadata.json and package again"
        )
    if written == owner:
        return
    for path in (
        bundle.kit_dir / METADATA_FILE,
        bundle.weights_dir / METADATA_FILE,
        bundle.kernel_dir / KERNEL_METADATA,
    ):
        write_json(path, _renamed(read_json(path), f"{PLACEHOLDER_OWNER}/", f"{owner}/"))


def _renamed(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return {key: _renamed(item, old, new) for key, item in value.items()}
    return [_renamed(item, old, new) for item in value] if isinstance(value, list) else value


def send_dataset(trip: Trip, folder: Path, kind: str) -> None:
    """Create or version one dataset, unless Kaggle holds this very build; then wait until it is ready and verified."""
    if found := problems(folder, kind):
        raise ValueError(f"{folder} is damaged: {'; '.join(found)}; package it again")
    remote, build = trip.remote, read_manifest(folder, kind)["build_id"]
    dataset = read_json(folder / METADATA_FILE)["id"]
    status = remote.dataset_status(dataset)
    if status is not None and _holds(trip, dataset, kind, build):
        trip.say(f"{dataset} holds build {build[:12]} already")
    elif status is None:
        trip.say(f"creating {dataset} (build {build[:12]})")
        remote.create_dataset(folder)
    else:
        trip.say(f"new version of {dataset} (build {build[:12]})")
        remote.create_version(folder, f"build {build}")
    trip.remember(**{dataset: build})
    wait_for_dataset(trip, folder, kind)


def _holds(trip: Trip, dataset: str, kind: str, build: str) -> bool:
    held = trip.remote.dataset_build(dataset, MANIFESTS[kind])
    return held == build if held is not None else trip.known().get(dataset) == build


def wait_for_dataset(trip: Trip, folder: Path, kind: str) -> None:
    """Poll until the dataset is ready and what it holds is what was packed."""
    dataset = read_json(folder / METADATA_FILE)["id"]
    status: str | None = None
    verdict = "not looked at"
    for _ in trip.patience.polls(trip.patience.dataset):
        status = trip.remote.dataset_status(dataset)
        if status in ("failed", "deleted"):
            raise KaggleError(f"Kaggle could not process {dataset} ({status}); look at it on kaggle.com and push again")
        if status == "ready":
            verdict = verify_dataset(trip, folder, kind)
            if verdict != "stale":
                trip.say(f"{dataset} is ready; {verdict}")
                return
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
            raise KaggleError(f"{dataset} arrived without, or with another size of: {missing}; push again")
        if wrong:
            return "stale"
    if held is None and sizes is None:
        return "its content could not be listed (the notebook will hold it against the manifest)"
    return "verified against the manifest"


def send_kernel(trip: Trip) -> int:
    """Push the notebook, unless this very notebook runs or ran already; its version number."""
    folder, remote = trip.bundle.kernel_dir, trip.remote
    metadata = read_json(folder / KERNEL_METADATA)
    source = (folder / metadata["code_file"]).read_text(encoding="utf-8")
    pushed = sha256_bytes((source + (folder / KERNEL_METADATA).read_text(encoding="utf-8")).encode())
    known = trip.known().get("kernel") or {}
    if known.get("sha256") == pushed:
        if known.get("version") is None:  # stopped while pushing: did it arrive?
            known["version"] = remote.kernel_version(metadata["id"], source)
        if known["version"] is not None and remote.kernel_status(metadata["id"])[0] in (
            "queued",
            "running",
            "complete",
        ):
            trip.remember(kernel=known)
            trip.say(f"{metadata['id']} version {known['version']} was pushed already")
            return int(known["version"])
    hours = remote.gpu_hours_left() if metadata["enable_gpu"] else None
    if hours is not None and hours < FEWEST_HOURS:
        raise KaggleError("this week's GPU quota is used up (kaggle.com/settings shows when it is renewed)")
    trip.remember(kernel={"sha256": pushed, "version": None})
    version = remote.push_kernel(folder)
    trip.remember(kernel={"sha256": pushed, "version": version})
    trip.say(f"pushed {metadata['id']} version {version}")
    return version


def planned_calls(bundle: Bundle, *, submit: bool = False, competition: Competition = CASSAVA) -> list[str]:
    """Every call that pushing this bundle would make, in order; nothing is called."""
    calls = []
    for kind, folder in (("kit", bundle.kit_dir), ("weights", bundle.weights_dir)):
        dataset = read_json(folder / METADATA_FILE)["id"]
        files = sorted(path for path in folder.iterdir() if path.name != METADATA_FILE)
        calls.append(f"GetDatasetStatus {dataset}")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}: if it is this build, the upload is left out")
        calls += [f"StartBlobUpload {path.name}, PUT {path.stat().st_size} bytes" for path in files]
        calls.append(f"CreateDataset {dataset}, private (CreateDatasetVersion if it exists)")
        calls.append(f"GetDatasetStatus {dataset} until it is ready")
        calls.append(f"DownloadDataset {dataset} {MANIFESTS[kind]}, held against what was packed")
        calls.append(f"ListDatasetFiles {dataset}, held against the manifest")
    metadata = read_json(bundle.kernel_dir / KERNEL_METADATA)
    given = ", ".join(metadata["dataset_sources"] + metadata["competition_sources"])
    calls.append("GetAcceleratorQuotaStatistics")
    calls.append(f"SaveKernel {metadata['id']}, {metadata['machine_shape']}, internet off, with {given}")
    calls.append(f"GetKernelSessionStatus {metadata['id']} until it has ended")
    calls.append(f"ListKernelSessionOutput {metadata['id']}, GET submission.csv, GET run.json")
    if submit:
        calls.append(f"ListSubmissions {competition.slug}: if this build is there, it is not submitted again")
        calls.append(f"CreateCodeSubmission {competition.slug} {metadata['id']} submission.csv")
        calls.append(f"ListSubmissions {competition.slug} until it has a score")
    return calls


def wait_for_kernel(trip: Trip, kernel: str) -> None:
    """Poll until the run has ended; KaggleError with its message and the end of its log where it failed."""
    said = ""
    for _ in trip.patience.polls(trip.patience.kernel):
        status, message = trip.remote.kernel_status(kernel)
        if status == "complete":
            return
        if status in ("error", "cancel_requested", "cancel_acknowledged"):
            tail = "\n".join(trip.remote.kernel_log(kernel).splitlines()[-LOG_LINES:])
            trip.say(f"the end of the log of {kernel}:\n{tail}")
            raise KaggleError(f"{kernel} ended with {status}: {message or 'Kaggle gives no reason; see the log above'}")
        if status != said:
            trip.say(f"{kernel} is {status}")
            said = status
    raise KaggleError(f"{kernel} did not end in {trip.patience.kernel / 3600:g} h; call again, it goes on from here")


def check_output(output: Path, images_dir: Path | None, competition: Competition = CASSAVA) -> None:
    """Refuse to submit what is not whole: the file's form, its ids where the images are known, the run's own report."""
    import csv

    from cassava_kit.kaggle.rehearsal import read_run
    from cassava_kit.submission import check_submission

    path = output / "submission.csv"
    if not path.is_file():
        raise KaggleError("the notebook left no submission.csv; see its log on kaggle.com")
    if images_dir is not None:
        check_submission(path, images_dir, competition)
    else:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        labels = {str(label) for label in range(competition.n_classes)}
        if header != [competition.id_column, competition.label_column] or not rows:
            raise KaggleError(
                f"{path} must begin with {competition.id_column},{competition.label_column} and have rows"
            )
        if bad := next((row for row in rows if len(row) != 2 or row[1] not in labels), None):
            raise KaggleError(f"{path} has the row {bad}; a label must be one of {', '.join(sorted(labels))}")
    if (output / "run.json").is_file() and (wrong := read_run(output)[0]):
        raise KaggleError(f"not submitted: {'; '.join(wrong)}")


def submit(trip: Trip, pushed: Pushed) -> Submission:
    """Submit the pushed version once, and wait for its score."""
    description = f"Cassava Kit build {trip.bundle.build_id[:12]}, version {pushed.version}"
    made = next((each for each in trip.remote.submissions() if each.description == description), None)
    if made is None:
        ref = trip.remote.submit(pushed.kernel, pushed.version, description)
        trip.remember(submission={"ref": ref, "description": description})
        trip.say(f"submitted {pushed.kernel} version {pushed.version}")
    else:
        ref = made.ref
        trip.say(f"{pushed.kernel} version {pushed.version} was submitted already")
    return wait_for_score(trip, lambda each: each.ref == ref or each.description == description)


def wait_for_score(trip: Trip, ours: Callable[[Submission], bool]) -> Submission:
    """Poll until the submission has a score; KaggleError with Kaggle's reason where it has none."""
    for _ in trip.patience.polls(trip.patience.score):
        found = next((each for each in trip.remote.submissions() if ours(each)), None)
        if found is not None and found.status == "error":
            raise KaggleError(
                f"the submission was not scored: {found.error or 'Kaggle gives no reason'}; scoring runs the notebook "
                "on the hidden images: rehearse with many images and Kaggle's limits (--cpus 4 --memory 29)"
            )
        if found is not None and found.status == "complete":
            trip.say(f"public score {found.score or 'not shown'}")
            return found
    raise KaggleError("the submission has no score yet; call again later, it is not submitted twice")
