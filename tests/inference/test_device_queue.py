"""The way to a GPU and back, on `cuda_double`: order, lifetime, memory that runs out, one upload for all views."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_double import CudaDouble, play_cuda
from tiny_members import write_checkpoint
from torch import nn

from cassava_kit.inference.device_queue import CudaQueue, HostQueue, fit_to_memory, is_out_of_memory
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.tta import make_views
from cassava_kit.models.checkpoint import read_info

GPU = torch.device("cuda", 0)
VIEWS = make_views("flips")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDouble]:
    with play_cuda(monkeypatch) as double:
        yield double


class Corners(nn.Module):
    """The mean of each quarter of the first channel: every flip of an image gives another answer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)


def pixels(seed: int, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=generator)


def pinned(seed: int, n: int = 4) -> torch.Tensor:
    batch = torch.empty((n, 8, 8, 3), dtype=torch.uint8, pin_memory=True)
    return batch.copy_(pixels(seed, n))


def by_hand(batch: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Softmax of the quarters' means of the four flips, (4, B, 4), in NumPy's double precision."""
    red = (batch.numpy()[..., 0] / 255 - mean[0]) / std[0]
    views = []
    for flipped in (red, red[:, ::-1], red[:, :, ::-1], red[:, ::-1, ::-1]):
        quarters = flipped.reshape(len(red), 2, 4, 2, 4).mean(axis=(2, 4)).reshape(len(red), 4)
        powers = np.exp(quarters)
        views.append(powers / powers.sum(axis=1, keepdims=True))
    return np.stack(views)


@pytest.fixture
def forward(gpu: CudaDouble, tmp_path: Path) -> Forward:
    info = read_info(write_checkpoint(tmp_path / "a-fold0.safetensors"))
    return Forward(Corners(), info, GPU)


def test_two_batches_are_under_way_before_the_first_answer_is_read(gpu: CudaDouble, forward: Forward) -> None:
    started = [forward.start(pinned(seed), VIEWS) for seed in (0, 1)]
    gpu.blocking.clear()  # the constants of the first batch
    started.append(forward.start(pinned(2), VIEWS))
    answers = [forward.finish(one) for one in started]
    for seed, answer in enumerate(answers):
        assert np.allclose(answer, by_hand(pixels(seed), forward.info.mean, forward.info.std), atol=1e-6)
    assert gpu.blocking == []
    assert gpu.uploads == [4 * 8 * 8 * 3] * 3


def test_a_batch_that_does_not_fit_is_halved_once_its_tensors_are_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first try leaves no room for the second: tensors that its traceback still holds would make that one fail."""
    info = read_info(write_checkpoint(tmp_path / "a-fold0.safetensors"))
    # Eight images as uint8 are one part of memory. Normalised they are four, and two flips on the way eight more: 13 in
    # all, 7 for half of them. The first try fails holding 5.
    with play_cuda(monkeypatch, memory=8 * (8 * 8 * 8 * 3)) as gpu:
        halving = Forward(Corners(), info, GPU)
        answers = [halving.finish(halving.start(pinned(seed, 8), VIEWS)) for seed in (0, 1)]
        assert halving.largest_batch == 4 and gpu.emptied == 1
    for seed, answer in enumerate(answers):
        assert np.allclose(answer, by_hand(pixels(seed, 8), info.mean, info.std), atol=1e-6)


MESSAGES = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
)


@pytest.mark.parametrize("error", MESSAGES, ids=lambda error: str(error)[:24])
def test_whatever_says_that_memory_ran_out_costs_no_answer(
    gpu: CudaDouble, forward: Forward, error: RuntimeError
) -> None:
    started = forward.start(pinned(0), VIEWS)
    gpu.errors[gpu.allocations + 5] = error  # in the middle of the second batch, while the first is under way
    second = forward.start(pinned(1), VIEWS)
    assert not gpu.errors and forward.largest_batch == 2
    for seed, one in enumerate((started, second)):
        answer = forward.finish(one)
        assert np.allclose(answer, by_hand(pixels(seed), forward.info.mean, forward.info.std), atol=1e-6)


def test_another_error_is_raised_and_nothing_is_halved(gpu: CudaDouble, forward: Forward) -> None:
    gpu.errors[gpu.allocations + 5] = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="shapes cannot"):
        forward.start(pinned(0), VIEWS)
    assert forward.largest_batch == 0 and gpu.emptied == 0
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_halving_ends_at_one() -> None:
    tried: list[int] = []

    class Queue(HostQueue):
        drained = 0

        def drain(self) -> None:
            self.drained += 1

    def call(size: int) -> int:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    queue = Queue()
    with pytest.raises(torch.OutOfMemoryError):
        fit_to_memory(call, 7, queue)
    assert tried == [7, 4, 2, 1] and queue.drained == 3


def test_an_overflow_is_computed_again_while_another_batch_is_under_way(gpu: CudaDouble, forward: Forward) -> None:
    class Loud(Corners):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.abs() * 6e4) / 6e4  # more than half precision holds

    forward.model, forward.precision = Loud(), "fp16"
    started = [forward.start(pinned(seed), VIEWS) for seed in (0, 1)]
    answers = [forward.finish(one) for one in started]
    assert forward.precision == "fp32" and all(np.isfinite(answer).all() for answer in answers)
    exact = Forward(Loud(), forward.info, torch.device("cpu"))
    for seed, answer in enumerate(answers):
        assert np.allclose(answer, exact.finish(exact.start(pixels(seed), VIEWS)), atol=1e-6)


def test_the_double_sees_a_value_that_is_read_too_early(gpu: CudaDouble) -> None:
    host = torch.empty(3, pin_memory=True)
    host.copy_(torch.ones(3).to(GPU) + 1, non_blocking=True)
    assert host.isnan().all()
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    assert host.tolist() == [2, 2, 2]


def test_the_double_sees_pixels_that_are_overwritten_too_early(gpu: CudaDouble) -> None:
    queue, batch = CudaQueue(GPU), pinned(0)
    answer = queue.download(queue.upload(batch).float())
    batch.zero_()
    assert not answer.wait().any()


def test_the_double_sees_a_stream_that_does_not_wait(gpu: CudaDouble) -> None:
    with torch.cuda.stream(torch.cuda.Stream(GPU)):
        on_device = pinned(0).to(GPU, non_blocking=True)
    queue = CudaQueue(GPU)
    with pytest.raises(AssertionError, match="must wait for its event"):
        queue.download(on_device.float()).wait()


def test_the_double_sees_memory_that_is_taken_too_early(gpu: CudaDouble) -> None:
    queue = CudaQueue(GPU)
    answers = [queue.download(queue.upload(pinned(seed)).float()) for seed in (0, 1)]  # the pixels are let go at once
    assert len(gpu.faults) == 1
    gpu.faults.clear()
    del answers


def test_the_double_sees_what_waits(gpu: CudaDouble) -> None:
    pixels(0).to(GPU, non_blocking=True)  # from pageable memory
    pinned(0).to(GPU)
    (torch.ones(2).to(GPU, non_blocking=True) * 2).cpu()
    assert len(gpu.blocking) == 4
