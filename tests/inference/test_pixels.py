"""The store gives `load_image`'s pixels from wherever it keeps them, and one bad file is one bad row."""

import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from cassava_kit.data import images as image_files
from cassava_kit.data.images import load_image
from cassava_kit.inference import pixels
from cassava_kit.inference.kept_pixels import Budget
from cassava_kit.inference.pixels import PixelStore

SMALL, LARGE, OTHER = (24, 24), (40, 32), (25, 24)
ROW = 24 * 24 * 3 + 40 * 32 * 3 + 25 * 24 * 3


def read_all(store: PixelStore, size: tuple[int, int], rows: np.ndarray | None = None) -> np.ndarray:
    rows = np.arange(len(store.paths)) if rows is None else rows
    return np.concatenate([b.pixels.numpy()[: len(b.rows)] for b in store.batches(rows, size, 4)])


@pytest.mark.parametrize(
    "budget",
    [Budget(10**9), Budget(5 * ROW, 10**9), Budget(5 * ROW, 6 * ROW), Budget(0, 0)],
    ids=["memory", "disk", "mixed", "none"],
)
def test_every_tier_gives_the_evaluation_pixels_twice(images: Path, budget: Budget) -> None:
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL, LARGE, OTHER], budget=budget) as store:
        for _ in range(2):
            for size in (LARGE, SMALL, OTHER):
                expected = np.stack([load_image(path, size) for path in paths])
                assert np.array_equal(read_all(store, size), expected)


def test_each_file_is_decoded_once_while_there_is_room(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()
    real = pixels.read_file
    monkeypatch.setattr(pixels, "read_file", lambda path: (calls.update([path.name]), real(path))[1])
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL, LARGE], budget=Budget(10**9)) as store:
        for size in (SMALL, LARGE, SMALL):
            read_all(store, size)
    assert calls == {path.name: 1 for path in paths}
    calls.clear()
    with PixelStore(paths, [SMALL], budget=Budget(10 * 24 * 24 * 3, 0)) as store:
        read_all(store, SMALL)
        read_all(store, SMALL)
    assert Counter(calls.values()) == {1: 10, 2: len(paths) - 10}


def test_rows_without_room_are_made_in_the_one_size_that_is_asked_for(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[tuple[int, int]] = Counter()
    real = pixels.resize
    monkeypatch.setattr(pixels, "resize", lambda image, size: (made.update([size]), real(image, size))[1])
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL, LARGE, OTHER], budget=Budget(4 * ROW, 6 * ROW)) as store:
        read_all(store, LARGE)
    assert made == {LARGE: len(paths), SMALL: 10, OTHER: 10}


def test_batches_keep_their_shape_and_the_order_asked_for(images: Path) -> None:
    paths = sorted(images.iterdir())
    rows = np.array([7, 3, 20, 0, 11, 5])
    with PixelStore(paths, [SMALL], budget=Budget(10**9)) as store:
        batches = list(store.batches(rows, SMALL, 4))
        assert [batch.pixels.shape for batch in batches] == [(4, 24, 24, 3)] * 2
        assert np.array_equal(np.concatenate([batch.rows for batch in batches]), rows)
        assert not batches[1].pixels[2:].any()
        expected = np.stack([load_image(paths[row], (24, 24)) for row in rows])
        assert np.array_equal(read_all(store, SMALL, rows), expected)


def test_bad_files_are_named_and_the_others_are_the_same(images: Path, tmp_path: Path) -> None:
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL], budget=Budget(0)) as store:
        good = read_all(store, SMALL)
    (images / "003.jpg").write_bytes(b"")
    (images / "005.jpg").write_bytes((images / "005.jpg").read_bytes()[:400])
    (images / "007.jpg").unlink()
    (images / "009.jpg").unlink()
    (images / "009.jpg").mkdir()
    (images / "011.jpg").unlink()
    os.mkfifo(images / "011.jpg")
    bad = [3, 5, 7, 9, 11]
    with PixelStore(paths, [SMALL], budget=Budget(10**9)) as store:
        for _ in range(2):
            seen = read_all(store, SMALL)
            assert sorted(store.failed) == bad
            assert not seen[bad].any()
            kept = np.setdiff1d(np.arange(len(paths)), bad)
            assert np.array_equal(seen[kept], good[kept])
    assert "empty" in store.failed[3]
    assert "not a regular file" in store.failed[9] and "not a regular file" in store.failed[11]


def test_a_decoder_that_runs_out_of_memory_costs_one_row(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_files.decode
    bad = (images / "002.jpg").read_bytes()

    def decode(content: bytes) -> np.ndarray:
        if content == bad:
            raise MemoryError
        return real(content)

    monkeypatch.setattr(pixels, "decode", decode)
    with PixelStore(sorted(images.iterdir()), [SMALL]) as store:
        read_all(store, SMALL)
        assert list(store.failed) == [2]


def test_a_file_that_disappears_after_it_was_read_is_not_missed(images: Path) -> None:
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL, LARGE], budget=Budget(10**9)) as store:
        first = read_all(store, LARGE)
        for path in paths:
            path.unlink()
        assert np.array_equal(read_all(store, LARGE), first)
        read_all(store, SMALL)
        assert not store.failed


def test_a_full_disk_means_decoding_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    paths = sorted(images.iterdir())
    with PixelStore(paths, [SMALL], budget=Budget(0, 10**9)) as store:
        first, second = read_all(store, SMALL), read_all(store, SMALL)
        assert not store.failed and np.array_equal(first, second) and first.any()
        assert store.decoded == 2 * len(paths)


def test_giving_up_early_leaves_no_thread_at_work(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, go_on, real = sorted(images.iterdir()), threading.Event(), pixels.read_file

    def read_file(path: Path) -> bytes:
        assert path in paths[:4] or go_on.wait(60)
        return real(path)

    monkeypatch.setattr(pixels, "read_file", read_file)
    monkeypatch.setattr(pixels, "cpu_count", lambda: 2)
    with PixelStore(paths, [SMALL], budget=Budget(10**9)) as store:
        batches = store.batches(np.arange(21), SMALL, 4)
        next(batches)  # twelve rows are begun or wait behind it
        batches.close()
        go_on.set()
    assert store.decoded <= 4 + 2 and not store.failed
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]


def test_reading_leaves_the_model_its_cores(images: Path) -> None:
    """`set_num_threads` in a decoding thread holds for the whole process: the model would run on one core."""
    torch.set_num_threads(2)
    with PixelStore(sorted(images.iterdir()), [SMALL]) as store:
        read_all(store, SMALL)
        assert torch.get_num_threads() == 2


def test_the_budget_takes_the_gigabytes_asked_for() -> None:
    assert Budget.of_machine(0.5).memory == 500_000_000
    assert 0 < Budget.of_machine().memory < 10**13
