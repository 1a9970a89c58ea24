"""Batches to a device and answers back while it computes: `make_queue`; `fit_to_memory` halves what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

# What torch says where memory is short. cuDNN finds no algorithm or engine where none of them gets its workspace, and
# cuBLAS cannot allocate its handle; the host's allocator has words of its own.
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "Unable to find a valid cuDNN algorithm",
)

_T = TypeVar("_T")


class Answer(Protocol):
    """What a device was asked for and may still be computing."""

    def wait(self) -> np.ndarray:
        """Return it as soon as it is on the host; later work of the device is not waited for."""


class DeviceQueue(Protocol):
    """One device's way in and out; `runs_ahead`: its work goes on after the call that ordered it has returned."""

    runs_ahead: bool

    def upload(self, batch: torch.Tensor) -> torch.Tensor:
        """Return a host batch on the device; keep the result, and the batch unchanged, until its answer has come."""

    def download(self, values: torch.Tensor) -> Answer:
        """Order the copy of a device's tensor to the host, in its place in the device's work."""

    def drain(self) -> None:
        """Wait for all work that was ordered, and give unused memory back to the device."""


@dataclass(frozen=True)
class HostAnswer:
    """An answer of the CPU, which is there at once."""

    values: torch.Tensor

    def wait(self) -> np.ndarray:
        """Return it."""
        return self.values.cpu().numpy()


class HostQueue:
    """The CPU as a device: nothing is copied, and a call returns when its work is done."""

    runs_ahead = False

    def upload(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the batch itself."""
        return batch

    def download(self, values: torch.Tensor) -> HostAnswer:
        """Return the values as an answer."""
        return HostAnswer(values)

    def drain(self) -> None:
        """Do nothing: no work is left."""


@dataclass(frozen=True)
class CudaAnswer:
    """An answer on its way into pinned memory, and the event after its copy."""

    host: torch.Tensor
    copied: torch.cuda.Event

    def wait(self) -> np.ndarray:
        """Wait for the event, not for the device, and return the answer."""
        self.copied.synchronize()
        return self.host.numpy()


class CudaQueue:
    """A GPU: batches go up on a stream of their own while it computes, answers come down right after their batch.

    Memory of a batch belongs to the copying stream and is read by the computing one: the caller keeps it until the
    answer's event, after which no stream uses it.
    """

    runs_ahead = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.copying = torch.cuda.Stream(device)

    def upload(self, batch: torch.Tensor) -> torch.Tensor:
        """Start copying a batch, from pinned memory without waiting; work that is ordered from now on waits for it."""
        with torch.cuda.stream(self.copying):
            on_device = batch.to(self.device, non_blocking=True)
        uploaded = torch.cuda.Event()
        uploaded.record(self.copying)
        torch.cuda.current_stream(self.device).wait_event(uploaded)
        return on_device

    def download(self, values: torch.Tensor) -> CudaAnswer:
        """Order the copy into pinned memory, with an event right after it."""
        host = empty_host_tensor(values.shape, values.dtype, pinned=True)
        host.copy_(values, non_blocking=True)
        # Of this device, whichever one is current in this thread.
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(self.device))
        return CudaAnswer(host, copied)

    def drain(self) -> None:
        """Wait for the device, and empty torch's cache, whose blocks may be too small for what is wanted now."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Ordered:
    """A batch under way: its answer, and what must live until it has come, on the host and on the device."""

    answer: Answer
    batch: torch.Tensor
    on_device: torch.Tensor


def order(
    queue: DeviceQueue, batch: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor], size: int
) -> tuple[Ordered, int]:
    """Order the answers (V, B, ...) of a batch (B, ...), and return how many images were computed at once.

    `compute` takes up to `size` images on the device and gives their answers (V, b, ...); fewer where memory runs out.
    """

    def attempt(size: int) -> Ordered:
        on_device = queue.upload(batch)
        answers = torch.cat([compute(piece) for piece in on_device.split(size)], dim=1)
        return Ordered(queue.download(answers), batch, on_device)

    return fit_to_memory(attempt, min(size, len(batch)), queue)


def make_queue(device: torch.device) -> DeviceQueue:
    """Return the queue of a device."""
    return CudaQueue(device) if device.type == "cuda" else HostQueue()


def empty_host_tensor(shape: Sequence[int], dtype: torch.dtype, *, pinned: bool) -> torch.Tensor:
    """Return an uninitialised host tensor; `pinned` where the system lets so much memory be pinned."""
    if pinned:
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError:  # a limit on locked memory: copies take longer and are as right
            pass
    return torch.empty(shape, dtype=dtype)


def fit_to_memory(call: Callable[[int], _T], size: int, queue: DeviceQueue) -> tuple[_T, int]:
    """Return `call(size)` and the size, which is halved as often as memory runs out.

    Raises:
        RuntimeError: what `call` raised: another error, or one of memory for a size of 1.
    """
    while True:
        try:
            return call(size), size
        except RuntimeError as error:
            if size <= 1 or not is_out_of_memory(error):
                raise
        # Outside the handler: the error's traceback holds the tensors of the call that failed.
        queue.drain()
        size = (size + 1) // 2


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says, or may say, that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
