"""Each image decoded once: a store of uint8 pixels, in memory up to a budget, then on disk, then decoded again."""

from __future__ import annotations

import os
import stat
import tempfile
import threading
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from cassava_kit.data.images import PIXEL_PATHS, ImageError, decode, resize
from cassava_kit.inference.machine import cpu_count, free_disk, free_memory, on_disk


class Format(NamedTuple):
    """What a member wants to see: a size (height, width), and the path from file to pixels that its header names."""

    size: tuple[int, int]
    pixels: str = "exact"


MEMORY_SHARE = 0.4
DISK_SHARE = 0.5
BATCHES_AHEAD = 3
ROWS_A_TASK = 4
MAX_FILE_BYTES = 1 << 29


@dataclass(frozen=True)
class Batch:
    """Rows (n,) of the store and their pixels (batch_size, H, W, 3) uint8; lines from n on are zeros."""

    rows: np.ndarray
    pixels: torch.Tensor


@dataclass(frozen=True)
class Budget:
    """How many bytes of pixels may be kept in memory, and how many on disk in `folder`."""

    memory: int
    disk: int = 0
    folder: Path = Path(tempfile.gettempdir())

    @staticmethod
    def of_machine(gigabytes: float | None = None) -> Budget:
        """A share of what is free now, or so many gigabytes of memory; a folder in memory does not count as disk."""
        folder = Path(tempfile.gettempdir())
        disk = int(DISK_SHARE * free_disk(folder)) if on_disk(folder) else 0
        memory = MEMORY_SHARE * free_memory() if gigabytes is None else gigabytes * 1e9
        return Budget(int(memory), disk, folder)


class PixelStore:
    """Images by row, in each of `formats`, read by threads while the model computes.

    `keep=False` for a single pass: nothing is stored; `pinned` batches go to a GPU without waiting. A row that cannot
    be read is all zeros and stands in `failed` with its reason; it never disturbs another row, because a batch keeps
    its shape.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        formats: Collection[Format],
        *,
        budget: Budget | None = None,
        keep: bool = True,
        pinned: bool = False,
    ) -> None:
        self.paths = [Path(path) for path in paths]
        self.formats = tuple(sorted(set(formats)))
        self.failed: dict[int, str] = {}
        self.decoded = 0
        self.pinned = pinned
        self._lock = threading.Lock()
        # Decoding and torch's uint8 resize take one core each by themselves. No `set_num_threads` here: called in any
        # thread, it holds for the whole process, and the model would run on one core.
        self.threads = cpu_count()
        self._pool = ThreadPoolExecutor(self.threads, "decode")
        self._shelf = Shelf(len(self.paths), self.formats, budget or Budget.of_machine()) if keep else None

    def __enter__(self) -> PixelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and give the memory and the disk back."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._shelf is not None:
            self._shelf.close()
        self._shelf = None

    def batches(self, rows: np.ndarray, wanted: Format, batch_size: int) -> Iterator[Batch]:
        """Batches of the given rows in their order, always `batch_size` high; a few are prepared ahead."""
        waiting: deque[tuple[Batch, list[Future[None]]]] = deque()
        try:
            for start in range(0, len(rows), batch_size):
                waiting.append(self._begin(rows[start : start + batch_size], wanted, batch_size))
                if len(waiting) > BATCHES_AHEAD:
                    yield _finish(*waiting.popleft())
            while waiting:
                yield _finish(*waiting.popleft())
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()

    def _begin(self, rows: np.ndarray, wanted: Format, batch_size: int) -> tuple[Batch, list[Future[None]]]:
        pixels = torch.empty((batch_size, *wanted.size, 3), dtype=torch.uint8, pin_memory=self.pinned)
        out = pixels.numpy()
        out[len(rows) :] = 0
        pieces = [slice(at, at + ROWS_A_TASK) for at in range(0, len(rows), ROWS_A_TASK)]
        futures = [self._pool.submit(self._fill_all, rows[piece], wanted, out[piece]) for piece in pieces]
        return Batch(rows, pixels), futures

    def _fill_all(self, rows: np.ndarray, wanted: Format, out: np.ndarray) -> None:
        for i, row in enumerate(rows):
            self._fill(int(row), wanted, out[i])

    def _fill(self, row: int, wanted: Format, out: np.ndarray) -> None:
        """Copy one image's pixels into `out`, from the shelf or from its file."""
        if row in self.failed:
            out[:] = 0
            return
        if self._shelf is not None and self._shelf.take(row, wanted, out):
            return
        try:
            shelf = self._shelf if self._shelf is not None and self._shelf.has_room(row) else None
            made = make_pixels(read_file(self.paths[row]), (wanted,) if shelf is None else self.formats)
        except Exception as error:  # whatever one file does to a decoder, the others go on
            self.failed[row] = f"{type(error).__name__}: {error}".splitlines()[0]
            out[:] = 0
            return
        out[:] = made[wanted]
        with self._lock:
            self.decoded += 1
        if shelf is not None:
            shelf.put(row, made)


class Shelf:
    """Room for the pixels of the first rows: an array in memory, then one unnamed file on disk; the rest has none."""

    def __init__(self, n_rows: int, formats: Sequence[Format], budget: Budget) -> None:
        n_bytes = [height * width * 3 for (height, width), _ in formats]
        self.row_bytes = sum(n_bytes)
        self.n_memory = min(n_rows, budget.memory // self.row_bytes)
        self.n_disk = min(n_rows - self.n_memory, budget.disk // self.row_bytes)
        self._memory = {wanted: np.empty((self.n_memory, *wanted.size, 3), np.uint8) for wanted in formats}
        self._offsets = dict(zip(formats, np.cumsum([0, *n_bytes]).tolist(), strict=False))
        self._present = np.zeros(n_rows, bool)
        self._file = tempfile.TemporaryFile(dir=budget.folder) if self.n_disk else None  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        """Give the memory and the disk back."""
        self._memory.clear()
        if self._file is not None:
            self._file.close()

    def has_room(self, row: int) -> bool:
        """Whether there is a place for this row."""
        return row < self.n_memory + self.n_disk

    def put(self, row: int, made: dict[Format, np.ndarray]) -> None:
        """Keep the pixels, in every format, of a row that has room."""
        if row < self.n_memory:
            for wanted, image in made.items():
                self._memory[wanted][row] = image
        else:
            assert self._file is not None
            try:
                for wanted, image in made.items():
                    _write_all(self._file.fileno(), np.ascontiguousarray(image), self._position(row, wanted))
            except OSError:  # the disk is full after all: this row is decoded again
                return
        self._present[row] = True

    def take(self, row: int, wanted: Format, out: np.ndarray) -> bool:
        """Copy one row into `out`; False where it is not kept."""
        if not self._present[row]:
            return False
        if row < self.n_memory:
            out[:] = self._memory[wanted][row]
            return True
        assert self._file is not None
        return os.preadv(self._file.fileno(), [out.data.cast("B")], self._position(row, wanted)) == out.nbytes

    def _position(self, row: int, wanted: Format) -> int:
        return (row - self.n_memory) * self.row_bytes + self._offsets[wanted]


def make_pixels(content: bytes, formats: Sequence[Format]) -> dict[Format, np.ndarray]:
    """A file's content in every format, as `load_image` makes it; the exact ones share one decoding."""
    exact = [wanted for wanted in formats if wanted.pixels == "exact"]
    image = decode(content) if exact else None
    made = {wanted: resize(image, wanted.size) for wanted in exact if image is not None}
    others = {wanted: PIXEL_PATHS[wanted.pixels](content, wanted.size) for wanted in formats if wanted not in made}
    return made | others


def read_file(path: Path) -> bytes:
    """A regular file's bytes; a folder, a pipe or a file of more than 512 MB raises ImageError."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise ImageError(f"{status.st_size} bytes are more than an image has")
    return path.read_bytes()


def _finish(batch: Batch, futures: list[Future[None]]) -> Batch:
    for future in futures:
        future.result()
    return batch


def _write_all(file: int, image: np.ndarray, position: int) -> None:
    if os.pwrite(file, image.data.cast("B"), position) != image.nbytes:
        raise OSError("short write")
