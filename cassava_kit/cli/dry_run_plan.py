"""What a dry run will do and how long each stage takes on this machine: `expect_stages`, said by `Expected`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.files import DONE_FILE, read_json
from cassava_kit.inference.clock import process_start
from cassava_kit.inference.machine import cpu_count
from cassava_kit.training.recipe_run import PlannedRecipe
from cassava_kit.training.ssl.config import PretrainConfig

STAGES = ("Competition data", "Code", "Folds", "Members", "Ensemble", "Bundle", "Notebook, offline", "Check")
STAGES_FILE = "stages.json"  # seconds of the last run's stages, in its folder
MEMBERS, NOTEBOOK = STAGES[3], STAGES[6]
# Until a run has been: a notebook starts Python, Jupyter and the same libraries, and unpacks and checks the kit.
NOTEBOOK_STARTS = 2


@dataclass(frozen=True)
class Expected:
    """Expected seconds: of each stage, of each job of the members (`jobs`), and what the figures come from."""

    stages: Mapping[str, float]
    jobs: Mapping[str, float]
    at_once: int
    basis: str
    known: frozenset[str] = field(default_factory=frozenset)
    loading: float = 0.0  # seconds in which a process loads its libraries

    @property
    def total(self) -> float:
        """Seconds of the whole run."""
        return sum(self.stages.values())

    def with_jobs(self, jobs: Mapping[str, float]) -> Expected:
        """Return the expectation for other jobs; nothing is timed again."""
        seconds = members_seconds(jobs, self.at_once, self.loading)
        return replace(self, jobs=jobs, stages={**self.stages, MEMBERS: seconds})

    def bar(self) -> dict[str, float]:
        """Return the seconds by label that fill the overall bar: the members' by job, which share the processes."""
        jobs = {name: seconds / self.at_once for name, seconds in self.jobs.items()}
        return {**{name: seconds for name, seconds in self.stages.items() if name != MEMBERS}, **jobs}

    def __str__(self) -> str:
        what = {
            "Competition data": "read the table, look at the folder",
            "Code": "pack the kit as Kaggle gets it",
            "Folds": "find near-duplicates, split",
            MEMBERS: self._members(),
            "Ensemble": "weigh the members by what they predict out of fold",
            "Bundle": "pack weights and notebook",
            NOTEBOOK: "run the notebook as Kaggle will, network closed: with one image and with all",
            "Check": "check submission.csv, draw a picture of it",
        }
        lines = [
            f"{n}. {name:17}  {'' if name not in self.known else format_seconds(self.stages[name]):>9}  {what[name]}"
            for n, name in enumerate(STAGES, start=1)
        ]
        total = f"about {format_seconds(self.total)} in all on {cpu_count()} cores; {self.basis}"
        return "\n".join(["This run, and how long each stage takes here:", *lines, total])

    def _members(self) -> str:
        """Return in words what is trained: each run with the number of its folds."""
        runs = Counter(name.rpartition(" fold")[0] or name for name in self.jobs)
        listed = [
            f"{name} ({n} fold{'s' if n > 1 else ''})" if f"{name} fold" in " ".join(self.jobs) else name
            for name, n in runs.items()
        ]
        return f"train {', '.join(listed)}, {self.at_once} at once" if listed else "all trained already"


def format_seconds(seconds: float) -> str:
    """Return seconds in words: `40 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def expect_stages(
    planned: Sequence[PlannedRecipe],
    table: TrainTable,
    out: Path,
    *,
    n_splits: int,
    at_once: int,
    pretraining: tuple[str, PretrainConfig, int] | None = None,
) -> Expected:
    """Return how long each stage will take: training by a few timed steps, the rest as in the run before.

    `pretraining` is the label, configuration and number of images of a pretraining that is still to be done. Finished
    folds count as reused. Before the first run the notebook's time is that in which this program loaded its libraries.
    """
    from cassava_kit.training.expected import fold_seconds
    from cassava_kit.training.side_by_side import choose_threads
    from cassava_kit.training.ssl.expected import pretraining_seconds

    loaded = time.time() - process_start()
    paths = [table.image_dir / name for name in table.frame["image_id"]]
    jobs: dict[str, float] = {}
    if pretraining is not None:
        label, config, n_images = pretraining
        jobs[label] = pretraining_seconds(config, n_images, threads=1)
    for one in planned:
        folds = [k for k in range(n_splits) if not (out / "runs" / one.name / f"fold{k}" / DONE_FILE).is_file()]
        if folds:
            threads = choose_threads(one.config, at_once)
            each = fold_seconds(one.config, paths, n_splits, threads=threads)
            jobs |= {one.label(k): each for k in folds}
    before = last_stages(out)
    stages = dict.fromkeys(STAGES, 0.0) | {name: seconds for name, seconds in before.items() if name in STAGES}
    stages[MEMBERS] = members_seconds(jobs, at_once, loaded)
    basis = "training by a few steps timed now" if jobs else "nothing is to be trained"
    if before:
        basis += ", the rest as in the last run here"
        return Expected(stages, jobs, at_once, basis, frozenset(STAGES), loaded)
    stages[NOTEBOOK] = NOTEBOOK_STARTS * loaded
    basis += (
        f", the notebook by the {loaded:.0f} s in which this program loaded its libraries, twice; the rest is short"
    )
    return Expected(stages, jobs, at_once, basis, frozenset((MEMBERS, NOTEBOOK)), loaded)


def members_seconds(jobs: Mapping[str, float], at_once: int, loading: float) -> float:
    """Return seconds of jobs that share processes, each of which loads its libraries first; 0 without jobs."""
    return max(sum(jobs.values()) / at_once, *jobs.values()) + loading if jobs else 0.0


def last_stages(out: Path) -> dict[str, float]:
    """Return the seconds of the last run's stages in this folder; empty where there was none."""
    try:
        found = read_json(out / STAGES_FILE)
    except (FileNotFoundError, UserError):
        return {}
    return {name: float(value) for name, value in found.items()} if isinstance(found, dict) else {}
