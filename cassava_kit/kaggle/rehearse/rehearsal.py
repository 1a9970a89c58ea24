"""Rehearse a submission: the very notebook, from the bundle as Kaggle would mount it, offline, in its own process.

What can be closed depends on the machine; the report says how it was done (`isolation.py`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from cassava_kit.competition import Competition, current
from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_file, write_json, write_text
from cassava_kit.inference.report import read_run
from cassava_kit.inference.submission import check_answers
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.credentials import collect_secrets, redact
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA, with_parameters
from cassava_kit.kaggle.rehearse import execute
from cassava_kit.kaggle.rehearse.isolation import Isolation, close_sockets, isolations, link_tree, private_environment
from cassava_kit.kaggle.rehearse.layout import (
    Layout,
    Mount,
    as_uploaded,
    competition_mounts,
    dataset_mounts,
    few_images,
    hidden_images,
    link_images,
)

Progress = Callable[[int, int], None]
REPORT = "rehearsal.json"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Setting:
    """How to rehearse: how many test images (None: all), Kaggle's limits on demand, which Python.

    `hidden` stands for the hidden test set: so many images, taken from test and training images and then repeated under
    new names. `memory` in GiB, `minutes` for the whole notebook; `python` is the interpreter of another environment,
    such as one with the versions of Kaggle's image; `isolation` asks for one by name instead of the strongest;
    `progress` is called with (cells done, cells).
    """

    images: int | None = None
    hidden: int | None = None
    cpus: int | None = None
    memory: float | None = None
    minutes: float | None = None
    python: str = sys.executable
    isolation: str | None = None
    progress: Progress | None = None

    @property
    def limits(self) -> str:
        """The limits that are kept, in words; empty where there are none."""
        have = len(os.sched_getaffinity(0))
        few = "" if self.cpus is None or self.cpus <= have else f" (there are {have})"
        plural = "" if self.cpus == 1 else "s"
        kept = [
            f"{self.cpus} CPU{plural}{few}" if self.cpus else "",
            f"{self.memory:g} GiB" if self.memory else "",
            f"{self.minutes:g} min" if self.minutes else "",
        ]
        return f"limits {', '.join(filter(None, kept))}" if any(kept) else ""


@dataclass(frozen=True)
class Rehearsal:
    """What came of it: `verdict` is for a person, `ok` for a script; `memory` is the notebook's peak in bytes."""

    ok: bool
    verdict: str
    submission: Path
    seconds: float
    isolation: str
    log: str
    memory: int

    def __str__(self) -> str:
        return self.verdict


@dataclass(frozen=True)
class Stage:
    """What one rehearsal runs: the notebook, what it is given, and the folder that receives what it leaves."""

    notebook: Path
    mounts: Sequence[Mount]
    out: Path
    layout: Layout
    setting: Setting
    competition: Competition = field(default_factory=current)

    @property
    def working(self) -> Path:
        """What the notebook sees as `/kaggle/working`."""
        return self.out / "working"


class Judge(Protocol):
    """What judges the files that a run left."""

    def __call__(self, stage: Stage, *, ended: bool) -> tuple[list[str], str]: ...


def rehearse(
    bundle: Bundle,
    competition_dir: str | Path,
    out: str | Path,
    *,
    layout: Layout = "new",
    setting: Setting | None = None,
) -> Rehearsal:
    """Execute the bundle's notebook and check what it leaves: `out/working/submission.csv`, `run.json`, and its log.

    What the notebook does never raises: the verdict says it.
    """
    setting, out = setting or Setting(), Path(out).resolve()
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        facts = bundle.competition
        mounts = _competition(Path(competition_dir), Path(scratch), layout, setting=setting, competition=facts)
        mounts += _datasets(bundle, Path(scratch), layout)
        stage = Stage(bundle.notebook.resolve(), mounts, out, layout, setting, facts)
        return _rehearse(stage, bundle, Path(scratch))


def rehearse_training(
    bundle: Bundle,
    competition_dir: str | Path,
    out: str | Path,
    *,
    layout: Layout = "new",
    setting: Setting | None = None,
    parameters: Mapping[str, Any] | None = None,
    per_class: int = 5,
) -> Rehearsal:
    """Execute the notebook of a kernel without weights on `per_class` images of every class; check what it leaves.

    `parameters` are set after those that it was packed with: they cut it down to an epoch that takes seconds. What the
    user attached lies on Kaggle and is not there. What the notebook does never raises: the verdict says it.
    """
    setting, out, facts = setting or Setting(), Path(out).resolve(), bundle.competition
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        few = few_images(Path(competition_dir), per_class, Path(scratch) / "competition", facts)
        notebook = Path(scratch) / bundle.notebook.name
        text = bundle.notebook.read_text(encoding="utf-8")
        write_text(notebook, with_parameters(text, parameters or {}, bundle.kernel.name))
        mounts = competition_mounts(few, layout, facts) + _datasets(bundle, Path(scratch), layout)
        return _rehearse(Stage(notebook, mounts, out, layout, setting, facts), bundle, Path(scratch))


def _rehearse(stage: Stage, bundle: Bundle, scratch: Path) -> Rehearsal:
    """Run what is on the stage, judge it, and write the report that the doctor reads."""
    if stage.working.exists():
        shutil.rmtree(stage.working)
    stage.working.mkdir(parents=True)
    before = _state(stage.mounts)
    result, isolation = perform(stage, scratch)
    changed = [str(path) for path, state in _state(stage.mounts).items() if before.get(path) != state]
    check = _check_submission if bundle.kernel.weights else partial(_check_left, bundle.kernel.leaves)
    rehearsal = _judge(stage, result, isolation, changed, check)
    report = asdict(rehearsal) | {"layout": stage.layout, "kernel": bundle.kernel.name, "submission": None}
    report |= {"build_id": bundle.build_id, "notebook": sha256_file(bundle.notebook)}
    write_json(stage.out / REPORT, report)
    return rehearsal


def _competition(
    folder: Path, scratch: Path, layout: Layout, *, setting: Setting, competition: Competition
) -> list[Mount]:
    """The competition as Kaggle mounts it, with as many test images as are asked for."""
    from cassava_kit.data.images import quick_check
    from cassava_kit.data.table import list_images

    tests, training = folder / competition.test_images, folder / competition.train_images
    if setting.hidden is not None:
        images = hidden_images([place for place in (tests, training) if place.is_dir()], setting.hidden)
    elif setting.images is not None:
        # A broken picture among the first would be all there is of a small set: whole ones come first.
        names = sorted(list_images(tests), key=lambda name: quick_check(tests / name) is not None)
        images = {name: tests / name for name in names[: setting.images]}
    else:
        return competition_mounts(folder, layout, competition)
    return competition_mounts(folder, layout, competition, test_images=link_images(images, scratch / "test_images"))


def _datasets(bundle: Bundle, scratch: Path, layout: Layout) -> list[Mount]:
    """The bundle's datasets as they arrive on Kaggle, under the names that the notebook's metadata attaches."""
    mounts: list[Mount] = []
    sources, folders = read_json(bundle.kernel_dir / KERNEL_METADATA)["dataset_sources"], bundle.datasets
    if len(sources) < len(folders) or (bundle.kernel.weights and len(sources) > len(folders)):
        raise UserError(
            f"{bundle.kernel_dir / KERNEL_METADATA} must attach the bundle's {len(folders)} datasets and no other, "
            f"got {', '.join(sources) or 'none'}; package it again"
        )
    for dataset, (_, folder) in zip(sources, folders, strict=False):
        mounts += dataset_mounts(as_uploaded(folder, scratch / "datasets" / folder.name), dataset, layout)
    return mounts


def _state(mounts: Sequence[Mount]) -> dict[Path, tuple[int, int]]:
    found = [(mount.source, mount.source.stat()) for mount in mounts if mount.source.exists()]
    return {path: (state.st_size, state.st_mtime_ns) for path, state in found}


def perform(stage: Stage, scratch: Path) -> tuple[dict[str, Any], Isolation]:
    """Run the executor in the strongest isolation that can be set up here."""
    for isolation in isolations(stage.setting.isolation):
        place = Path(tempfile.mkdtemp(prefix="run-", dir=scratch))
        environment = _environment(stage, place, isolation)
        spec = _spec(stage, place, isolation)
        write_json(place / "spec.json", spec)
        script = Path(execute.__file__).resolve()
        # -P: the script's own folder, which is the kit's, does not go on the path.
        command = [*isolation.command, stage.setting.python, "-P", str(script), str(place / "spec.json")]
        code, complaint = _follow(command, environment, place, stage.setting.progress)
        if code == execute.NO_NAMESPACE:
            continue
        if Path(spec["result"]).is_file():
            return read_json(spec["result"]), isolation
        return {"error": f"the notebook could not be run (exit code {code}): {complaint}"}, isolation
    raise UserError("this machine cannot set up the isolation that was asked for; leave the choice to the rehearsal")


def _follow(
    command: Sequence[str], environment: dict[str, str], place: Path, progress: Progress | None
) -> tuple[int, str]:
    """Run a command, passing on its progress; returns its exit code and the end of what it complained about."""
    with (place / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        for line in process.stdout or ():
            if progress and line.startswith('{"cell"'):
                step = json.loads(line)
                progress(step["cell"], step["cells"])
        code = process.wait()
        errors.seek(0)
        return code, errors.read().strip()[-2000:]


def _environment(stage: Stage, place: Path, isolation: Isolation) -> dict[str, str]:
    environment = private_environment(place)
    if stage.setting.minutes:
        # As on Kaggle, where the notebook stops itself after 8.5 of the 9 hours.
        own_share = stage.competition.submission_seconds / (stage.competition.gpu_hours * 3600)
        environment["CASSAVA_KIT_TIME_LIMIT"] = f"{stage.setting.minutes * 60 * own_share:.1f}"
    if not isolation.mounts:
        environment["KAGGLE_INPUT_DIR"] = str(link_tree(stage.mounts, place / "input"))
        environment["KAGGLE_WORKING_DIR"] = str(stage.working)
    if not isolation.network:
        environment["PYTHONPATH"] = str(close_sockets(place))
    return environment


def _spec(stage: Stage, place: Path, isolation: Isolation) -> dict[str, Any]:
    setting = stage.setting
    return {
        "scratch": str(place),
        "notebook": str(stage.notebook),
        "executed": str(stage.out / stage.notebook.name),
        "result": str(place / "result.json"),
        "working": str(stage.working),
        "cwd": "/kaggle/working" if isolation.mounts else str(stage.working),
        "mounts": [[str(mount.source), str(mount.target)] for mount in stage.mounts],
        "network_namespace": isolation.network,
        "mount_namespace": isolation.mounts,
        "cpus": setting.cpus,
        "memory": int(setting.memory * 2**30) if setting.memory else None,
        "seconds": setting.minutes * 60 if setting.minutes else None,
    }


def _judge(
    stage: Stage, result: dict[str, Any], isolation: Isolation, changed: Sequence[str], check: Judge
) -> Rehearsal:
    """Hold what was left behind against what Kaggle would ask of it."""
    secrets = collect_secrets()
    log = COLOURS.sub("", redact(result.get("log", ""), secrets))
    write_text(stage.out / "log.txt", log)
    executed = stage.out / stage.notebook.name
    if executed.is_file():
        write_text(executed, redact(executed.read_text(encoding="utf-8"), secrets))
    wrong = [redact(result["error"], secrets)] if result["error"] else []
    wrong += [f"the notebook changed its input: {', '.join(changed)}"] if changed else []
    found, left = check(stage, ended=not result["error"])
    wrong += found
    seconds, memory = result.get("seconds", 0.0), result.get("peak_memory", 0)
    used = f"used {seconds:.0f} s and {memory / 2**30:.1f} GiB"
    how = ", ".join(filter(None, (f"{stage.layout} layout", isolation.report, stage.setting.limits, used)))
    said = f"FAILED ({how}): {'; '.join(wrong)}" if wrong else f"passed ({how}): {left}"
    submission = stage.working / "submission.csv"
    return Rehearsal(not wrong, f"rehearsal {said}", submission, seconds, isolation.report, log, memory)


def _check_submission(stage: Stage, *, ended: bool) -> tuple[list[str], str]:
    """Return what is wrong with the submission and with the run's own report, and what is there."""
    images = next(mount.source for mount in stage.mounts if mount.target.name == stage.competition.test_images)
    try:
        rows = str(check_answers(stage.working / "submission.csv", images, stage.competition))
        wrong, notes = read_run(stage.working) if ended else ([], "")
    except (ValueError, FileNotFoundError) as error:
        return [str(error)], ""
    return wrong, f"{rows}; {notes}"


def _check_left(pattern: str, stage: Stage, *, ended: bool) -> tuple[list[str], str]:
    """Return what is missing of the files that a kernel leaves, and what is there."""
    found = sorted(path.relative_to(stage.working).as_posix() for path in stage.working.glob(pattern))
    return ([] if found or not ended else [f"it left no {pattern}"]), f"it left {', '.join(found)}"
