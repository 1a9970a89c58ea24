"""One submission run at work: measure, plan, vote unit by unit, and keep the file on disk the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cassava_kit.inference.clock import Clock
from cassava_kit.inference.machine import describe_device, usable_devices, versions
from cassava_kit.inference.members import Members, Part, reweighted
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.pixels import Budget, PixelStore
from cassava_kit.inference.planner import Plan, arranged, choose_rows, kind_of, make_units
from cassava_kit.inference.predict import fitting_batch
from cassava_kit.inference.report import RunReport, progress_bar, say, warn
from cassava_kit.inference.runner import Runner
from cassava_kit.inference.votes import StopRule, Votes

WRITE_EVERY_SECONDS = 60.0
MEASURED_BATCHES = 3
# Measuring may take this share of the time that is left; its answers are votes like any other.
MEASURING_SHARE = 0.05


class Session:
    """The state of one run; `work` does it all and leaves the report filled."""

    def __init__(
        self,
        paths: Sequence[Path],
        members: Members,
        *,
        clock: Clock,
        options: RunOptions,
        report: RunReport,
        write: Callable[[Votes], None],
    ) -> None:
        self.paths, self.members, self.clock, self.options, self.report = paths, members, clock, options, report
        self.write = write
        self.units = make_units(members, options.views or members.views)
        self.votes = Votes(len(paths), np.array([unit.weight for unit in self.units]), np.asarray(members.prior, float))
        self.plan = Plan(self.units, np.zeros(len(self.units)), len(paths))
        self.rule = StopRule(options.early_stop)
        self.written = time.monotonic()
        self.images = np.zeros(len(self.units), int)
        self.seconds = np.zeros(len(self.units))
        self.reading = 0.0

    def work(self) -> None:
        """Everything from the first votes to the last file."""
        self.report.versions = versions()
        self.report.views = self.options.views or self.members.views
        devices = usable_devices(self.options.device)
        self.report.devices = [describe_device(device) for device in devices]
        self.store = PixelStore(
            self.paths,
            {unit.part.info.input_size for unit in self.units},
            budget=self.options.budget or Budget.of_machine(self.options.memory),
            keep=len(self.units) > 1,
            pinned=devices[0].type == "cuda",
            clock=self.clock,
        )
        with self.store:
            batch = fitting_batch(self.options.batch_size, devices[0], len(self.paths))
            self.runner = Runner(self.store, devices, batch, self.clock)
            self.make_plan(overlap=devices[0].type != "cpu")
            self.sweep()
            self.report.timings |= {
                "images_decoded": self.store.decoded,
                "decoding_threads": self.store.threads,
                "loading": self.runner.load_seconds,
                "work": self.reading + float(self.seconds.sum()),
            }
        self.conclude()

    def make_plan(self, *, overlap: bool) -> None:
        """Measure, order the units and print the plan."""
        measured = self.measure()
        self.plan.left, self.plan.overlap = self.clock.left, overlap
        self.plan = arranged(self.plan)
        self.report.plan = self.plan.as_json()
        for line in self.plan.lines():
            say(line)
        say(f"measured on real images in {measured:.1f} s; those answers count")

    def measure(self) -> float:
        """Time reading, and every view of one checkpoint per kind, on real images; returns the seconds it took.

        The cheapest kinds come first. What there is no time to measure is taken to cost as much as the dearest so far.
        """
        start = time.monotonic()
        allowed = MEASURING_SHARE * self.clock.left
        rows = np.arange(min(len(self.paths), self.runner.at_once * (1 + MEASURED_BATCHES)))
        self.vote_first(rows[: self.runner.at_once])
        self.plan.data_seconds = self.time_reading(rows)
        unknown = np.ones(len(self.units), bool)
        for kind in self.kinds():
            if self.clock.left > 0 and (unknown.all() or time.monotonic() - start < allowed):
                for u, seconds in self.time_kind(kind, rows).items():
                    self.plan.seconds[u] = seconds
                    unknown[u] = False
        self.plan.seconds[unknown] = self.plan.seconds.max()
        self.plan.kept[[unit.part.name in self.report.left_out for unit in self.units]] = False
        return time.monotonic() - start

    def vote_first(self, rows: np.ndarray) -> None:
        """Let the cheapest checkpoint that works vote on the first rows and write the file; nothing was timed yet."""
        for kind in self.kinds():
            for part in kind:
                own = [u for u, unit in enumerate(self.units) if unit.part is part]
                if self.clock.left <= 0 or self.run_unit(own[0], rows) is not None:
                    self.save_meanwhile()
                    return

    def kinds(self) -> list[list[Part]]:
        """Checkpoints that cost the same (one architecture at one size), smallest files first."""
        by_kind: dict[tuple[str, ...], list[Part]] = {}
        for part in self.members.parts:
            by_kind.setdefault(kind_of(part.info), []).append(part)
        return sorted(by_kind.values(), key=lambda parts: parts[0].path.stat().st_size)

    def time_reading(self, rows: np.ndarray) -> float:
        """Seconds per image from file to pixels in all formats, with all threads at work."""
        start = time.monotonic()
        unread = rows[self.runner.at_once :] if len(rows) > self.runner.at_once else rows
        for _ in self.store.batches(unread, self.store.sizes[0], self.runner.batch_size):
            pass
        self.reading = time.monotonic() - start
        return self.reading / len(unread)

    def time_kind(self, parts: Sequence[Part], rows: np.ndarray) -> dict[int, float]:
        """Seconds per image of every unit of one kind, from its first checkpoint that works."""
        batch = self.runner.at_once
        for part in parts:
            if part.name in self.report.left_out:
                continue
            own = [u for u, unit in enumerate(self.units) if unit.part is part]
            plain = self.run_unit(own[0], rows[:batch])
            if plain is None:
                continue
            times: list[float | None] = [plain] * len(own)
            if len(rows) > batch:  # the first batch warmed the model up: the others tell its speed
                times = [self.run_unit(own[0], rows[batch:]), *(self.run_unit(u, rows[:batch]) for u in own[1:])]
            by_view = {
                self.units[u].view.name: seconds for u, seconds in zip(own, times, strict=True) if seconds is not None
            }
            if len(by_view) < len(own):  # it failed in a later view: its next sister tells
                continue
            names = {part.name for part in parts}
            return {u: by_view[unit.view.name] for u, unit in enumerate(self.units) if unit.part.name in names}
        return {}

    def run_unit(self, u: int, rows: np.ndarray, *, talk: bool = False) -> float | None:
        """Let unit `u` vote on rows that it has not seen; seconds per image, or None where its checkpoint failed."""
        unit, start = self.units[u], time.monotonic()
        done = 0
        with progress_bar(len(rows), unit.name, show=talk and self.options.progress) as bar:

            def count(seen: np.ndarray, probabilities: np.ndarray) -> None:
                new = ~self.votes.seen[seen, u]
                self.votes.add(u, seen[new], probabilities[new])
                bar.update(len(seen))
                if time.monotonic() - self.written > WRITE_EVERY_SECONDS:
                    self.save_meanwhile()  # a long unit must not leave an old file behind if the run is killed

            try:
                self.runner.load(unit.part.path)
                start = time.monotonic()
                expected = float(self.plan.seconds[u])
                done = self.runner.run(unit.part.path, unit.view, rows, count, seconds_per_image=expected)
            except Exception as error:
                self.lose(unit.part, f"{type(error).__name__}: {error}".splitlines()[0])
                return None
            finally:
                self.votes.give_up(np.array(list(self.store.failed), int))
        seconds = time.monotonic() - start
        self.images[u] += done
        self.seconds[u] += seconds
        return seconds / max(done, 1)

    def sweep(self) -> None:
        """Unit after unit in the plan's order, again for images passed over, until nothing is left to do or no time.

        Where stopping early saved time, units that were dropped come back, the most valuable first.
        """
        while self.clock.left > 0:
            worked = [u for u in self.plan.order if self.plan.kept[u] and self.step(u)]
            if not worked and not self.readmit():
                return

    def step(self, u: int) -> bool:
        """One unit over the images that need it most; whether anything was done."""
        rows = choose_rows(self.votes, self.plan, u, left=self.clock.left, rule=self.rule)
        if not len(rows) or self.clock.left <= self.runner.load_time(self.units[u].part.path):
            return False
        before, done = self.votes.labels(), self.images[u]
        seconds = self.run_unit(u, rows, talk=True)
        self.save_meanwhile()
        if seconds is None or self.images[u] == done:
            return False
        changed = int((self.votes.labels() != before).sum())
        finished = int(self.rule.finished(self.votes, self.plan.kept).sum())
        say(
            f"{self.units[u].name}: {self.images[u] - done} images, {1000 * seconds:.2f} ms each, "
            f"{changed} labels changed, {finished} of {len(self.paths)} images finished"
        )
        return True

    def readmit(self) -> bool:
        """Take the most valuable dropped unit back into the plan; False where there is none."""
        dropped = [u for u in np.flatnonzero(~self.plan.kept) if self.units[u].part.name not in self.report.left_out]
        if not dropped:
            return False
        best = max(dropped, key=lambda u: self.units[u].worth / max(float(self.plan.seconds[u]), 1e-9))
        self.plan.kept[best] = True
        self.plan.order = (*self.plan.order, int(best))
        return True

    def lose(self, part: Part, reason: str) -> None:
        """Leave a checkpoint out that cannot be loaded or run; what it has voted stays counted."""
        warn(f"{part.name} is left out: {reason}")
        self.report.left_out[part.name] = reason
        self.plan.kept[[unit.part is part for unit in self.units]] = False

    def save(self) -> None:
        """Replace the file by the votes counted so far."""
        self.write(self.votes)
        self.report.prior_alone = not (self.votes.totals.sum(axis=1) > 0).any()

    def save_meanwhile(self) -> OSError | None:
        """The same; a disk that is full costs no checkpoint its votes and the run no report. Returns what failed."""
        failed: OSError | None = None
        try:
            self.save()
        except OSError as error:
            warn(f"the file could not be replaced, the last one stands for now: {error}")
            failed = error
        self.written = time.monotonic()
        return failed

    def conclude(self) -> None:
        """The last file, and what happened."""
        failed_write = self.save_meanwhile()
        if failed_write is not None:
            self.report.error = f"the last votes could not be written: {failed_write}"
        votes, report = self.votes, self.report
        failed = self.store.failed
        report.images_failed = {self.paths[row].name: failed[row] for row in sorted(failed)}
        for name, reason in list(report.images_failed.items())[:20]:
            warn(f"{name} cannot be read and gets the prior's class: {reason}")
        report.class_counts = np.bincount(votes.labels(), minlength=len(votes.prior)).tolist()
        voted = {self.units[u].part.name for u in np.flatnonzero(votes.seen.any(axis=0))} - report.left_out.keys()
        report.members_used = [
            {"file": part.name, "member": part.member, "weight": part.weight}
            for part in reweighted([part for part in self.members.parts if part.name in voted])
        ]
        alive = max(1, int((~votes.dead).sum()))
        report.early_stop = vars(self.rule) | {
            "asked": self.options.early_stop,
            "work_done": float(votes.seen[~votes.dead].sum()) / max(1, alive * len(self.units)),
        }
        report.timings["units"] = [
            {"unit": self.units[u].name, "images": int(self.images[u]), "seconds": round(float(self.seconds[u]), 4)}
            for u in np.flatnonzero(self.images)
        ]
