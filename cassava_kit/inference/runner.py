"""Rows of images through one checkpoint and one view, on every device at once, until the clock says stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cassava_kit.inference.clock import Clock
from cassava_kit.inference.forward import Forward, is_out_of_memory, load_forward
from cassava_kit.inference.machine import free_on
from cassava_kit.inference.pixels import Batch, Format, PixelStore
from cassava_kit.inference.report import warn
from cassava_kit.inference.speedup import Engines
from cassava_kit.inference.tta import View

Deliver = Callable[[np.ndarray, np.ndarray], None]

LOADED_SHARE = 0.25


@dataclass
class Runner:
    """Devices, the batch size and the clock; keeps models loaded while they fit into a quarter of the memory.

    `pixels` names the path from file to pixels for every checkpoint; None takes each header's.
    """

    store: PixelStore
    devices: Sequence[torch.device]
    batch_size: int
    clock: Clock = field(default_factory=Clock)
    engines: Engines = field(default_factory=Engines)
    pixels: str | None = None
    load_seconds: float = 0.0
    slowest_load: float = 0.0
    engine_names: dict[Path, str] = field(default_factory=dict)
    _loaded: dict[Path, list[Forward]] = field(default_factory=dict)
    room: int = 0

    def __post_init__(self) -> None:
        self.room = self.room or int(LOADED_SHARE * min(free_on(device) for device in self.devices))

    @property
    def at_once(self) -> int:
        """Images under way when every device has a batch."""
        return self.batch_size * len(self.devices)

    def load(self, path: Path) -> list[Forward]:
        """The checkpoint on every device, from memory if it is there; others make room where memory runs out."""
        if path not in self._loaded:
            start = time.monotonic()
            try:
                replicas = self._load(path)
            except RuntimeError as error:
                if not (self._loaded and is_out_of_memory(error)):
                    raise
                self._loaded.clear()
                replicas = self._load(path)
            while self._loaded and self._taken() + sum(f.n_bytes for f in replicas) > self.room:
                del self._loaded[next(iter(self._loaded))]
            self._loaded[path] = replicas
            self.engine_names[path] = replicas[0].engine_name
            self.slowest_load = max(self.slowest_load, time.monotonic() - start)
            self.load_seconds += time.monotonic() - start
        return self._loaded[path]

    def _load(self, path: Path) -> list[Forward]:
        replicas = [load_forward(path, device) for device in self.devices]
        for forward in replicas if self.pixels else []:
            forward.info = forward.info.model_copy(update={"pixels": self.pixels})
        for forward in replicas if len(self.store.paths) else []:
            self.engines.speed_up(forward, partial(self.sample, format_of(forward)))
        return replicas

    def sample(self, wanted: Format) -> torch.Tensor:
        """The first images, one batch, as a checkpoint wants to see them."""
        rows = np.arange(min(self.batch_size, len(self.store.paths)))
        return next(self.store.batches(rows, wanted, self.batch_size)).pixels

    def load_time(self, path: Path) -> float:
        """Seconds that loading may take: none for what is loaded, else the longest seen."""
        return 0.0 if path in self._loaded else self.slowest_load

    def _taken(self) -> int:
        return sum(forward.n_bytes for replicas in self._loaded.values() for forward in replicas)

    def run(self, path: Path, view: View, rows: np.ndarray, deliver: Deliver) -> int:
        """Predict `rows` (n,); each batch's rows (b,) and probabilities (b, K) go to `deliver`. How many were done.

        Stops before a batch that would not end in time. Batches keep one shape, so that no row's answer depends on
        which others are broken or already finished. Where one device of several fails and another does not, the others
        take over its rows and all that is still to come.
        """
        replicas = self.load(path)
        wanted = format_of(replicas[0])
        batches = _Shared(self.store.batches(rows, wanted, self.batch_size))
        lock = threading.Lock()
        seen: list[np.ndarray] = []
        errors: dict[int, BaseException] = {}

        def hand_over(batch: Batch, probabilities: np.ndarray) -> None:
            with lock:
                deliver(batch.rows, probabilities[: len(batch.rows)])
                seen.append(batch.rows)

        try:
            if len(replicas) == 1:
                _work(replicas[0], view, batches, self.clock, hand_over)
            else:
                with ThreadPoolExecutor(len(replicas), "device") as pool:
                    jobs = [pool.submit(_work, f, view, batches, self.clock, hand_over) for f in replicas]
                errors = {i: error for i, job in enumerate(jobs) if (error := job.exception()) is not None}
        finally:
            batches.close()
        done = sum(map(len, seen))
        if not errors:
            return done
        if not done or len(errors) == len(replicas):  # nothing says that it is the device and not the checkpoint
            raise next(iter(errors.values()))
        self.drop(errors)
        return done + self.run(path, view, np.setdiff1d(rows, np.concatenate(seen)), deliver)

    def drop(self, errors: Mapping[int, BaseException]) -> None:
        """Go on without the devices that failed, by their place among the devices."""
        for i, error in errors.items():
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warn(f"{self.devices[i]} failed and takes no further part: {reason}")
        kept = [i for i in range(len(self.devices)) if i not in errors]
        self.devices = [self.devices[i] for i in kept]
        self._loaded = {path: [replicas[i] for i in kept] for path, replicas in self._loaded.items()}


def format_of(forward: Forward) -> Format:
    """The pixels a checkpoint wants, from its header."""
    return Format(forward.info.input_size, forward.info.pixels)


def _work(
    forward: Forward, view: View, batches: _Shared, clock: Clock, hand_over: Callable[[Batch, np.ndarray], None]
) -> None:
    """Take batches until there are none; on a GPU the next one is started before the last one's answer is fetched."""
    under_way: tuple[Batch, torch.Tensor] | None = None
    last = time.monotonic()
    while clock.left > forward.batch_seconds and (batch := batches.take()) is not None:
        started = forward.start(batch.pixels, view)
        if under_way is not None:
            hand_over(under_way[0], forward.finish(under_way[1], under_way[0].pixels, view))
        under_way = (batch, started)
        now = time.monotonic()
        # The slowest of late: a batch must not be begun that would end after the limit.
        forward.batch_seconds, last = max(0.9 * forward.batch_seconds, now - last), now
    if under_way is not None:
        hand_over(under_way[0], forward.finish(under_way[1], under_way[0].pixels, view))


class _Shared:
    """One iterator of batches that several threads may draw from."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self._lock = threading.Lock()

    def take(self) -> Batch | None:
        with self._lock:
            return next(self._batches, None)

    def close(self) -> None:
        with self._lock:
            self._batches.close()  # type: ignore[attr-defined]
