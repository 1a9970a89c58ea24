"""Which engine a checkpoint runs in on the CPU: measured on real images, and only where the answers agree."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from cassava_kit.checkpoint import CheckpointInfo
from cassava_kit.inference.choices import ENGINES, check_choice, lacking
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.engine import Engine, build_engine
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.report import warn
from cassava_kit.inference.tta import make_views

# Probabilities on real images may differ from eager torch's by this much at most.
TOLERANCE = 1e-4
# Seconds to build, before one was built in this run, in the order of trial: the quickest builder first.
BUILD_SECONDS = {"onnx": 2.0, "openvino": 2.0, "compiled": 90.0}
# The share of the work that an engine is hoped to save over eager torch, and over an engine that was found already.
HOPED_FIRST, HOPED_NEXT = 0.2, 0.05
PLAIN = make_views("none")[0]


def kind_of(info: CheckpointInfo) -> tuple[str, ...]:
    """What decides a checkpoint's cost: architecture, head, input size and path to the pixels."""
    return info.model, str(info.model_args), info.head, str(info.input_size), info.pixels


@dataclass
class Trial:
    """One engine tried on one checkpoint: seconds to build, seconds per image, largest difference to eager torch."""

    checkpoint: str
    engine: str
    build_seconds: float = 0.0
    seconds_per_image: float = 0.0
    difference: float = 0.0
    verdict: str = ""
    run: Engine | None = None

    def as_json(self) -> dict[str, Any]:
        """The trial for `run.json`."""
        return {key: value for key, value in vars(self).items() if key != "run"}


@dataclass
class Engines:
    """The choice of engine by kind of checkpoint; `passes` is how many images, views counted, each has before it.

    `wanted` is an engine by name, or `auto`: eager torch first, then each installed engine whose building the work
    could pay back. What is not installed, fails or answers otherwise is passed over, and stands in `trials`.
    """

    wanted: str = "eager"
    passes: int = 0
    clock: Clock = field(default_factory=Clock)
    trials: list[Trial] = field(default_factory=list)
    _best: dict[tuple[str, ...], str] = field(default_factory=dict)
    _build: dict[str, float] = field(default_factory=lambda: dict(BUILD_SECONDS))

    def __post_init__(self) -> None:
        check_choice("engine", self.wanted, ENGINES)

    def speed_up(self, forward: Forward, sample: Callable[[], torch.Tensor]) -> None:
        """Give a checkpoint on the CPU its engine; `sample` makes a batch (B, H, W, 3) uint8 of real images."""
        if forward.device.type != "cpu" or self.wanted == "eager":
            return
        kind = kind_of(forward.info)
        known = self._best.get(kind, None if self.wanted == "auto" else self.wanted)
        if known == "eager":
            return
        pixels = sample()
        expected, eager = timed(forward, pixels)
        if known is not None:
            trial = self.attempt(known, forward, pixels, expected=expected)
            if trial.run is None and self.wanted != "auto":
                warn(f"{forward.info.name} runs in eager torch: {known} {trial.verdict}")
            self.take(forward, trial, len(pixels))
            return
        best = self.search(forward, pixels, expected=expected, eager=eager)
        self.take(forward, best, len(pixels))
        self._best[kind] = best.engine if best is not None and self.repays(best, eager) else "eager"

    def search(self, forward: Forward, pixels: torch.Tensor, *, expected: torch.Tensor, eager: float) -> Trial | None:
        """The fastest engine that agrees with eager torch, among those worth building; None for eager torch."""
        best: Trial | None = None
        for name in BUILD_SECONDS:
            now = best.seconds_per_image if best is not None else eager
            work = min(self.passes * now, self.clock.left)
            hoped = HOPED_NEXT if best is not None else HOPED_FIRST
            if lacking(name) is not None or hoped * work <= self._build[name]:
                continue
            trial = self.attempt(name, forward, pixels, expected=expected)
            if trial.run is not None and trial.seconds_per_image < now:
                best = trial
        return best

    def attempt(self, name: str, forward: Forward, pixels: torch.Tensor, *, expected: torch.Tensor) -> Trial:
        """Build one engine and try it on real images; its `run` is None where it failed or answers otherwise."""
        trial = Trial(forward.info.name, name)
        self.trials.append(trial)
        start = time.monotonic()
        try:
            forward.engine = build_engine(name, forward.model, (len(pixels), 3, *forward.info.input_size))
            forward.engine_batch = len(pixels)
            trial.build_seconds = self._build[name] = time.monotonic() - start
            answer, trial.seconds_per_image = timed(forward, pixels)
            trial.difference = float((answer - expected).abs().max())
            agrees = trial.difference <= TOLERANCE  # also false for what is not a number
            trial.verdict = "agrees" if agrees else f"answers otherwise (by {trial.difference:.1e})"
            trial.run = forward.engine if agrees else None
        except Exception as error:  # a network that this engine does not take
            trial.verdict = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
        forward.engine = None
        return trial

    def repays(self, trial: Trial, eager: float) -> bool:
        """Whether a sister checkpoint, which needs a build of its own, is faster with it all in all."""
        return self.passes * (eager - trial.seconds_per_image) > trial.build_seconds

    def take(self, forward: Forward, trial: Trial | None, batch_size: int) -> None:
        """Let the checkpoint run in the engine that was tried."""
        if trial is not None and trial.run is not None:
            forward.engine, forward.engine_batch, forward.engine_name = trial.run, batch_size, trial.engine


def timed(forward: Forward, pixels: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Probabilities of a batch, and the seconds per image of the second run: the first one warms up."""
    answer = forward.start(pixels, PLAIN)
    start = time.monotonic()
    forward.start(pixels, PLAIN)
    return answer, (time.monotonic() - start) / len(pixels)
