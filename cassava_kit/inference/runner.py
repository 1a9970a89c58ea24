"""Rows of images through a checkpoint's views, on every device at once, within the time: `Runner.predict`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cassava_kit.errors import UserError
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.device_queue import is_out_of_memory, make_queue
from cassava_kit.inference.forward import Forward, Started, place
from cassava_kit.inference.loading import Prefetch
from cassava_kit.inference.machine import free_device_memory
from cassava_kit.inference.pixels import PixelBatch, PixelStore
from cassava_kit.inference.report import print_warning
from cassava_kit.inference.tta import View
from cassava_kit.models.precision import PRECISIONS, Precision

# Takes the number of a view, rows (b,) and their probabilities (b, K).
Deliver = Callable[[int, np.ndarray, np.ndarray], None]

LOADED_SHARE = 0.25


class NotFiniteError(UserError):
    """A checkpoint whose probabilities are NaN or infinite, also in single precision."""


@dataclass
class Runner:
    """Devices, the batch size and the clock; keeps models loaded while they fit into a quarter of the memory."""

    store: PixelStore
    devices: Sequence[torch.device]
    batch_size: int
    clock: Clock = field(default_factory=Clock)
    load_seconds: float = 0.0
    slowest_load: float = 0.0
    precisions: dict[Path, tuple[Precision, str | None]] = field(default_factory=dict)  # and why it is not the fastest
    ahead: Prefetch = field(default_factory=Prefetch)
    _loaded: dict[Path, list[Forward]] = field(default_factory=dict)
    most_bytes: int = 0

    def __post_init__(self) -> None:
        self.most_bytes = self.most_bytes or int(
            LOADED_SHARE * min(free_device_memory(device) for device in self.devices)
        )

    @property
    def images_at_once(self) -> int:
        """Images under way when every device has a batch."""
        return self.batch_size * len(self.devices)

    def load(self, path: Path) -> list[Forward]:
        """Return the checkpoint on every device; those loaded before are dropped where memory runs out."""
        if path in self._loaded:
            return self._loaded[path]
        start = self.clock.used
        replicas = self._place(path)
        if replicas is None:
            # Outside the handler: the error's traceback holds what was half loaded.
            self._loaded.clear()
            self.ahead.drop()
            for device in self.devices:
                make_queue(device).drain()
            replicas = self._place(path)
            assert replicas is not None
        while self._loaded and self._loaded_bytes() + sum(f.n_bytes for f in replicas) > self.most_bytes:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[path] = replicas
        seconds = self.clock.used - start
        self.slowest_load = max(self.slowest_load, seconds)
        self.load_seconds += seconds
        return replicas

    def _place(self, path: Path) -> list[Forward] | None:
        """Return the checkpoint on every device; None where memory ran out and others, loaded before, can make room."""
        known = self.precisions.get(path, (None, None))[0]
        try:
            network = self.ahead.take(path)
            return [place(network, device, known) for device in self.devices]
        except RuntimeError as error:
            if not (self._loaded and is_out_of_memory(error)):
                raise
        return None

    def load_ahead(self, path: Path) -> None:
        """Begin to read a checkpoint that is needed next, unless it is loaded, or there is no time for it."""
        if path not in self._loaded and self.clock.left > self.slowest_load:
            self.ahead.start(path)

    def _note_precision(self, path: Path, replicas: Sequence[Forward]) -> None:
        """Keep the slowest precision that a checkpoint ran in, and say it where it is not the fastest."""
        slowest = max(replicas, key=lambda forward: PRECISIONS.index(forward.precision))
        before = self.precisions.get(path)
        self.precisions[path] = (slowest.precision, slowest.reason or (before and before[1]))
        if slowest.reason and (before is None or before[0] != slowest.precision):
            print_warning(f"{path.name} runs in {slowest.precision} on {slowest.device}: {slowest.reason}")

    def load_time(self, path: Path) -> float:
        """Return the seconds that loading may take: 0 for what is loaded, else the longest seen."""
        return 0.0 if path in self._loaded else self.slowest_load

    def _loaded_bytes(self) -> int:
        return sum(forward.n_bytes for replicas in self._loaded.values() for forward in replicas)

    def predict(
        self,
        path: Path,
        views: Sequence[View],
        rows: np.ndarray,
        deliver: Deliver,
        *,
        seconds_per_image: float = 0.0,
    ) -> int:
        """Predict `rows` (n,) through V views; returns how many rows were done through all of them.

        A batch goes to its device once, and its answers to `deliver` view by view. Stops before a batch that would not
        end in time, judged by the slowest recent batch, and before there is one by `seconds_per_image`, of one view.
        Batches keep one shape, so that no row's answer depends on which others are broken or already finished. Where
        one device of several fails and another does not, the others take over its rows and all that is still to come.
        Raises NotFiniteError for answers that are no numbers.
        """
        replicas = self.load(path)
        for forward in replicas:
            forward.batch_seconds = max(forward.batch_seconds, seconds_per_image * self.images_at_once)
        batches = _SharedBatches(self.store.batches(rows, replicas[0].info.input_size, self.batch_size))
        lock = threading.Lock()
        seen: list[np.ndarray] = []
        errors: dict[int, BaseException] = {}

        def hand_over(batch: PixelBatch, probabilities: np.ndarray) -> None:
            answers = probabilities[:, : len(batch.rows)]
            for one in answers:
                self.check_finite(path, batch.rows, one)
            with lock:
                for v, one in enumerate(answers):
                    deliver(v, batch.rows, one)
                seen.append(batch.rows)

        try:
            if len(replicas) == 1:
                _work(replicas[0], views, batches, self.clock, hand_over)
            else:
                with ThreadPoolExecutor(len(replicas), "device") as pool:
                    jobs = [pool.submit(_work, f, views, batches, self.clock, hand_over) for f in replicas]
                errors = {i: error for i, job in enumerate(jobs) if (error := job.exception()) is not None}
        finally:
            batches.close()
        done = sum(map(len, seen))
        if not errors:
            self._note_precision(path, replicas)
            return done
        first = next((e for e in errors.values() if isinstance(e, NotFiniteError)), next(iter(errors.values())))
        if isinstance(first, NotFiniteError) or not done or len(errors) == len(replicas):
            raise first  # nothing says that it is the device and not the checkpoint
        self.drop_devices(errors)
        rest = np.setdiff1d(rows, np.concatenate(seen))
        return done + self.predict(path, views, rest, deliver, seconds_per_image=seconds_per_image)

    def check_finite(self, path: Path, rows: np.ndarray, answers: np.ndarray) -> None:
        """Raise NotFiniteError for answers (n, K) of NaN or infinity to rows (n,) whose images could be read."""
        wrong = [row for row in rows[~np.isfinite(answers).all(axis=1)].tolist() if row not in self.store.failed]
        if wrong:
            raise NotFiniteError(
                f"{path.name} answers NaN for {len(wrong)} of {len(rows)} images (first: "
                f"{self.store.paths[wrong[0]].name}); train it again, or take another checkpoint"
            )

    def drop_devices(self, errors: Mapping[int, BaseException]) -> None:
        """Drop the devices that failed, given by their index."""
        for i, error in errors.items():
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            print_warning(f"{self.devices[i]} failed and is not used any more: {reason}")
        kept = [i for i in range(len(self.devices)) if i not in errors]
        self.devices = [self.devices[i] for i in kept]
        self._loaded = {path: [replicas[i] for i in kept] for path, replicas in self._loaded.items()}


def _work(
    forward: Forward,
    views: Sequence[View],
    batches: _SharedBatches,
    clock: Clock,
    hand_over: Callable[[PixelBatch, np.ndarray], None],
) -> None:
    """Take batches until there are none; on a GPU the next one is started before the last one's answer is fetched."""
    under_way: tuple[PixelBatch, Started] | None = None
    last = clock.used
    try:
        # The time is looked at once the images are there: waiting for them may have taken what the batch needs.
        while (batch := batches.take()) is not None:
            waiting = 1 if under_way is not None and forward.queue.runs_ahead else 0
            if clock.left <= (1 + waiting) * len(views) * forward.batch_seconds:
                break
            started = forward.start(batch.pixels, views)
            if under_way is not None:
                hand_over(under_way[0], forward.finish(under_way[1]))
            under_way = (batch, started)
            now = clock.used
            # The slowest recent batch: one that would end after the limit must not be begun.
            forward.batch_seconds, last = max(0.9 * forward.batch_seconds, (now - last) / len(views)), now
        if under_way is not None:
            hand_over(under_way[0], forward.finish(under_way[1]))
    except BaseException:
        with contextlib.suppress(Exception):  # the device itself may be what failed
            forward.queue.drain()  # what is under way still reads its buffers
        raise


class _SharedBatches:
    """One iterator of batches that several threads may draw from."""

    def __init__(self, batches: Iterator[PixelBatch]) -> None:
        self._batches = batches
        self._lock = threading.Lock()

    def take(self) -> PixelBatch | None:
        with self._lock:
            return next(self._batches, None)

    def close(self) -> None:
        with self._lock:
            self._batches.close()  # type: ignore[attr-defined]
