"""One checkpoint on one device: memory that runs out, half precision that overflows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_members import write_checkpoint
from torch import nn

from cassava_kit.data.transforms import normalize
from cassava_kit.inference.device_queue import is_out_of_memory
from cassava_kit.inference.forward import Forward, place
from cassava_kit.inference.loading import load_network
from cassava_kit.inference.tta import View, make_views
from cassava_kit.models.checkpoint import load_model

CPU = torch.device("cpu")
PLAIN = make_views("none")[0]


def pixels(n: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def probabilities(forward: Forward, batch: torch.Tensor, view: View = PLAIN) -> np.ndarray:
    return forward.finish(forward.start(batch, [view]))[0]


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet", "test_vit"])
def test_the_answer_is_the_plain_models(tmp_path: Path, model: str) -> None:
    path = write_checkpoint(tmp_path / "a-fold0.safetensors", model)
    plain, info = load_model(path)
    for view in make_views("d4+zoom"):
        with torch.no_grad():
            x = normalize(pixels().permute(0, 3, 1, 2), info.mean, info.std)
            expected = plain(view(x)).softmax(1).numpy()
        assert np.abs(probabilities(place(load_network(path), CPU), pixels(), view) - expected).max() < 5e-5


class Greedy(nn.Module):
    """A model for which more than `most` images are too many."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error, self.batches = most, error, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most:
            raise self.error
        self.batches.append(len(x))
        return x.mean((2, 3))


def greedy(tmp_path: Path, most: int, error: Exception) -> Forward:
    _, info = load_model(write_checkpoint(tmp_path / "a-fold0.safetensors"))
    return Forward(Greedy(most, error), info, CPU)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_out_of_memory_halves_the_batch(tmp_path: Path, error: Exception) -> None:
    halving = greedy(tmp_path, 3, error)
    answer = probabilities(halving, pixels(8))
    assert halving.model.batches == [2, 2, 2, 2]
    assert np.array_equal(answer, probabilities(greedy(tmp_path, 8, error), pixels(8)))


def test_the_next_batches_are_cut_at_once(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory")
    halving = greedy(tmp_path, 3, error)
    probabilities(halving, pixels(8))
    halving.model.error = AssertionError("tried a batch that is known not to fit")
    assert np.array_equal(probabilities(halving, pixels(8)), probabilities(greedy(tmp_path, 8, error), pixels(8)))
    assert halving.model.batches == [2] * 8 and halving.largest_batch == 2


def test_one_image_that_does_not_fit_and_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        probabilities(greedy(tmp_path, 0, torch.OutOfMemoryError("out of memory")), pixels(4))
    other = greedy(tmp_path, 3, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        probabilities(other, pixels(8))
    assert not other.model.batches
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


class Loud(nn.Module):
    """Numbers on the way that half precision cannot hold, though the logits are small."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return ((means.abs() + 1) * 6e4 + means * 6e4) / 6e4


def test_an_overflow_in_half_precision_is_computed_again(tmp_path: Path) -> None:
    _, info = load_model(write_checkpoint(tmp_path / "a-fold0.safetensors"))
    half = Forward(Loud().half(), info, CPU, "fp16")
    answer = probabilities(half, pixels())
    assert half.precision == "fp32"
    assert np.isfinite(answer).all()
    exact = probabilities(Forward(Loud(), info, CPU), pixels())
    assert np.allclose(answer, exact, atol=1e-6)
    # On a GPU the next batch is under way in half precision before the first one's overflow is seen.
    half = Forward(Loud().half(), info, CPU, "fp16")
    for one in [half.start(pixels(), [PLAIN]), half.start(pixels(), [PLAIN])]:
        assert np.allclose(half.finish(one)[0], exact, atol=1e-6)


def test_half_precision_stays_where_it_holds(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "a-fold0.safetensors")
    exact = probabilities(place(load_network(path), CPU), pixels())
    half = place(load_network(path), CPU)
    half.model.half()
    half.precision = "fp16"
    assert np.abs(probabilities(half, pixels()) - exact).max() < 2e-2
    assert half.precision == "fp16"
