"""What usually ends a submission on Kaggle, looked for before the upload: one line a cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cassava_kit.checkpoint import read_info
from cassava_kit.files import read_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble
from cassava_kit.kaggle.bundle import read_bundle
from cassava_kit.kaggle.case import Case, Check, Status
from cassava_kit.kaggle.causes import NO_QUOTA
from cassava_kit.kaggle.config import METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.image import image_versions
from cassava_kit.kaggle.kernels import SUBMISSION_KERNEL, Kernel
from cassava_kit.kaggle.manifest import MANIFESTS, check_flat, read_manifest
from cassava_kit.kaggle.remote import FEWEST_HOURS, KaggleError, Remote
from cassava_kit.kaggle.wheels import check_pure

SESSION_SECONDS = 12 * 3600
IMAGE_MEMORY = 29 * 2**30

Verdict = tuple[Status, str]
NOT_REHEARSED: Verdict = ("unknown", "this build was not rehearsed; run: python submit.py --rehearse")


def offline_pip(case: Case) -> Verdict:
    """Every wheel that is installed lies in the bundle and is pure."""
    wheels = case.manifest["wheels"]
    if missing := [name for name in case.settings["install"] if name not in wheels]:
        return "failed", f"{', '.join(missing)} is installed by the notebook but not in the bundle; package again"
    for name in wheels.values():
        check_pure(case.bundle.kit_dir / name)
    if case.metadata["enable_internet"] or "--no-index" not in case.notebook:
        return "failed", "the notebook may use the internet; generate it again: python -m cassava_kit.kaggle.kernels"
    return "passed", f"{len(wheels)} pure wheels in the bundle, pip asks no index"


def weights_downloaded(case: Case) -> Verdict:
    """Every member's weights lie in the bundle."""
    members = read_ensemble(case.bundle.weights_dir / ENSEMBLE_FILE).members
    names = [name for member in members for name in member.checkpoints]
    for name in names:
        read_info(case.bundle.weights_dir / name)
    return "passed", f"{len(names)} checkpoints in the bundle say what they are; nothing is fetched by name"


def wrong_gpu(case: Case) -> Verdict:
    """The accelerator is one for which the image's torch has kernels."""
    if not case.bundle.kernel.gpu:
        return "passed", "this kernel needs none"
    shape = case.metadata.get("machine_shape")
    if not case.metadata["enable_gpu"] or shape != "NvidiaTeslaT4":
        return "failed", f"machine_shape is {shape}; the P100 is retired, ask for NvidiaTeslaT4"
    return "passed", "two T4s; the notebook tries each before it starts"


def scoring_error(case: Case) -> Verdict:
    """The rehearsed submission has the right rows, ids and labels."""
    if not case.rehearsals:
        return NOT_REHEARSED
    if failed := [report for report in case.rehearsals if not report["ok"]]:
        return "failed", failed[0]["verdict"]
    return "passed", f"{len(case.rehearsals)} rehearsals of this build ended in a checked submission"


def timeout(case: Case) -> Verdict:
    """The run stops by itself before Kaggle stops it."""
    limit, allowed = case.settings["time_limit"], SESSION_SECONDS
    if case.bundle.kernel.weights:
        allowed = int(case.bundle.competition.gpu_hours * 3600)
    if limit > 0.98 * allowed:
        return "failed", f"the notebook's own limit of {limit} s leaves no room below Kaggle's {allowed} s"
    kept = "best file first" if case.bundle.kernel.weights else "what is finished stays"
    return "passed", f"the run ends by itself after {limit / 3600:g} of {allowed / 3600:g} h, {kept}"


def csv_not_found(case: Case) -> Verdict:
    """The file is in /kaggle/working from the first cell on."""
    if not 0 <= case.notebook.find("PART.replace(SUBMISSION)") < case.notebook.find("find_manifest("):
        return "failed", "the notebook does not begin with writing submission.csv; generate it again"
    return "passed", "submission.csv is there before anything is installed, in /kaggle/working"


def mount_path(case: Case) -> Verdict:
    """Nothing depends on where things are mounted."""
    if fixed := re.findall(r"/kaggle/input/[\w-]+", case.notebook):
        return "failed", f"the notebook names {fixed[0]}; find folders by what they hold"
    layouts = sorted({report["layout"] for report in case.rehearsals if report["ok"]})
    tried = f"rehearsed in the layouts: {', '.join(layouts)}" if layouts else "not rehearsed yet"
    return "passed", f"folders are found by their files, in both layouts ({tried})"


def stale_dataset(case: Case) -> Verdict:
    """The notebook runs with these datasets or not at all."""
    datasets = case.bundle.datasets
    builds = {MANIFESTS[kind]: read_manifest(folder, kind)["build_id"] for kind, folder in datasets}
    if case.settings["builds"] != builds:
        return "failed", "the notebook is pinned to another build; package again"
    pinned = f"the notebook is pinned to {'both builds' if len(datasets) > 1 else 'the build'}"
    if case.remote is None:
        return "passed", f"{pinned}; Kaggle's side is looked at when pushing"
    for _, folder in datasets:
        dataset = read_json(folder / METADATA_FILE)["id"]
        if not dataset.startswith(PLACEHOLDER_OWNER) and case.remote.dataset_status(dataset) in ("failed", "deleted"):
            return "failed", f"Kaggle could not process {dataset}; look at it on kaggle.com"
    return "passed", f"{pinned}, and is pushed when Kaggle serves it"


def dropped_folders(case: Case) -> Verdict:
    """Everything arrives: the datasets are flat and plainly named."""
    for _, folder in case.bundle.datasets:
        check_flat(folder)
    return "passed", "the datasets are flat, with names that Kaggle keeps"


def library_drift(case: Case) -> Verdict:
    """The image's versions lie in the ranges that the kit was tested with."""
    from packaging.specifiers import SpecifierSet

    for image, versions in image_versions(case.root).items():
        for name, wanted in case.manifest["tested"].items():
            if name in versions and not SpecifierSet(wanted).contains(versions[name]):
                return "failed", f"the image with Python {image} has {name} {versions[name]}, tested were {wanted}"
    return "passed", "the versions of both images are in the tested ranges; try them: make rehearse-image"


def no_reason(case: Case) -> Verdict:
    """A failure leaves something to read."""
    if not case.runs:
        return NOT_REHEARSED
    return (
        "passed",
        "versions, devices and every member left out are printed and in run.json; a push shows the log's end",
    )


def slugs(case: Case) -> Verdict:
    """Ids and titles that Kaggle takes as they are."""
    kernel = case.metadata["id"].partition("/")[2]
    as_slug = re.sub(r"[^a-z0-9]+", "-", case.metadata["title"].lower()).strip("-")
    if kernel != as_slug or not 5 <= len(case.metadata["title"]) <= 50:
        return "failed", f"the title {case.metadata['title']!r} does not make the slug {kernel!r}"
    ids = [read_json(folder / METADATA_FILE)["id"] for _, folder in case.bundle.datasets]
    # Behind the bundle's own there may be datasets that the user attached.
    if case.metadata["dataset_sources"][: len(ids)] != ids:
        return "failed", f"the notebook attaches {case.metadata['dataset_sources']}, the bundle holds {ids}"
    if ids[0].startswith(f"{PLACEHOLDER_OWNER}/"):
        return "passed", f"slugs fit; the owner {PLACEHOLDER_OWNER!r} becomes your user name when pushing"
    if case.remote is not None and (owner := case.remote.owner()) != ids[0].partition("/")[0]:
        return "failed", f"the bundle is for {ids[0].partition('/')[0]}, the credentials are {owner}'s"
    return "passed", f"{', '.join([*ids, case.metadata['id']])}"


def memory(case: Case) -> Verdict:
    """The rehearsed run stayed far below the image's memory."""
    if not case.rehearsals:
        return NOT_REHEARSED
    peak = max(report["memory"] for report in case.rehearsals)
    if peak > 0.8 * IMAGE_MEMORY:
        return "failed", f"{peak / 2**30:.1f} GiB of {IMAGE_MEMORY / 2**30:.0f}; use fewer or smaller members at once"
    return "passed", f"peak {peak / 2**30:.1f} GiB of {IMAGE_MEMORY / 2**30:.0f}; threads, so no shared memory"


def slow_decode(case: Case) -> Verdict:
    """Reading the hidden images takes a small part of the time."""
    measured = [run["plan"]["reading_seconds_per_image"] for run in case.runs if run.get("plan")]
    if not measured:
        return NOT_REHEARSED
    facts = case.bundle.competition
    seconds = max(measured) * facts.hidden_images
    said = f"reading {facts.hidden_images:,} images takes about {seconds / 60:.0f} min at this machine's speed"
    return ("failed" if seconds > facts.gpu_hours * 3600 / 2 else "passed"), said


def quota(case: Case) -> Verdict:
    """GPU hours are left this week."""
    if not case.bundle.kernel.gpu:
        return "passed", "this kernel needs no GPU"
    hours = case.remote.gpu_hours_left() if case.remote is not None else None
    if hours is None:
        return "unknown", "only Kaggle knows; see kaggle.com/settings (30 h a week, two sessions at once)"
    if hours < FEWEST_HOURS:
        return "failed", NO_QUOTA
    return "passed", f"{hours:.1f} GPU hours left this week"


def wrong_final(case: Case) -> Verdict:
    """Two different finals are chosen, from out-of-fold evidence."""
    return "unknown", "chosen on kaggle.com by hand; `python submit.py --finals` proposes two different ones"


CAUSES: tuple[tuple[str, Callable[[Case], Verdict]], ...] = (
    ("offline pip", offline_pip),
    ("weights downloaded at build", weights_downloaded),
    ("wrong GPU", wrong_gpu),
    ("scoring error (rows, ids, dtype)", scoring_error),
    ("timeout", timeout),
    ("CSV not found", csv_not_found),
    ("mount path changed", mount_path),
    ("dataset stale or still processing", stale_dataset),
    ("dropped sub-folders", dropped_folders),
    ("library drift", library_drift),
    ("no failure reason shown", no_reason),
    ("metadata slugs", slugs),
    ("RAM and shared memory", memory),
    ("slow decode on few cores", slow_decode),
    ("quota", quota),
    ("wrong final chosen", wrong_final),
)


# What only a submission can fail by; a kernel that trains or looks at the data is not asked.
OF_SUBMISSIONS = (weights_downloaded, scoring_error, csv_not_found, no_reason, memory, slow_decode, wrong_final)


def doctor(
    root: str | Path, bundle_dir: str | Path, *, remote: Remote | None = None, kernel: Kernel = SUBMISSION_KERNEL
) -> list[Check]:
    """Examine a bundle for every known cause; Kaggle is asked only where `remote` is given.

    A bundle that is damaged or not there fails every cause that needs it, with the same reason.
    """
    causes = [(cause, look) for cause, look in CAUSES if kernel.weights or look not in OF_SUBMISSIONS]
    try:
        case = Case(Path(root), read_bundle(bundle_dir, kernel), remote)
    except (ValueError, FileNotFoundError) as error:
        return [Check(cause, "failed", str(error)) for cause, _ in causes]
    return [_examine(cause, look, case) for cause, look in causes]


def _examine(cause: str, look: Callable[[Case], Verdict], case: Case) -> Check:
    try:
        return Check(cause, *look(case))
    except KaggleError as error:
        return Check(cause, "unknown", str(error))
    except (ValueError, FileNotFoundError, KeyError) as error:
        return Check(cause, "failed", str(error))
