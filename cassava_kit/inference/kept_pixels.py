"""Where decoded images are kept: `KeptPixels`, in memory up to a `Budget`, then in a file on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cassava_kit.inference.machine import free_disk, free_memory, is_on_disk

Size = tuple[int, int]  # (height, width)

MEMORY_SHARE = 0.4
DISK_SHARE = 0.5


@dataclass(frozen=True)
class Budget:
    """How many bytes of pixels may be kept in memory, and how many on disk in `folder`."""

    memory: int
    disk: int = 0
    folder: Path = Path(tempfile.gettempdir())

    @staticmethod
    def of_machine(gigabytes: float | None = None) -> Budget:
        """A share of what is free now, or `gigabytes` of memory; a folder in memory does not count as disk."""
        folder = Path(tempfile.gettempdir())
        disk = int(DISK_SHARE * free_disk(folder)) if is_on_disk(folder) else 0
        memory = MEMORY_SHARE * free_memory() if gigabytes is None else gigabytes * 1e9
        return Budget(int(memory), disk, folder)


class KeptPixels:
    """Pixels of the first rows: an array in memory, then one unnamed file on disk; later rows are not kept."""

    def __init__(self, n_rows: int, sizes: Sequence[Size], budget: Budget) -> None:
        n_bytes = [height * width * 3 for height, width in sizes]
        self.row_bytes = sum(n_bytes)
        self.n_memory = min(n_rows, budget.memory // self.row_bytes)
        self.n_disk = min(n_rows - self.n_memory, budget.disk // self.row_bytes)
        self._memory = {size: np.empty((self.n_memory, *size, 3), np.uint8) for size in sizes}
        self._offsets = dict(zip(sizes, np.cumsum([0, *n_bytes]).tolist(), strict=False))
        self._present = {size: np.zeros(n_rows, bool) for size in sizes}
        self._file = tempfile.TemporaryFile(dir=budget.folder) if self.n_disk else None  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        """Free the memory and the disk."""
        for present in self._present.values():
            present[:] = False
        self._memory.clear()
        if self._file is not None:
            self._file.close()

    def has_room(self, row: int) -> bool:
        """Return whether this row is among those that can be kept."""
        return row < self.n_memory + self.n_disk

    def put(self, row: int, made: dict[Size, np.ndarray]) -> None:
        """Keep the pixels of a row that has room, in each size that was made."""
        for size, image in made.items():
            if row < self.n_memory:
                self._memory[size][row] = image
            else:
                assert self._file is not None
                try:
                    _write_all(self._file.fileno(), np.ascontiguousarray(image), self._position(row, size))
                except OSError:  # the disk is full after all: this row is decoded again
                    return
            self._present[size][row] = True

    def take(self, row: int, size: Size, out: np.ndarray) -> bool:
        """Copy one row into `out`; False where it is not kept."""
        if not self._present[size][row]:
            return False
        if row < self.n_memory:
            out[:] = self._memory[size][row]
            return True
        assert self._file is not None
        return os.preadv(self._file.fileno(), [out.data.cast("B")], self._position(row, size)) == out.nbytes

    def _position(self, row: int, size: Size) -> int:
        return (row - self.n_memory) * self.row_bytes + self._offsets[size]


def _write_all(file: int, image: np.ndarray, position: int) -> None:
    if os.pwrite(file, image.data.cast("B"), position) != image.nbytes:
        raise OSError("short write")
