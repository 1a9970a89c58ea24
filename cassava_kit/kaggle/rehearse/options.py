"""What a rehearsal is asked and what it answers: `RehearsalOptions`, `NotebookRun`, `Rehearsal`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cassava_kit.competition import Competition, current
from cassava_kit.kaggle.rehearse.layout import Layout, Mount

CellProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class RehearsalOptions:
    """How to rehearse.

    `images`: at most that many test images; None: all.
    `hidden`: that many test images in place of the hidden set, the same ones repeated under new names.
    `cpus`, `memory` (GiB), `minutes`: Kaggle's limits, for the whole notebook.
    `python`: the interpreter of another environment, such as one with the versions of Kaggle's image.
    `isolation`: one by name instead of the strongest that the machine allows.
    `progress`: called with (cells done, cells).
    `parameters`, `per_class`: for a kernel without weights, parameters that make it small, set after those that it was
    packed with, and how many training images of every class it gets; None: the whole folder.
    """

    images: int | None = None
    hidden: int | None = None
    cpus: int | None = None
    memory: float | None = None
    minutes: float | None = None
    python: str = field(default_factory=lambda: sys.executable)
    isolation: str | None = None
    progress: CellProgress | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    per_class: int | None = 6

    @property
    def limits(self) -> str:
        """The limits as text, e.g. `limits 4 CPUs, 29 GiB`; empty where there are none."""
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
class NotebookRun:
    """One run of a notebook: what is mounted, and the folder for the executed notebook, its log and its output."""

    notebook: Path
    mounts: Sequence[Mount]
    out: Path
    layout: Layout
    options: RehearsalOptions
    competition: Competition = field(default_factory=current)

    @property
    def working(self) -> Path:
        """The folder that the notebook sees as `/kaggle/working`."""
        return self.out / "working"


@dataclass(frozen=True)
class Rehearsal:
    """The outcome: `verdict` is one line for the reader, `memory` the notebook's peak in bytes."""

    ok: bool
    verdict: str
    submission: Path
    seconds: float
    isolation: str
    log: str
    memory: int

    def __str__(self) -> str:
        return self.verdict
