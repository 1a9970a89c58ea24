"""Images as uint8 pixels, each decoded once: `PixelStore` keeps them in memory up to a budget, then on disk."""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cassava_kit.data.images import ImageError, decode, image_size, resize
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.device_queue import empty_host_tensor
from cassava_kit.inference.kept_pixels import Budget, KeptPixels, Size
from cassava_kit.inference.machine import cpu_count

BATCHES_AHEAD = 3
MAX_FILE_BYTES = 1 << 29
# One image may take this share of the time left, and never less or more than these seconds.
READ_SHARE = 0.05
LEAST_READ_SECONDS, MOST_READ_SECONDS = 2.0, 60.0
# JPEGs are decoded at 100 to 150 megapixels a second; a core that is shared does about half of it.
PIXELS_A_SECOND = 50e6
# At most this many hanging readers are replaced by new ones (memory); beyond it the remaining ones go on alone.
MOST_LEFT_BEHIND = 32
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PixelBatch:
    """Rows (n,) of the store and their pixels (batch_size, H, W, 3) uint8; lines from n on are zeros."""

    rows: np.ndarray
    pixels: torch.Tensor


class PixelStore:
    """Images by row, in each of `sizes`, read by threads while the model computes.

    `keep=False` for a single pass: nothing is stored; `pinned` batches go to a GPU without waiting. A row that cannot
    be read, or not within `read_seconds`, is all zeros and stands in `failed` with its reason; it never disturbs
    another row, because a batch keeps its shape. Nothing here waits longer than the clock allows.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        sizes: Collection[Size],
        *,
        budget: Budget | None = None,
        keep: bool = True,
        pinned: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.sizes = tuple(sorted({(int(height), int(width)) for height, width in sizes}))
        self.failed: dict[int, str] = {}
        self.decoded = 0
        self.pinned = pinned
        self.clock = clock or Clock()
        # Decoding and torch's uint8 resize take one core each by themselves. No `set_num_threads` here: called in any
        # thread, it holds for the whole process, and the model would run on one core.
        self.threads = cpu_count()
        self.lock = threading.Lock()
        self.jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.readers: list[_Reader] = []
        self.left_behind = 0
        self._kept = KeptPixels(len(self.paths), self.sizes, budget or Budget.of_machine()) if keep else None
        for _ in range(self.threads):
            self._start_reader()

    def __enter__(self) -> PixelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def read_seconds(self) -> float:
        """Seconds that one image may take from now on."""
        return min(MOST_READ_SECONDS, max(LEAST_READ_SECONDS, READ_SHARE * self.clock.left))

    def close(self) -> None:
        """Stop the threads and free memory and disk, without waiting for a reader that hangs."""
        self._discard_jobs()
        for _ in self.readers:
            self.jobs.put(None)
        end = time.monotonic() + min(self.read_seconds, max(POLL_SECONDS, self.clock.left))
        for reader in self.readers:
            reader.join(max(0.0, end - time.monotonic()))
        with self.lock:
            for reader in self.readers:
                reader.lost = True
        self.readers.clear()
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def batches(self, rows: np.ndarray, size: Size, batch_size: int) -> Iterator[PixelBatch]:
        """Yield batches of the given rows in their order, always `batch_size` rows high; a few are prepared ahead.

        Ends early when the time is over. Raises the error of a size that no image can be resized to.
        """
        size = (int(size[0]), int(size[1]))
        waiting: deque[_Pending] = deque()
        try:
            for start in range(0, len(rows), batch_size):
                waiting.append(self._begin(rows[start : start + batch_size], size, batch_size))
                if len(waiting) > BATCHES_AHEAD:
                    if not self._wait(waiting[0]):
                        return
                    yield waiting.popleft().batch
            while waiting:
                if not self._wait(waiting[0]):
                    return
                yield waiting.popleft().batch
        finally:
            for pending in waiting:
                pending.cancelled = True

    def _begin(self, rows: np.ndarray, size: Size, batch_size: int) -> _Pending:
        pixels = empty_host_tensor((batch_size, *size, 3), torch.uint8, pinned=self.pinned)
        out = pixels.numpy()
        out[len(rows) :] = 0
        pending = _Pending(PixelBatch(rows, pixels), len(rows))
        for i, row in enumerate(rows):
            self.jobs.put(_Job(int(row), size, out[i], pending))
        return pending

    def _wait(self, pending: _Pending) -> bool:
        """Wait until a batch is filled; False when the time is over before it is."""
        while not pending.filled.wait(max(0.0, min(POLL_SECONDS, self.clock.left))):
            if self.clock.left <= 0:
                return False
            self._leave_late_readers()
        if pending.error is not None:
            raise pending.error
        return True

    def _leave_late_readers(self) -> None:
        """Fail the images that take too long, and start new readers in place of the late ones."""
        for reader in list(self.readers):
            with self.lock:
                job, seconds = reader.job, time.monotonic() - reader.since
                if job is None or seconds <= self.read_seconds:
                    continue
                reader.lost = True
                self.left_behind += 1
                self._fail(job, f"TimeoutError: not read within {seconds:.0f} seconds")
            self.readers.remove(reader)
            job.pending.finish_one()
            if self.left_behind <= MOST_LEFT_BEHIND or not self.readers:
                self._start_reader()

    def _start_reader(self) -> None:
        reader = _Reader(self)
        self.readers.append(reader)
        reader.start()

    def _discard_jobs(self) -> None:
        while True:
            try:
                self.jobs.get_nowait()
            except queue.Empty:
                return

    def _fail(self, job: _Job, reason: str) -> None:
        self.failed[job.row] = reason.splitlines()[0]
        job.out[:] = 0

    def fill(self, job: _Job, reader: _Reader) -> None:
        """Copy one image's pixels into the job's place, from what is kept or from its file."""
        if job.row in self.failed:
            job.out[:] = 0
            return
        kept = self._kept
        if kept is not None and kept.take(job.row, job.size, job.out):
            return
        try:
            image = self._read(job.row)
        except Exception as error:  # one file must not end the reading of the others
            with self.lock:
                if not reader.lost:
                    self._fail(job, f"{type(error).__name__}: {error}")
            return
        made = {job.size: resize(image, job.size)}
        others = self.sizes if kept is not None and kept.has_room(job.row) else ()
        for size in others:
            if size not in made:
                # A size that cannot be made costs its own members alone, when they ask for it.
                with contextlib.suppress(Exception):
                    made[size] = resize(image, size)
        with self.lock:
            if reader.lost:  # the image was given up meanwhile, and the store may be closed
                return
            self.decoded += 1
            reader.job = None
        job.out[:] = made[job.size]
        if kept is not None and others:
            kept.put(job.row, made)

    def _read(self, row: int) -> np.ndarray:
        """Read and decode one file; ImageError for one whose size says that there is no time to decode it."""
        content = read_file(self.paths[row])
        height, width = image_size(content)
        if height * width > PIXELS_A_SECOND * self.read_seconds:
            most = f"{self.read_seconds:.0f} seconds that one image may take"
            raise ImageError(f"{width}x{height} pixels cannot be decoded in the {most}")
        return decode(content)


@dataclass
class _Pending:
    """A batch that is being filled, and how many of its rows are not there yet."""

    batch: PixelBatch
    missing: int
    filled: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    cancelled: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish_one(self, error: Exception | None = None) -> None:
        """Count one row as done, well or not."""
        with self.lock:
            self.missing -= 1
            self.error = self.error or error
            if self.missing <= 0:
                self.filled.set()


class _Job(NamedTuple):
    """One row to read, and where its pixels (height, width, 3) go."""

    row: int
    size: Size
    out: np.ndarray
    pending: _Pending


class _Reader(threading.Thread):
    """A thread that reads images until the store stops it; a daemon, so that a hanging read cannot block the exit."""

    def __init__(self, store: PixelStore) -> None:
        super().__init__(name="decode", daemon=True)
        self.store = store
        self.job: _Job | None = None
        self.since = 0.0
        self.lost = False

    def run(self) -> None:
        """Take jobs until there is none, or until another reader has taken this one's place."""
        store = self.store
        while (job := store.jobs.get()) is not None:
            if job.pending.cancelled:
                continue
            with store.lock:
                self.job, self.since = job, time.monotonic()
            error: Exception | None = None
            try:
                store.fill(job, self)
            except Exception as raised:  # the size cannot be made: raised where the batch is awaited
                error = raised
            with store.lock:
                self.job = None
                if self.lost:
                    store.left_behind -= 1
                    return
            job.pending.finish_one(error)


def read_file(path: Path) -> bytes:
    """A regular file's bytes; a folder, a pipe or a file of more than 512 MB raises ImageError."""
    # By descriptor: each system call hands over the interpreter's lock, and `Path.read_bytes` makes twice as many.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is not waited for
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"{status.st_size} bytes are more than an image has")
        content = os.read(descriptor, status.st_size)
        while len(content) < status.st_size and (more := os.read(descriptor, status.st_size - len(content))):
            content += more  # some file systems answer with less than was asked for
        return content
    finally:
        os.close(descriptor)
