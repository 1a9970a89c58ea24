"""What usually ends a submission on Kaggle, looked for before the upload: one line a cause."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cassava_kit.files import read_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble
from cassava_kit.kaggle.case import Case, Check, Status
from cassava_kit.kaggle.pack.bundle import read_bundle
from cassava_kit.kaggle.pack.config import LICENCES, LONGEST_SLUG, LONGEST_TITLE, METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.pack.kernels import SUBMISSION_KERNEL, Kernel
from cassava_kit.kaggle.pack.manifest import MANIFESTS, read_manifest
from cassava_kit.kaggle.pack.wheels import check_pure
from cassava_kit.kaggle.rehearse.image import image_versions
from cassava_kit.kaggle.send.advice import NO_QUOTA
from cassava_kit.kaggle.send.remote import FEWEST_HOURS, KaggleError, Remote
from cassava_kit.models.checkpoint import read_info

SESSION_SECONDS = 12 * 3600
IMAGE_MEMORY = 29 * 2**30

Verdict = tuple[Status, str]
NO_SUBMISSIONS = "today's submissions are used up; submit again after midnight UTC"
NOT_REHEARSED: Verdict = ("unknown", "this build was not rehearsed; run: python submit.py --rehearse")
LARGEST_NOTEBOOK = 1_000_000
# A path below the input that is written out, whether as one string, relative, or joined with `/`.
FIXED_PATH = re.compile(r"(?:/kaggle|\.\.)/input/[\w-]+|(?:/kaggle|\.\.)/input/?[\"']\)? */ *[\"'][\w-]+")


def offline_pip(case: Case) -> Verdict:
    """Every wheel that is installed lies in the bundle and is pure."""
    wheels = case.manifest["wheels"]
    if missing := [name for name in case.settings["install"] if name not in wheels]:
        return "failed", f"{', '.join(missing)} is installed by the notebook but not in the bundle; package again"
    for name in wheels.values():
        check_pure(case.bundle.kit_dir / name)
    if case.metadata.get("enable_internet") is not False or "--no-index" not in case.notebook:
        return (
            "failed",
            "the notebook may use the internet; generate it again: python -m cassava_kit.kaggle.pack.kernels",
        )
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
    if (asked := case.metadata.get("enable_gpu")) is not True:
        return "failed", f"enable_gpu is {asked!r}, and must be true, a JSON boolean; package again"
    if shape != "NvidiaTeslaT4":
        return "failed", f"machine_shape is {shape}; the P100 is retired, ask for NvidiaTeslaT4"
    return "passed", "two T4s; the notebook tries each before it starts"


def rehearsed(case: Case) -> Verdict:
    """The notebook ran offline to its end as it is now, and left what it must: right rows, ids and labels."""
    if case.reports and not case.rehearsals:
        return "failed", "the notebook was edited after its rehearsal; run: python submit.py --rehearse"
    if not case.rehearsals:
        return NOT_REHEARSED
    if failed := [report for report in case.rehearsals if not report["ok"]]:
        return "failed", failed[0]["verdict"]
    return "passed", f"{len(case.rehearsals)} rehearsals of this notebook left what they must"


def what_is_pushed(case: Case) -> Verdict:
    """The metadata sends the generated notebook, as a private one, and it is small enough."""
    name, size = case.bundle.notebook.name, case.bundle.notebook.stat().st_size
    wanted = {"code_file": name, "kernel_type": "notebook", "language": "python", "is_private": True}
    for key, value in wanted.items():
        if case.metadata.get(key) != value or type(case.metadata.get(key)) is not type(value):
            return "failed", f"{key} is {case.metadata.get(key)!r}, and must be {value!r}; package again"
    if size > LARGEST_NOTEBOOK:
        return "failed", f"{name} has {size:,} bytes, Kaggle takes {LARGEST_NOTEBOOK:,}; clear its outputs"
    return "passed", f"{name}, private, {size / 1000:.0f} kB"


def competition_attached(case: Case) -> Verdict:
    """The competition of the bundle is attached, and no other."""
    wanted, sources = case.bundle.competition.slug, case.metadata.get("competition_sources")
    if sources != [wanted]:
        return "failed", f"competition_sources is {sources}, and must be ['{wanted}']; package again"
    return "passed", wanted


def rules(case: Case) -> Verdict:
    """The user has joined the competition and accepted its rules."""
    slug = case.bundle.competition.slug
    advice = f"join it once and accept its rules: https://www.kaggle.com/competitions/{slug}/rules"
    ask = getattr(case.remote, "rules_accepted", None)
    accepted = ask() if ask is not None else None
    if accepted is None:
        return "unknown", f"only Kaggle knows; {advice}"
    return (
        ("passed", f"you take part in {slug}") if accepted else ("failed", f"you do not take part in {slug}; {advice}")
    )


def submissions_left(case: Case) -> Verdict:
    """A submission is left today."""
    left = case.remote.submissions_left() if case.remote is not None else None
    if left is None:
        return "unknown", "only Kaggle knows; a push asks"
    return ("failed", NO_SUBMISSIONS) if left < 1 else ("passed", f"{left} left until midnight UTC")


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
    if fixed := FIXED_PATH.search(case.notebook):
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


def licence(case: Case) -> Verdict:
    """The datasets name one licence that Kaggle lists."""
    for _, folder in case.bundle.datasets:
        names = [each.get("name") for each in read_json(folder / METADATA_FILE).get("licenses") or []]
        if len(names) != 1 or names[0] not in LICENCES:
            named = ", ".join(map(str, names)) or "no licence"
            return "failed", f"{folder / METADATA_FILE} names {named}; Kaggle lists {', '.join(LICENCES)}"
    return "passed", f"{names[0]}, which Kaggle lists"


def library_drift(case: Case) -> Verdict:
    """The image's versions lie in the ranges that the kit was tested with."""
    from packaging.specifiers import SpecifierSet

    for image, versions in image_versions(case.root).items():
        for name, wanted in case.manifest["tested"].items():
            if name in versions and not SpecifierSet(wanted).contains(versions[name]):
                return "failed", f"the image with Python {image} has {name} {versions[name]}, tested were {wanted}"
    return "passed", "the versions of both images are in the tested ranges; try them: make rehearse-image"


def slugs(case: Case) -> Verdict:
    """Ids and titles that Kaggle takes as they are."""
    kernel, title = case.metadata["id"].partition("/")[2], case.metadata["title"]
    if not 5 <= len(title) <= LONGEST_TITLE:
        return "failed", (
            f"the title {title!r} has {len(title)} characters, Kaggle takes 5 to {LONGEST_TITLE}; "
            f"choose a dataset slug of at most {LONGEST_SLUG} and package again"
        )
    as_slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if kernel != as_slug:
        return "failed", f"the title {title!r} does not make the slug {kernel!r}"
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
        return "unknown", (
            "only Kaggle knows; see kaggle.com/settings (30 h a week, two sessions at once, a verified phone number)"
        )
    if hours < FEWEST_HOURS:
        return "failed", f"{NO_QUOTA}; without a verified phone number there are no hours at all"
    return "passed", f"{hours:.1f} GPU hours left this week"


# Cause, how it is looked for, and whether only a submission can fail by it.
CAUSES: tuple[tuple[str, Callable[[Case], Verdict], bool], ...] = (
    ("offline pip", offline_pip, False),
    ("weights downloaded at build", weights_downloaded, True),
    ("wrong GPU", wrong_gpu, False),
    ("not rehearsed, scoring error (rows, ids, dtype)", rehearsed, False),
    ("timeout", timeout, False),
    ("CSV not found", csv_not_found, True),
    ("mount path changed", mount_path, False),
    ("dataset stale or still processing", stale_dataset, False),
    ("library drift", library_drift, False),
    ("notebook: private, its own, below 1 MB", what_is_pushed, False),
    ("competition attached", competition_attached, False),
    ("metadata slugs", slugs, False),
    ("licence", licence, False),
    ("RAM and shared memory", memory, True),
    ("slow decode on few cores", slow_decode, True),
    ("rules accepted", rules, False),
    ("GPU quota and phone", quota, False),
    ("submissions left today", submissions_left, True),
)


def doctor(
    root: str | Path,
    bundle_dir: str | Path,
    *,
    remote: Remote | None = None,
    kernel: Kernel = SUBMISSION_KERNEL,
    submits: bool = True,
) -> list[Check]:
    """Examine a bundle for every known cause; Kaggle is asked only where `remote` is given.

    Without `submits` the bundle is only to be pushed, and it does not matter how many submissions are left.

    Returns:
        A check for each cause, or the one check `bundle` where the bundle is damaged or not there.
    """
    try:
        case = Case(Path(root), read_bundle(bundle_dir, kernel), remote)
    except (ValueError, FileNotFoundError) as error:
        return [Check("bundle", "failed", str(error))]
    causes = [(cause, look) for cause, look, submitted in CAUSES if kernel.weights or not submitted]
    causes = [(cause, look) for cause, look in causes if submits or look is not submissions_left]
    return [_examine(cause, look, case) for cause, look in causes]


def _examine(cause: str, look: Callable[[Case], Verdict], case: Case) -> Check:
    try:
        return Check(cause, *look(case))
    except KaggleError as error:
        return Check(cause, "unknown", str(error))
    except (ValueError, FileNotFoundError) as error:
        return Check(cause, "failed", str(error))
    except (KeyError, TypeError, AttributeError) as error:
        return Check(cause, "failed", f"a file of the bundle lacks what it must have ({error}); package again")
