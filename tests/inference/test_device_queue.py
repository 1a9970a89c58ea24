"""The way to a GPU and back, on `cuda_double`: order, lifetime, memory that runs out, one upload for all views."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_double import CudaDouble, play_cuda
from tiny_members import write_checkpoint
from torch import nn

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
