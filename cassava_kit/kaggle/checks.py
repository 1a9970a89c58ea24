"""Check the files of a bundle, one function for each cause of failure. The doctor runs them: `doctor.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from cassava_kit.files import read_json, sha256_file
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble
from cassava_kit.kaggle.bundle_facts import BundleFacts
from cassava_kit.kaggle.examine.cells import read_cells
from cassava_kit.kaggle.examine.paths import path_findings
from cassava_kit.kaggle.examine.reading import Reading
from cassava_kit.kaggle.pack.config import LICENCES, LONGEST_SLUG, LONGEST_TITLE, METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.pack.kernels import BOOTSTRAP_FILE
from cassava_kit.kaggle.pack.manifest import MANIFESTS, read_manifest
from cassava_kit.kaggle.pack.wheels import check_pure
from cassava_kit.kaggle.rehearse.image import image_versions
from cassava_kit.models.checkpoint import read_info

SESSION_SECONDS = 12 * 3600
LARGEST_NOTEBOOK = 1_000_000

Status = Literal["passed", "failed", "unknown"]
Verdict = tuple[Status, str]


@dataclass(frozen=True)
class Check:
    """The result for one cause of failure, with what to do; `unknown`: it cannot be determined from here."""

    cause: str
    status: Status
    detail: str

    def __str__(self) -> str:
        mark = {"passed": "ok     ", "failed": "FAILED ", "unknown": "?      "}[self.status]
        return f"{mark}{self.cause}: {self.detail}"


def check_pip(facts: BundleFacts) -> Verdict:
    """Check that every wheel the notebook installs is in the bundle and pure, and that no index is asked."""
    wheels = facts.manifest["wheels"]
    if missing := [name for name in facts.settings["install"] if name not in wheels]:
        return "failed", f"{', '.join(missing)} is installed by the notebook but not in the bundle; package again"
    for name in wheels.values():
        check_pure(facts.bundle.kit_dir / name)
    bootstrap = facts.bundle.kit_dir / BOOTSTRAP_FILE
    if not bootstrap.is_file() or sha256_file(bootstrap) != facts.settings.get("bootstrap"):
        return "failed", f"the notebook was made with another {BOOTSTRAP_FILE} than the bundle's; package again"
    if facts.metadata.get("enable_internet") is not False:
        return "failed", "the notebook may use the internet; package again, or generate it: cassava-kit kernels"
    return "passed", f"{len(wheels)} pure wheels in the bundle, unpacked without an index"


def check_weight_files(facts: BundleFacts) -> Verdict:
    """Check that the weights of every member are in the bundle."""
    members = read_ensemble(facts.bundle.weights_dir / ENSEMBLE_FILE).members
    names = [name for member in members for name in member.checkpoints]
    for name in names:
        read_info(facts.bundle.weights_dir / name)
    return "passed", f"{len(names)} checkpoints in the bundle, each with its header; nothing is downloaded by name"


def check_gpu(facts: BundleFacts) -> Verdict:
    """Check that the accelerator is one that the image's torch supports."""
    if not facts.bundle.kernel.gpu:
        return "passed", "this kernel needs no GPU"
    shape = facts.metadata.get("machine_shape")
    if (asked := facts.metadata.get("enable_gpu")) is not True:
        return "failed", f"enable_gpu is {asked!r}, and must be true, a JSON boolean; package again"
    if shape != "NvidiaTeslaT4":
        return "failed", f"machine_shape is {shape}; the P100 is retired, ask for NvidiaTeslaT4"
    return "passed", "two T4s; the notebook tries each before it starts"


def check_notebook(facts: BundleFacts) -> Verdict:
    """Check that the metadata sends the generated notebook, that it is private, and small enough."""
    name, size = facts.bundle.notebook.name, facts.bundle.notebook.stat().st_size
    wanted = {"code_file": name, "kernel_type": "notebook", "language": "python", "is_private": True}
    for key, value in wanted.items():
        if facts.metadata.get(key) != value:
            return "failed", f"{key} is {facts.metadata.get(key)!r}, and must be {value!r}; package again"
    if size > LARGEST_NOTEBOOK:
        return "failed", f"{name} has {size:,} bytes, Kaggle takes {LARGEST_NOTEBOOK:,}; clear its outputs"
    return "passed", f"{name}, private, {size / 1000:.0f} kB"


def check_competition(facts: BundleFacts) -> Verdict:
    """Check that the bundle's competition is attached, and no other."""
    wanted, sources = facts.bundle.competition.slug, facts.metadata.get("competition_sources")
    if sources != [wanted]:
        return "failed", f"competition_sources is {sources}, and must be ['{wanted}']; package again"
    return "passed", wanted


def check_time_limit(facts: BundleFacts) -> Verdict:
    """Check that the run stops itself before Kaggle stops it."""
    limit, allowed = facts.settings["time_limit"], SESSION_SECONDS
    if facts.bundle.kernel.weights:
        allowed = int(facts.bundle.competition.gpu_hours * 3600)
    if limit > 0.98 * allowed:
        return "failed", f"the notebook's own limit of {limit} s leaves no room below Kaggle's {allowed} s"
    kept = "the best file so far is kept" if facts.bundle.kernel.weights else "what is finished is kept"
    return "passed", f"the run stops after {limit / 3600:g} of {allowed / 3600:g} h, {kept}"


def check_first_file(facts: BundleFacts) -> Verdict:
    """Check that the first cells write submission.csv."""
    if not 0 <= facts.notebook.find("PART.replace(SUBMISSION)") < facts.notebook.find("exec(compile(BOOTSTRAP"):
        return "failed", "the notebook does not write submission.csv first; package again"
    return "passed", "submission.csv is there before anything is installed, in /kaggle/working"


def check_paths(facts: BundleFacts) -> Verdict:
    """Check that no path below the input is written out."""
    for found in path_findings(Reading(read_cells(facts.bundle.notebook))):
        return "failed", f"cell {found.cell}, line {found.line}: {found.message}"
    layouts = sorted({report["layout"] for report in facts.rehearsals if report["ok"]})
    tried = f"rehearsed in the layouts: {', '.join(layouts)}" if layouts else "not rehearsed yet"
    return "passed", f"folders are found by their files, in both layouts ({tried})"


def check_builds(facts: BundleFacts) -> Verdict:
    """Check that the notebook is pinned to these datasets, and that Kaggle could process them."""
    datasets = facts.bundle.datasets
    builds = {MANIFESTS[kind]: read_manifest(folder, kind)["build_id"] for kind, folder in datasets}
    if facts.settings["builds"] != builds:
        return "failed", "the notebook is pinned to another build; package again"
    pinned = f"the notebook is pinned to {'both builds' if len(datasets) > 1 else 'the build'}"
    if facts.remote is None:
        return "passed", f"{pinned}; a push checks what Kaggle serves"
    for _, folder in datasets:
        dataset = read_json(folder / METADATA_FILE)["id"]
        if not dataset.startswith(PLACEHOLDER_OWNER) and facts.remote.dataset_status(dataset) in ("failed", "deleted"):
            return "failed", f"Kaggle could not process {dataset}; look at it on kaggle.com"
    return "passed", f"{pinned}, and a push waits until Kaggle serves it"


def check_versions(facts: BundleFacts) -> Verdict:
    """Check that the versions of Kaggle's images lie in the ranges that the kit was tested with."""
    from packaging.specifiers import SpecifierSet

    for image, versions in image_versions(facts.root).items():
        for name, wanted in facts.manifest["tested"].items():
            if name in versions and not SpecifierSet(wanted).contains(versions[name]):
                return "failed", f"the image with Python {image} has {name} {versions[name]}, tested were {wanted}"
    return "passed", "the versions of both images are in the tested ranges; try them: make rehearse-image"


def check_slugs(facts: BundleFacts) -> Verdict:
    """Check that ids and titles fit Kaggle's rules and each other, and that the owner is the user."""
    kernel, title = facts.metadata["id"].partition("/")[2], facts.metadata["title"]
    if not 5 <= len(title) <= LONGEST_TITLE:
        return "failed", (
            f"the title {title!r} has {len(title)} characters, Kaggle takes 5 to {LONGEST_TITLE}; "
            f"choose a dataset slug of at most {LONGEST_SLUG} and package again"
        )
    as_slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    if kernel != as_slug:
        return "failed", f"the title {title!r} does not make the slug {kernel!r}"
    ids = [read_json(folder / METADATA_FILE)["id"] for _, folder in facts.bundle.datasets]
    # Behind the bundle's own there may be datasets that the user attached.
    if facts.metadata["dataset_sources"][: len(ids)] != ids:
        return "failed", f"the notebook attaches {facts.metadata['dataset_sources']}, the bundle holds {ids}"
    if ids[0].startswith(f"{PLACEHOLDER_OWNER}/"):
        return "passed", f"slugs fit; the owner {PLACEHOLDER_OWNER!r} becomes your user name when pushing"
    if facts.remote is not None and (owner := facts.remote.owner()) != ids[0].partition("/")[0]:
        return "failed", f"the bundle is for {ids[0].partition('/')[0]}, the credentials are {owner}'s"
    return "passed", f"{', '.join([*ids, facts.metadata['id']])}"


def check_licences(facts: BundleFacts) -> Verdict:
    """Check that each dataset names one licence that Kaggle lists."""
    for _, folder in facts.bundle.datasets:
        names = [each.get("name") for each in read_json(folder / METADATA_FILE).get("licenses") or []]
        if len(names) != 1 or names[0] not in LICENCES:
            named = ", ".join(map(str, names)) or "no licence"
            return "failed", f"{folder / METADATA_FILE} names {named}; Kaggle lists {', '.join(LICENCES)}"
    return "passed", f"{names[0]}, which Kaggle lists"
