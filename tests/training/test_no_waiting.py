"""What training does every step does not wait for a GPU: it runs on one that `cuda_double` plays."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from cuda_double import CudaDouble, play_cuda

from cassava_kit.training.config import RunConfig
from cassava_kit.training.diverged import DivergedError, StopDiverged
from cassava_kit.training.module import Classifier
from cassava_kit.training.ssl.batch_views import cut_views
from cassava_kit.training.ssl.parts import Queue
from cassava_kit.training.ssl.view import ViewConfig

GPU = torch.device("cuda", 0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[CudaDouble]:
    with play_cuda(monkeypatch) as double:
        yield double


class Steps:
    """A run's steps, as `StopDiverged` sees them."""

    def __init__(self) -> None:
        self.stop = StopDiverged()
        self.trainer = SimpleNamespace(current_epoch=0, precision="32-true", callback_metrics={})
        self.stop.on_train_start(self.trainer, SimpleNamespace(device=GPU))

    def take(self, step: int, loss: float) -> None:
        """End one step with this loss."""
        outputs = {"loss": torch.full((), loss, device=GPU)}
        self.stop.on_train_batch_end(self.trainer, None, outputs, None, step)


@torch.inference_mode()
def test_a_loss_is_looked_at_once_the_next_step_is_ordered(gpu: CudaDouble) -> None:
    steps = Steps()
    for step in range(3):
        steps.take(step, 1.0)
    assert gpu.blocking == [] and len(gpu.streams[0][0].waiting) > 0  # the last step is still under way
    steps.take(3, float("nan"))
    with pytest.raises(DivergedError, match="epoch 1, step 4: "):
        steps.take(4, 1.0)


@torch.inference_mode()
@pytest.mark.parametrize("hook", ["on_validation_start", "on_train_epoch_end"])
def test_the_last_loss_of_an_epoch_is_looked_at_before_anything_is_written(gpu: CudaDouble, hook: str) -> None:
    steps = Steps()
    steps.take(0, 1.0)
    steps.take(1, float("inf"))
    with pytest.raises(DivergedError, match="epoch 1, step 2: "):
        getattr(steps.stop, hook)(steps.trainer, None)


@torch.inference_mode()
def test_a_training_step_waits_for_nothing(gpu: CudaDouble) -> None:
    config = RunConfig(recipe="tiny", model="test_vit", image_size=32)
    module = Classifier(config, ("a", "b", "c"), steps_per_epoch=4).to(GPU)
    images = torch.zeros((4, 3, 32, 32), dtype=torch.uint8).to(GPU)
    labels = torch.arange(4).to(GPU) % 3
    module.training_step((images, labels, labels), 0)
    gpu.blocking.clear()  # the constants of the first batch
    module.training_step((images, labels, labels), 1)
    module.validation_step((images, labels, labels), 0)
    assert gpu.blocking == []


@torch.inference_mode()
def test_views_are_cut_on_the_device_without_waiting_and_are_those_of_the_cpu(gpu: CudaDouble) -> None:
    images = torch.randint(0, 256, (4, 3, 30, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    strong = {"blur_prob": 0.6, "solarize_prob": 0.5, "grayscale_prob": 0.3, "background_swap_prob": 0.5}
    views = [ViewConfig(size=16, count=2, **strong), ViewConfig(size=8, scale=(0.05, 0.3))]

    def cut(on: torch.Tensor) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(5)
        return cut_views(on, views, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), generator=generator)

    moved = images.to(GPU)
    cut(moved)
    gpu.blocking.clear()  # the constants of the first batch
    found = cut(moved)
    assert gpu.blocking == []
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found, cut(images), strict=True))


@torch.inference_mode()
def test_a_full_queue_is_pushed_without_waiting(gpu: CudaDouble) -> None:
    queue = Queue(6, 2).to(GPU)
    for start in (0, 4):
        queue.push(torch.arange(start, start + 4.0)[:, None].expand(4, 2).to(GPU))
    assert queue.full
    gpu.blocking.clear()
    more = torch.full((2, 2), 8.0, device=GPU)
    queue.push(more)
    assert queue.full and gpu.blocking == []
    assert queue.bank.cpu()[:, 0].tolist() == [6, 7, 8, 8, 4, 5]  # the ring: the oldest are overwritten
