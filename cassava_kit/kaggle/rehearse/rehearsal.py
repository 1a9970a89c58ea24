"""Rehearse a bundle: its notebook, offline, in a separate process, with the input that Kaggle mounts: `rehearse`.

Which isolation is possible depends on the machine; the verdict names it (`isolation.py`).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cassava_kit.competition import Competition
from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_file, write_json, write_text
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA, with_parameters
from cassava_kit.kaggle.rehearse.isolation import Isolation
from cassava_kit.kaggle.rehearse.judge import judge_run
from cassava_kit.kaggle.rehearse.layout import (
    Layout,
    Mount,
    as_uploaded,
    competition_folder,
    competition_mounts,
    dataset_mounts,
    few_images,
    hidden_images,
    link_images,
)
from cassava_kit.kaggle.rehearse.options import NotebookRun, Rehearsal, RehearsalOptions
from cassava_kit.kaggle.rehearse.runner import run_notebook

REHEARSAL_REPORT = "rehearsal.json"


def rehearse(
    bundle: Bundle,
    competition_dir: str | Path,
    out: str | Path,
    *,
    layout: Layout = "new",
    options: RehearsalOptions | None = None,
) -> Rehearsal:
    """Execute the bundle's notebook, check what it leaves in `out/working`, and write `out/rehearsal.json`.

    A submission's notebook gets the test images, a kernel without weights a few training images of every class. What
    the user attached to such a kernel lies on Kaggle and is not mounted. A failing notebook raises nothing: the verdict
    says it.

    Raises:
        FileNotFoundError: `competition_dir` is not a competition's folder.
        UserError: the metadata does not attach the bundle's datasets, or the isolation is not possible here.
    """
    options, out = options or RehearsalOptions(), Path(out).resolve()
    with tempfile.TemporaryDirectory(prefix="kit-") as folder:
        scratch = Path(folder)
        mounts = _mount_competition(bundle, Path(competition_dir), scratch, layout, options)
        mounts += _mount_datasets(bundle, scratch, layout)
        run = NotebookRun(_place_notebook(bundle, scratch, options), mounts, out, layout, options, bundle.competition)
        result, isolation, changed = run_watched(run, scratch)
        rehearsal = judge_run(run, bundle.kernel, result, isolation, changed)
    report = asdict(rehearsal) | {"layout": layout, "kernel": bundle.kernel.name, "submission": None}
    report |= {"build_id": bundle.build_id, "notebook": sha256_file(bundle.notebook)}
    write_json(out / REHEARSAL_REPORT, report)
    return rehearsal


def run_watched(run: NotebookRun, scratch: Path) -> tuple[dict[str, Any], Isolation, list[Path]]:
    """Run a notebook in an empty working folder; returns its result, the isolation, and the inputs that it changed."""
    if run.working.exists():
        shutil.rmtree(run.working)
    run.working.mkdir(parents=True)
    before = _read_state(run.mounts)
    result, isolation = run_notebook(run, scratch)
    return result, isolation, [path for path, state in _read_state(run.mounts).items() if before.get(path) != state]


def _place_notebook(bundle: Bundle, scratch: Path, options: RehearsalOptions) -> Path:
    """Return the bundle's notebook, or a copy with other parameters."""
    if not options.parameters:
        return bundle.notebook.resolve()
    text = bundle.notebook.read_text(encoding="utf-8")
    write_text(scratch / bundle.notebook.name, with_parameters(text, options.parameters, bundle.kernel.name))
    return scratch / bundle.notebook.name


def _mount_competition(
    bundle: Bundle, folder: Path, scratch: Path, layout: Layout, options: RehearsalOptions
) -> list[Mount]:
    """Return the competition's mounts, with as many images as the options say."""
    competition = bundle.competition
    if bundle.kernel.weights:
        return mount_tests(folder, competition, scratch, layout, options)
    if options.per_class is None:
        return competition_mounts(folder, layout, competition)
    few = few_images(folder, options.per_class, scratch / "competition", competition)
    return [Mount(few.resolve(), competition_folder(competition.slug, layout))]


def mount_tests(
    folder: Path, competition: Competition, scratch: Path, layout: Layout, options: RehearsalOptions
) -> list[Mount]:
    """Return the competition's mounts as a submission sees them, with as many test images as the options say."""
    from cassava_kit.data.images import quick_check
    from cassava_kit.data.to_predict import read_test, write_test_table

    tests = read_test(folder, competition)
    if options.hidden is not None:
        training = folder / competition.train_images
        images = hidden_images([place for place in (tests.folder, training) if place.is_dir()], options.hidden)
    elif options.images is not None:
        # Whole pictures first: a small set must not consist of broken ones.
        names = sorted(tests.names, key=lambda name: quick_check(tests.folder / name) is not None)
        images = {name: tests.folder / name for name in names[: options.images]}
    elif competition.test_share:
        images = tests.paths
    else:
        return competition_mounts(folder, layout, competition)
    links = link_images(images, scratch / "test_images")
    table = competition.test_table and write_test_table(scratch / "test_table.csv", images, competition)
    return competition_mounts(folder, layout, competition, test_images=links, test_table=table or None)


def _mount_datasets(bundle: Bundle, scratch: Path, layout: Layout) -> list[Mount]:
    """Return the mounts of the bundle's datasets, under the names that the notebook's metadata attaches."""
    mounts: list[Mount] = []
    sources, folders = read_json(bundle.kernel_dir / KERNEL_METADATA)["dataset_sources"], bundle.datasets
    if len(sources) < len(folders) or (bundle.kernel.weights and len(sources) > len(folders)):
        raise UserError(
            f"{bundle.kernel_dir / KERNEL_METADATA} must attach the bundle's {len(folders)} datasets and no other, "
            f"got {', '.join(sources) or 'no dataset'}; package it again"
        )
    for dataset, (_, folder) in zip(sources, folders, strict=False):
        mounts += dataset_mounts(as_uploaded(folder, scratch / "datasets" / folder.name), dataset, layout)
    return mounts


def _read_state(mounts: Sequence[Mount]) -> dict[Path, tuple[int, int]]:
    """Return size and modification time of every mounted file or folder."""
    found = [(mount.source, mount.source.stat()) for mount in mounts if mount.source.exists()]
    return {path: (state.st_size, state.st_mtime_ns) for path, state in found}
