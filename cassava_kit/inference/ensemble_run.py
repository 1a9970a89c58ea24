"""One submission run: measure, plan, vote unit by unit, keep the file on disk the best so far (`EnsembleRun.run`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from cassava_kit.data.listing import relative_names
from cassava_kit.data.progress import count_steps
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.kept_pixels import Budget
from cassava_kit.inference.machine import describe_device, package_versions, usable_devices
from cassava_kit.inference.members import MemberCheckpoint, Members, normalize_weights
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.pixels import PixelStore
from cassava_kit.inference.planner import Plan, choose_rows, cost_key, fits_all, make_units, order_units
from cassava_kit.inference.predict import choose_batch_size
from cassava_kit.inference.report import RunReport, print_line, print_warning
from cassava_kit.inference.runner import NotFiniteError, Runner
from cassava_kit.inference.votes import Votes
from cassava_kit.models.precision import Precision

WRITE_EVERY_SECONDS = 60.0
MEASURED_BATCHES = 3
# Measuring may take this share of the time that is left; its answers are votes like any other.
MEASURING_SHARE = 0.05
NAMED_FAILURES = 20


class EnsembleRun:
    """The state of one run; `run` does all of it and leaves the report filled. Seconds are the clock's."""

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
        self.votes = Votes(
            len(paths),
            np.array([unit.weight for unit in self.units]),
            np.asarray(members.prior, float),
            None if members.temperatures is None else np.asarray(members.temperatures, float),
        )
        self.plan = Plan(self.units, np.zeros(len(self.units)), len(paths))
        self.certified = options.early_stop == "certified"
        self.written = clock.used
        self.images = np.zeros(len(self.units), int)
        self.seconds = np.zeros(len(self.units))
        self.reading = 0.0
        self.timed_in: dict[str, Precision] = {}  # of a checkpoint, the precision whose speed the plan has

    def run(self) -> None:
        """Vote from the first images to the last, and write the last file and the report."""
        self.report.versions = package_versions()
        self.report.views = self.options.views or self.members.views
        devices = usable_devices(self.options.device)
        self.report.devices = [describe_device(device) for device in devices]
        self.store = PixelStore(
            self.paths,
            {unit.checkpoint.info.input_size for unit in self.units},
            budget=self.options.budget or Budget.of_machine(self.options.memory),
            keep=len(self.units) > 1,
            pinned=devices[0].type == "cuda",
            clock=self.clock,
        )
        with self.store:
            batch = choose_batch_size(self.options.batch_size, devices[0], len(self.paths))
            self.runner = Runner(self.store, devices, batch, self.clock)
            self.make_plan(overlap=devices[0].type != "cpu")
            with closing(self.runner.ahead):
                self.run_units()
            self.report.timings |= {
                "images_decoded": self.store.decoded,
                "decoding_threads": self.store.threads,
                "loading": self.runner.load_seconds,
                "work": self.reading + float(self.seconds.sum()),
            }
        self.fill_report()

    def make_plan(self, *, overlap: bool) -> None:
        """Measure, order the units and print the plan."""
        measured = self.measure()
        self.plan.left, self.plan.overlap = self.clock.left, overlap
        self.plan = order_units(self.plan)
        self.report.plan = self.plan.to_json()
        for line in self.plan.format_lines():
            print_line(line)
        print_line(f"measured on real images in {measured:.1f} s; those answers count")

    def measure(self) -> float:
        """Time reading, and every view of one checkpoint per cost group, on real images; returns the seconds it took.

        The cheapest groups come first. What there is no time to measure is taken to cost as much as the dearest so far.
        """
        start = self.clock.used
        allowed = MEASURING_SHARE * self.clock.left
        rows = np.arange(min(len(self.paths), self.runner.images_at_once * (1 + MEASURED_BATCHES)))
        self.vote_first(rows[: self.runner.images_at_once])
        self.plan.data_seconds = self.time_reading(rows)
        unknown = np.ones(len(self.units), bool)
        for group in self.cost_groups():
            if self.clock.left > 0 and (unknown.all() or self.clock.used - start < allowed):
                for u, seconds in self.time_group(group, rows).items():
                    self.plan.seconds[u] = seconds
                    unknown[u] = False
        self.plan.seconds[unknown] = self.plan.seconds.max()
        self.plan.kept[[unit.checkpoint.name in self.report.left_out for unit in self.units]] = False
        return self.clock.used - start

    def vote_first(self, rows: np.ndarray) -> None:
        """Let the cheapest checkpoint that works vote on the first rows and write the file; nothing was timed yet."""
        for group in self.cost_groups():
            for checkpoint in group:
                plain = self.units_of(checkpoint)[0]
                if self.clock.left <= 0 or self.run_views([plain], rows) is not None:
                    self.try_save()
                    return

    def units_of(self, checkpoint: MemberCheckpoint) -> list[int]:
        """Return the units of a checkpoint, its plain view first."""
        return [u for u, unit in enumerate(self.units) if unit.checkpoint is checkpoint]

    def cost_groups(self) -> list[list[MemberCheckpoint]]:
        """Return checkpoints that cost the same (one architecture at one size) together, smallest files first."""
        by_cost: dict[tuple[str, ...], list[MemberCheckpoint]] = {}
        for checkpoint in self.members.checkpoints:
            by_cost.setdefault(cost_key(checkpoint.info), []).append(checkpoint)
        return sorted(by_cost.values(), key=lambda group: group[0].path.stat().st_size)

    def time_reading(self, rows: np.ndarray) -> float:
        """Return the seconds per image from file to pixels in all sizes, with all threads at work."""
        at_once = self.runner.images_at_once
        unread = rows[at_once:] if len(rows) > at_once else rows
        start = self.clock.used
        for _ in self.store.batches(unread, self.store.sizes[0], self.runner.batch_size):
            pass
        self.reading = self.clock.used - start
        return self.reading / len(unread)

    def time_group(self, group: Sequence[MemberCheckpoint], rows: np.ndarray) -> dict[int, float]:
        """Return the seconds per image of every unit of one cost group, from its first checkpoint that works."""
        batch = self.runner.images_at_once
        for checkpoint in group:
            if checkpoint.name in self.report.left_out:
                continue
            own = self.units_of(checkpoint)
            plain = self.run_views(own[:1], rows[:batch])
            if plain is None:
                continue
            times: list[float | None] = [plain] * len(own)
            if len(rows) > batch:  # the first batch warmed the model up: the others tell its speed
                times = [self.run_views(own[:1], rows[batch:]), *(self.run_views([u], rows[:batch]) for u in own[1:])]
            by_view = {
                self.units[u].view.name: seconds for u, seconds in zip(own, times, strict=True) if seconds is not None
            }
            if len(by_view) < len(own):  # it failed in a later view: the next of the group is measured
                continue
            names = {one.name for one in group}
            self.timed_in |= dict.fromkeys(names, self.runner.precisions[checkpoint.path][0])
            return {u: by_view[unit.view.name] for u, unit in enumerate(self.units) if unit.checkpoint.name in names}
        return {}

    def run_views(self, own: Sequence[int], rows: np.ndarray, *, show: bool = False) -> float | None:
        """Let units of one checkpoint vote on rows in one pass; seconds per image and view, None where it failed."""
        first, start = self.units[own[0]], self.clock.used
        steps, done = len(rows) * len(own), 0
        with count_steps(self.name_of(own), steps, show=show and self.options.progress) as count_images:

            def count(v: int, seen: np.ndarray, probabilities: np.ndarray) -> None:
                new = ~self.votes.seen[seen, own[v]]
                self.votes.add(own[v], seen[new], probabilities[new])
                count_images(len(seen))
                if self.clock.used - self.written > WRITE_EVERY_SECONDS:
                    self.try_save()  # a run that is killed inside a long unit leaves a file of the last minute

            try:
                self.runner.load(first.checkpoint.path)
                self.load_ahead(own)
                start = self.clock.used
                expected = float(self.plan.seconds[list(own)].mean())
                views = [self.units[u].view for u in own]
                done = self.runner.predict(first.checkpoint.path, views, rows, count, seconds_per_image=expected)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                self.leave_out(first.checkpoint, reason, trusted=not isinstance(error, NotFiniteError))
                return None
            finally:
                self.votes.mark_unreadable(np.array(list(self.store.failed), int))
        seconds = (self.clock.used - start) / len(own)
        self.images[list(own)] += done
        self.seconds[list(own)] += seconds
        if done:
            self.plan_true_speed(own, seconds / done)
        return seconds / max(done, 1)

    def load_ahead(self, own: Sequence[int]) -> None:
        """Begin to read the checkpoint that the plan has after these units."""
        order = self.plan.order
        later = order[max(order.index(u) for u in own) + 1 :] if set(own) <= set(order) else ()
        others = (self.units[u].checkpoint for u in later if self.plan.kept[u])
        following = next((one for one in others if one is not self.units[own[0]].checkpoint), None)
        if following is not None:
            self.runner.load_ahead(following.path)

    def plan_true_speed(self, own: Sequence[int], seconds: float) -> None:
        """Plan a checkpoint anew that ran in another precision than the one whose speed was measured."""
        checkpoint = self.units[own[0]].checkpoint
        precision, planned = self.runner.precisions[checkpoint.path][0], self.timed_in.get(checkpoint.name)
        if planned in (None, precision):
            return
        self.plan.seconds[self.units_of(checkpoint)] *= seconds / float(self.plan.seconds[list(own)].mean())
        self.timed_in[checkpoint.name] = precision
        self.report.plan = self.plan.to_json()
        print_line(f"{checkpoint.name} is planned with {1000 * seconds:.2f} ms/image a view from now on")

    def run_units(self) -> None:
        """Run unit after unit in the plan's order, again for images passed over, until all is done or time is over.

        Where stopping early saved time, units that were dropped come back, the most valuable first.
        """
        while self.clock.left > 0:
            worked = [u for u in self.plan.order if self.plan.kept[u] and self.run_planned(u)]
            if not worked and not self.restore_unit():
                return

    def run_planned(self, u: int) -> bool:
        """Run one unit over the images that need it most, and write the file; whether anything was done.

        Further views of its checkpoint come along, on the same upload of the pixels, where nothing could stop early.
        """
        rows = self.choose_rows(u)
        if not len(rows) or self.clock.left <= self.runner.load_time(self.units[u].checkpoint.path):
            return False
        own = self.views_together(u)
        before, images, seconds = self.votes.labels(), self.images[own].sum(), self.seconds[own].sum()
        together = rows[~self.votes.seen[rows][:, own].any(axis=1)]
        # What only some of the views have seen while their speed was measured goes through the others first.
        passes = [([v], np.setdiff1d(self.choose_rows(v), together)) for v in own] if len(own) > 1 else []
        for views, waiting in (*passes, (own, together)):
            if len(waiting) and self.run_views(views, waiting, show=True) is None:
                self.try_save()
                return False
        self.try_save()
        done = int(self.images[own].sum() - images)
        if not done:
            return False
        milliseconds = 1000 * float(self.seconds[own].sum() - seconds) / done
        changed = int((self.votes.labels() != before).sum())
        finished = int(self.votes.finished(self.plan.kept, certified=self.certified).sum())
        print_line(
            f"{self.name_of(own)}: {done} images, {milliseconds:.2f} ms each, "
            f"{changed} labels changed, {finished} of {len(self.paths)} images finished"
        )
        return True

    def choose_rows(self, u: int) -> np.ndarray:
        """Return the rows (n,) that take unit `u` now."""
        return choose_rows(self.votes, self.plan, u, left=self.clock.left, certified=self.certified)

    def views_together(self, u: int) -> list[int]:
        """Return unit `u` and the planned units that share its pass: the checkpoint's further views.

        One pass would waste work where images are finished early. Under a time limit every image gets a vote first, and
        there must be time for everything.
        """
        votes, plan, left = self.votes, self.plan, self.clock.left
        short = left < float("inf") and (votes.without_vote().any() or not fits_all(votes, plan, left=left))
        if self.certified or short:
            return [u]
        later = plan.order[plan.order.index(u) :]
        return [v for v in later if plan.kept[v] and self.units[v].checkpoint is self.units[u].checkpoint]

    def name_of(self, own: Sequence[int]) -> str:
        """Return a unit's name, or that of a checkpoint through several views."""
        first = self.units[own[0]]
        return first.name if len(own) == 1 else f"{first.checkpoint.name} {len(own)} views"

    def restore_unit(self) -> bool:
        """Take the most valuable dropped unit back into the plan; False where there is none."""
        left_out = self.report.left_out
        dropped = [u for u in np.flatnonzero(~self.plan.kept) if self.units[u].checkpoint.name not in left_out]
        if not dropped:
            return False
        best = max(dropped, key=lambda u: self.units[u].worth / max(float(self.plan.seconds[u]), 1e-9))
        self.plan.kept[best] = True
        self.plan.order = (*self.plan.order, int(best))
        return True

    def leave_out(self, checkpoint: MemberCheckpoint, reason: str, *, trusted: bool = True) -> None:
        """Leave a checkpoint out that cannot be loaded or run any more.

        What it has voted stays counted if its answers are `trusted`, or if there is no other checkpoint to answer.
        """
        print_warning(f"{checkpoint.name} is left out: {reason}")
        self.report.left_out[checkpoint.name] = reason
        own = self.units_of(checkpoint)
        self.plan.kept[own] = False
        if not trusted and {one.name for one in self.members.checkpoints} - self.report.left_out.keys():
            self.votes.drop(own)

    def try_save(self) -> OSError | None:
        """Replace the file by the votes counted so far; returns what failed, which costs no vote and no report."""
        failed: OSError | None = None
        try:
            self.write(self.votes)
            self.report.prior_alone = not (self.votes.totals.sum(axis=1) > 0).any()
        except OSError as error:
            print_warning(f"the file could not be replaced, the last one stands for now: {error}")
            failed = error
        self.written = self.clock.used
        return failed

    def fill_report(self) -> None:
        """Write the last file, and what happened into the report."""
        votes, report, failed = self.votes, self.report, self.store.failed
        error = self.try_save()
        if error is not None:
            report.error = f"the last votes could not be written: {error}"
        names = relative_names(self.paths) if failed else []
        report.images_failed = {names[row]: failed[row] for row in sorted(failed)}
        for name, reason in list(report.images_failed.items())[:NAMED_FAILURES]:
            print_warning(f"{name} cannot be read and gets the prior's class: {reason}")
        report.class_counts = np.bincount(votes.labels(), minlength=len(votes.prior)).tolist()
        report.probabilities = votes.probabilities()
        if votes.temperatures is not None:
            moved = votes.moved_by_temperatures()
            report.temperatures = {"values": votes.temperatures.tolist(), "labels_moved": moved}
            print_line(f"temperatures of the classes moved {moved} of {len(self.paths)} labels")
        voted = {self.units[u].checkpoint.name for u in np.flatnonzero(votes.seen.any(axis=0))}
        used = normalize_weights([one for one in self.members.checkpoints if one.name in voted])
        report.members_used = [{"file": one.name, "member": one.member, "weight": one.weight} for one in used]
        readable = max(1, int((~votes.unreadable).sum()))
        report.early_stop["work_done"] = float(votes.seen[~votes.unreadable].sum()) / max(1, readable * len(self.units))
        report.precisions = {
            path.name: precision if reason is None else f"{precision} ({reason})"
            for path, (precision, reason) in self.runner.precisions.items()
        }
        report.timings["units"] = [
            {"unit": self.units[u].name, "images": int(self.images[u]), "seconds": round(float(self.seconds[u]), 4)}
            for u in np.flatnonzero(self.images)
        ]
