"""Images that are huge, or whose reading hangs: the others are read, and the deadline is kept."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import FakeClock, read_labels, submit

from cassava_kit.inference import pixels
from cassava_kit.inference.kept_pixels import Budget
from cassava_kit.inference.pixels import PixelStore

SIZE = (24, 24)


def with_left(seconds: float) -> FakeClock:
    """A clock with these seconds left."""
    clock = FakeClock(None if seconds == float("inf") else 10_000.0)
    clock.now = clock.left - seconds if clock.limit else 0.0
    return clock


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of files that cannot be read before the test ends."""
    names: set[str] = set()
    over, real = threading.Event(), pixels.read_file

    def read_file(path: Path) -> bytes:
        if path.name in names:
            over.wait(600)
        return real(path)

    monkeypatch.setattr(pixels, "read_file", read_file)
    monkeypatch.setattr(pixels, "POLL_SECONDS", 0.01)
    yield names
    over.set()


def rows_of(store: PixelStore, rows: np.ndarray) -> np.ndarray:
    return np.concatenate([b.rows for b in store.batches(rows, SIZE, 4)] or [np.empty(0, int)])


def test_a_reader_that_hangs_is_left_behind_and_costs_its_image_alone(
    images: Path, hang: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(images.iterdir())
    hang |= {"002.jpg", "003.jpg", "004.jpg", "017.jpg"}  # more than there are readers
    monkeypatch.setattr(pixels, "cpu_count", lambda: 2)
    monkeypatch.setattr(pixels, "LEAST_READ_SECONDS", 0.5)
    monkeypatch.setattr(pixels, "MOST_READ_SECONDS", 0.5)
    with PixelStore(paths, [SIZE], budget=Budget(10**9)) as store:
        assert rows_of(store, np.arange(21)).tolist() == list(range(21))
        assert sorted(paths[row].name for row in store.failed) == sorted(hang)
        assert all("not read within" in reason for reason in store.failed.values())
        assert len(store.readers) == 2 and store.left_behind == 4
        start = time.monotonic()
    assert time.monotonic() - start < 500  # close does not wait for those that hang for ten minutes


def test_no_more_places_are_taken_than_memory_allows(
    images: Path, hang: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = sorted(images.iterdir())
    hang |= {path.name for path in paths[:6]}
    monkeypatch.setattr(pixels, "cpu_count", lambda: 2)
    monkeypatch.setattr(pixels, "MOST_LEFT_BEHIND", 2)
    monkeypatch.setattr(pixels, "LEAST_READ_SECONDS", 0.5)
    monkeypatch.setattr(pixels, "MOST_READ_SECONDS", 0.5)
    with PixelStore(paths, [SIZE], budget=Budget(10**9)) as store:
        assert len(rows_of(store, np.arange(21))) == 21
        assert len(store.failed) == 6 and len(store.readers) == 1  # one goes on, however many hang


def test_waiting_for_an_image_ends_with_the_time(images: Path, hang: set[str]) -> None:
    hang |= {"005.jpg"}
    clock = with_left(100.0)
    with PixelStore(sorted(images.iterdir()), [SIZE], budget=Budget(10**9), clock=clock) as store:
        batches = store.batches(np.arange(21), SIZE, 4)
        assert next(batches).rows.tolist() == [0, 1, 2, 3]
        clock.now += 100.0
        assert list(batches) == [] and not store.failed


def test_what_was_read_by_a_late_reader_is_not_kept(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, real = threading.Event(), pixels.read_file
    monkeypatch.setattr(pixels, "read_file", lambda path: (path.name != "001.jpg" or go_on.wait(60)) and real(path))
    monkeypatch.setattr(pixels, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(pixels, "MOST_READ_SECONDS", 0.5)
    with PixelStore(sorted(images.iterdir()), [SIZE], budget=Budget(10**9)) as store:
        rows_of(store, np.arange(21))
        go_on.set()
        late = [thread for thread in threading.enumerate() if thread.name == "decode" and thread not in store.readers]
        for thread in late:
            thread.join(60)
        assert store.decoded == 20 and list(store.failed) == [1] and store.left_behind == 0
        (batch,) = store.batches(np.array([1]), SIZE, 1)
        assert not batch.pixels.any()


@pytest.mark.parametrize(("left", "seconds"), [(float("inf"), 60.0), (1000.0, 50.0), (100.0, 5.0), (10.0, 2.0)])
def test_one_image_may_take_a_twentieth_of_the_time_left(images: Path, left: float, seconds: float) -> None:
    clock = with_left(left)
    with PixelStore(sorted(images.iterdir()), [SIZE], budget=Budget(0), clock=clock) as store:
        assert store.read_seconds == pytest.approx(seconds)


def test_an_image_too_large_for_the_time_is_not_decoded(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (12_000, 10_000), 120).save(images / "large.jpg", quality=20)
    decoded: list[int] = []
    real = pixels.decode
    monkeypatch.setattr(pixels, "decode", lambda content: (decoded.append(len(content)), real(content))[1])
    paths = sorted(images.iterdir())
    for left, expected in ((10.0, 21), (1000.0, 22)):
        clock = with_left(left)
        decoded.clear()
        with PixelStore(paths, [SIZE], budget=Budget(0), clock=clock) as store:
            rows_of(store, np.arange(22))
        assert len(decoded) == expected
        assert len(store.failed) == 22 - expected
    clock = with_left(10.0)
    with PixelStore(paths[-1:], [SIZE], budget=Budget(0), clock=clock) as store:
        rows_of(store, np.arange(1))
    assert (
        store.failed[0] == "ImageError: 12000x10000 pixels cannot be decoded in the 2 seconds that one image may take"
    )


def test_a_run_whose_images_hang_ends_in_time_with_the_others_votes(
    images: Path, weights: Path, tmp_path: Path, hang: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, _ = submit(images, weights, tmp_path / "good" / "s.csv", early_stop="off")
    hang |= {"000.jpg", "013.jpg"}
    monkeypatch.setattr(pixels, "LEAST_READ_SECONDS", 1.0)
    monkeypatch.setattr(pixels, "READ_SHARE", 0.0)
    labels, report = submit(
        images, weights, tmp_path / "s.csv", early_stop="off", time_limit=600.0, started=time.time()
    )
    assert sorted(report.images_failed) == ["000.jpg", "013.jpg"] and not report.left_out
    others = [name for name in labels.index if name not in report.images_failed]
    assert labels[others].tolist() == good[others].tolist() == read_labels(tmp_path / "good" / "s.csv")[others].tolist()
    assert report.timings["total"] < 500  # nothing waited the ten minutes for which the reads hang
