"""Devices played on the CPU: GPUs that do not compute, memory that runs out while loading, several at once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import FakeClock, full_ensemble, read_labels, submit

from cassava_kit.inference import ensemble_run, machine, runner
from cassava_kit.inference.forward import Forward, Started
from cassava_kit.inference.loading import Network
from cassava_kit.inference.machine import usable_devices
from cassava_kit.inference.pixels import PixelStore
from cassava_kit.inference.runner import Runner
from cassava_kit.inference.tta import View, make_views

CPU = torch.device("cpu")
PLAIN = make_views("none")[0]


def test_a_gpu_that_is_announced_and_does_not_compute_is_not_used(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if any(map(machine._computes, (torch.device("cuda", 0), torch.device("cuda", 1)))):
        pytest.skip("here is a GPU that does compute")
    assert usable_devices() == (CPU,)
    labels, report = submit(images, weights, tmp_path / "s.csv", device="auto")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    assert report.error is None and report.devices[0].startswith("cpu")


def test_every_gpu_that_computes_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(machine, "_computes", lambda device: device.index != 1)
    assert usable_devices() == (torch.device("cuda", 0), torch.device("cuda", 2))
    assert usable_devices("cuda:2") == (torch.device("cuda", 2),)
    with pytest.raises(ValueError, match="device cuda:1 does not compute, torch sees 3 GPUs; take auto or cpu"):
        usable_devices("cuda:1")


@pytest.mark.parametrize("version", [1, 2])
def test_files_that_were_read_are_no_memory_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """A pass over the images fills a control group with them; the kernel forgets them as soon as memory is wanted."""
    folder = tmp_path / "memory" if version == 1 else tmp_path
    names = ("limit_in_bytes", "usage_in_bytes") if version == 1 else ("max", "current")
    folder.mkdir(exist_ok=True)
    for name, size in zip(names, (9000, 8000), strict=True):
        (folder / f"memory.{name}").write_text(f"{size}\n")
    known = {1: "inactive_file 4\ntotal_inactive_file 6000\n", 2: "anon 2000\ninactive_file 6000\nactive_file 9\n"}
    (folder / "memory.stat").write_text(known[version])
    monkeypatch.setattr(machine, "GROUP", tmp_path)
    assert machine.free_memory() == 7000
    (folder / f"memory.{names[0]}").write_text("max\n")
    assert machine.free_memory() > 7000


def make_runner(images: Path, devices: int = 1) -> tuple[PixelStore, Runner]:
    store = PixelStore(sorted(images.iterdir()), [(32, 32), (48, 48)])
    return store, Runner(store, [CPU] * devices, 4)


def test_loaded_models_make_room_when_loading_runs_out_of_memory(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work = make_runner(images)
    real, calls = runner.place, []

    def place(network: Network, *device: object) -> Forward:
        calls.append(network.path.name)
        if work._loaded:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(network, *device)

    monkeypatch.setattr(runner, "place", place)
    with store:
        work.load(weights / "res-fold0.safetensors")
        work.load(weights / "vit-fold0.safetensors")
        assert calls == ["res-fold0.safetensors", "vit-fold0.safetensors", "vit-fold0.safetensors"]
        assert list(work._loaded) == [weights / "vit-fold0.safetensors"]
        monkeypatch.setattr(runner, "place", lambda *_: (_ for _ in ()).throw(RuntimeError("bad file")))
        with pytest.raises(RuntimeError, match="bad file"):
            work.load(weights / "eff-fold0.safetensors")
        assert list(work._loaded) == [weights / "vit-fold0.safetensors"]  # another error drops no other


def test_models_beyond_the_room_are_given_back(images: Path, weights: Path) -> None:
    store, work = make_runner(images)
    with store:
        first = work.load(weights / "res-fold0.safetensors")[0]
        work.most_bytes = int(1.5 * first.n_bytes)
        work.load(weights / "res-fold1.safetensors")
        assert list(work._loaded) == [weights / "res-fold1.safetensors"]


def test_several_devices_share_the_batches_and_each_row_comes_once(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work = make_runner(images, devices=2)
    replicas = work.load(weights / "res-fold0.safetensors")
    busy: list[int] = []
    real = Forward.start

    def start(self: Forward, pixels: torch.Tensor, views: Sequence[View]) -> Started:
        busy.append(replicas.index(next(r for r in replicas if r is self)))
        return real(self, pixels, views)

    monkeypatch.setattr(Forward, "start", start)
    seen: list[np.ndarray] = []
    with store:
        done = work.predict(
            weights / "res-fold0.safetensors", [PLAIN], np.arange(21), lambda _, rows, p: seen.append(rows.copy())
        )
    assert done == 21 and sorted(np.concatenate(seen)) == list(range(21))
    assert len(busy) == 6 and set(busy) <= {0, 1} and work.images_at_once == 8


def fail_on_device_0(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """The device `cpu:0` does so many batches and then none."""
    real, calls = Forward.start, []

    def start(self: Forward, pixels: torch.Tensor, views: Sequence[View]) -> Started:
        if self.device.index == 0:
            calls.append(1)
            if len(calls) > after:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return real(self, pixels, views)

    monkeypatch.setattr(Forward, "start", start)


def test_a_device_that_fails_leaves_its_rows_to_the_other(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, work = make_runner(images)
    work.devices = [torch.device("cpu", 0), CPU]
    fail_on_device_0(monkeypatch, after=1)
    seen: list[np.ndarray] = []
    with store:
        work.load(weights / "vit-fold0.safetensors")
        for name in ("res-fold0.safetensors", "vit-fold0.safetensors"):
            done = work.predict(weights / name, [PLAIN], np.arange(21), lambda _, rows, p: seen.append(rows.copy()))
            assert done == 21 and sorted(np.concatenate(seen)) == list(range(21))
            seen.clear()
    assert work.devices == [CPU] and work.images_at_once == 4
    assert "cpu:0 failed and is not used any more: RuntimeError: CUDA error" in capsys.readouterr().err


def test_a_device_that_fails_costs_no_checkpoint(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = full_ensemble(images, weights).argmax(1).tolist()
    monkeypatch.setattr(ensemble_run, "usable_devices", lambda _: (torch.device("cpu", 0), CPU))
    fail_on_device_0(monkeypatch, after=3)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == expected and not report.left_out and report.early_stop["work_done"] == 1


def test_a_checkpoint_that_fails_on_every_device_costs_no_device(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, work = make_runner(images, devices=2)

    def start(*_: object) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Forward, "start", start)
    with store, pytest.raises(RuntimeError, match="shapes cannot"):
        work.predict(weights / "res-fold0.safetensors", [PLAIN], np.arange(21), lambda *_: None)
    assert len(work.devices) == 2


def test_memory_that_runs_out_in_a_run_changes_no_label(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Forward._logits

    def scarce(self: Forward, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, batch)

    expected = full_ensemble(images, weights).argmax(1).tolist()
    monkeypatch.setattr(Forward, "_logits", scarce)
    labels, report = submit(images, weights, tmp_path / "s.csv", batch_size=8)
    assert labels.tolist() == expected == read_labels(tmp_path / "s.csv").tolist()
    assert not report.left_out and report.error is None


def timed_runner(images: Path, weights: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Predict 21 images in batches of four, each of which takes ten seconds of the clock; the rows that came."""
    real, seen = Forward.start, []

    def start(self: Forward, pixels: torch.Tensor, views: Sequence[View]) -> Started:
        clock.now += 10.0
        return real(self, pixels, views)

    monkeypatch.setattr(Forward, "start", start)
    with PixelStore(sorted(images.iterdir()), [(32, 32)], clock=clock) as store:
        work = Runner(store, [CPU], 4, clock)
        work.predict(weights / "res-fold0.safetensors", [PLAIN], np.arange(21), lambda _, rows, p: seen.append(rows))
    return seen


@pytest.mark.parametrize(("left", "batches"), [(1.0, 1), (19.9, 1), (20.1, 2), (35.0, 3), (1000.0, 6)])
def test_no_batch_is_begun_that_would_end_too_late(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, left: float, batches: int
) -> None:
    clock = FakeClock(10_000.0)
    clock.now = clock.left - left
    assert len(timed_runner(images, weights, clock, monkeypatch)) == batches  # the first one's length is not known


def test_a_batch_whose_images_came_too_late_is_not_begun(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, real = FakeClock(10_000.0), PixelStore.batches
    clock.now = clock.left - 100.0

    def batches(self: PixelStore, *arguments: object) -> object:
        for n, batch in enumerate(real(self, *arguments)):
            clock.now += 75.0 if n == 1 else 0.0  # with 15 seconds left after it, for a batch of ten
            yield batch
            clock.now += 10.0 if n == 1 else 0.0

    monkeypatch.setattr(PixelStore, "batches", batches)
    assert len(timed_runner(images, weights, clock, monkeypatch)) == 2
    clock.now = clock.limit - 50.0 - 89.0  # 89 s left: the second one comes with 4 seconds left
    assert len(timed_runner(images, weights, clock, monkeypatch)) == 1


def test_a_first_batch_is_judged_by_what_was_measured(
    images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock(10_000.0)
    clock.now = clock.left - 9.0
    seen: list[np.ndarray] = []
    with PixelStore(sorted(images.iterdir()), [(32, 32)], clock=clock) as store:
        for devices, seconds, batches in ((1, 2.5, 0), (2, 1.25, 0), (1, 2.0, 6)):
            work = Runner(store, [CPU] * devices, 4, clock)
            path = weights / "res-fold0.safetensors"
            work.predict(path, [PLAIN], np.arange(21), lambda _, rows, p: seen.append(rows), seconds_per_image=seconds)
            assert len(seen) == batches
