"""Whole runs on GPUs played by `cuda_double`: the CPU's labels, one upload for all views, nothing that waits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_double import play_cuda
from tiny_runs import FakeClock, full_ensemble, submit

from cassava_kit.inference.forward import Forward, Started
from cassava_kit.inference.pixels import PixelStore
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.runner import Runner
from cassava_kit.inference.tta import make_views

NAMES = ("res-fold0", "res-fold1", "eff-fold0", "vit-fold0")
SIDES = {"eff-fold0": 48}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_on_gpus_gives_the_labels_of_the_cpu(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    expected = full_ensemble(images, weights).argmax(1).tolist()
    with play_cuda(monkeypatch, devices):
        labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off", device="auto", batch_size=4)
    assert not report.left_out and report.error is None and len(report.devices) == devices
    assert labels.tolist() == expected


def test_views_share_one_upload_and_no_batch_waits_for_the_device(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, checkpoints = sorted(images.iterdir()), [weights / f"{name}.safetensors" for name in NAMES]
    expected, _ = predict_images(checkpoints, paths, views="flips", device="cpu", progress=False)
    waits = {}
    for n in (8, 21):  # two batches, and six
        with play_cuda(monkeypatch) as gpu:
            found, _ = predict_images(
                checkpoints, paths[:n], views="flips", batch_size=4, device="cuda:0", progress=False
            )
            waits[n] = sorted(gpu.blocking)
            sides = [SIDES.get(name, 32) for name in NAMES]
            assert sorted(gpu.uploads) == sorted(-(-n // 4) * [4 * side * side * 3 for side in sides])
        assert np.abs(found - expected[:, :n]).max() < 5e-2  # half precision, random weights
    assert waits[8] == waits[21]  # weights and constants alone


def test_a_deadline_counts_the_batch_that_is_still_under_way(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch of four takes ten seconds of the device, waited for in `finish`; 35 seconds are enough for three."""
    clock, real = FakeClock(10_000.0), Forward.finish
    clock.now = clock.left - 35.0
    limit = clock.now + 35.0

    def finish(self: Forward, started: Started) -> np.ndarray:
        clock.now += 10.0
        return real(self, started)

    monkeypatch.setattr(Forward, "finish", finish)
    rows: list[np.ndarray] = []
    with play_cuda(monkeypatch), PixelStore(sorted(images.iterdir()), [(32, 32)], pinned=True, clock=clock) as store:
        work = Runner(store, [torch.device("cuda", 0)], 4, clock)
        path = weights / "res-fold0.safetensors"
        plain = make_views("none")
        work.predict(path, plain, np.arange(21), lambda _, seen, p: rows.append(seen), seconds_per_image=2.5)
    assert len(rows) == 3 and clock.now <= limit


def test_memory_that_runs_out_in_the_middle_of_a_run_loses_nothing(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, checkpoint = sorted(images.iterdir()), weights / "res-fold0.safetensors"
    expected, _ = predict_images([checkpoint], paths, views="flips", device="cpu", progress=False)
    real, halved = Forward.start, []

    with play_cuda(monkeypatch) as gpu:

        def start(self: Forward, *arguments: object) -> Started:
            if len(gpu.uploads) == 2:
                gpu.errors[gpu.allocations + 30] = torch.OutOfMemoryError("CUDA out of memory")
            started = real(self, *arguments)
            halved.append(self.largest_batch)
            return started

        monkeypatch.setattr(Forward, "start", start)
        found, failed = predict_images(
            [checkpoint], paths, views="flips", batch_size=4, device="cuda:0", progress=False
        )
    assert not failed and not gpu.errors
    assert halved == [0, 0, 2, 2, 2, 2]
    assert np.abs(found - expected).max() < 5e-2


def test_features_are_fetched_one_batch_later_and_are_those_of_the_cpu(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import features
    from cassava_kit.models.network import create_model

    monkeypatch.setattr(features, "FEATURE_BATCH", 4)
    paths = sorted(images.iterdir())
    pixels = features.Pixels(32, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    backbone = create_model("test_vit", 0)
    expected = features.extract_views(backbone, paths, pixels, "flips")
    with play_cuda(monkeypatch) as gpu, torch.inference_mode():
        moved = backbone.to(torch.device("cuda", 0))
        gpu.blocking.clear()
        gpu.errors[gpu.allocations + 200] = torch.OutOfMemoryError("CUDA out of memory")
        found = features.extract_views(moved, paths, pixels, "flips")
        assert not gpu.errors and gpu.emptied == 1
        assert len(gpu.blocking) == 2  # the constants of the first batch
        assert gpu.uploads == [4 * 32 * 32 * 3] * 2 + gpu.uploads[2:] and len(gpu.uploads) == 7
    assert np.abs(found - expected).max() < 1e-5
