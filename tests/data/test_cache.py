"""The pixel cache: exactly the evaluation pixels, made once, made again when anything it rests on has changed."""

from __future__ import annotations

import json
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cassava_kit.data import cache as cache_module
from cassava_kit.data.cache import PixelCache, open_cache
from cassava_kit.data.dataset import ImageDataset
from cassava_kit.data.images import ImageError, load_image
from cassava_kit.data.transforms import train_transform

SIZE = (24, 32)


def save(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((80, 60), Image.BICUBIC).save(path, quality=90)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    for n in range(6):
        save(tmp_path / "images" / f"{n}.jpg", n)
    return sorted((tmp_path / "images").glob("*.jpg"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one for every row that is decoded into a cache."""
    rows: list[int] = []
    original = cache_module._write_row
    monkeypatch.setattr(cache_module, "_write_row", lambda *args: rows.append(args[-1][0]) or original(*args))
    return rows


def opened(folder: Path, paths: list[Path], **options) -> PixelCache:
    return open_cache(folder, paths, SIZE, progress=False, **options)


def test_rows_are_the_evaluation_pixels(folder, paths):
    cache = opened(folder, paths)
    assert len(cache) == 6
    for n, path in enumerate(paths):
        assert np.array_equal(cache[n], load_image(path, SIZE))
        assert np.array_equal(cache.load(path), cache[n])


def test_rows_are_read_only_views_into_the_file(folder, paths):
    row = opened(folder, paths)[2]
    assert type(row) is np.ndarray
    assert not row.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        row[:] = 0


def test_it_is_made_once(folder, paths, decoded):
    first = opened(folder, paths)
    assert sorted(decoded) == list(range(6))
    again = opened(folder, paths)
    assert len(decoded) == 6
    assert np.array_equal(first[5], again[5])


def test_any_part_in_any_order_is_served(folder, paths, decoded):
    opened(folder, paths)
    part = opened(folder, [paths[4], paths[1]])
    assert len(decoded) == 6
    assert len(part) == 2
    assert np.array_equal(part[0], load_image(paths[4], SIZE))
    assert np.array_equal(part.load(paths[1]), load_image(paths[1], SIZE))
    with pytest.raises(KeyError):
        part.load(paths[0])


def test_touching_a_file_changes_nothing_but_its_marks(folder, paths, decoded, monkeypatch):
    opened(folder, paths)
    os.utime(paths[3], (1, 1))
    opened(folder, paths)
    assert len(decoded) == 6
    monkeypatch.setattr(cache_module, "_sha256", lambda path: pytest.fail("read again"))
    opened(folder, paths)


def test_new_content_makes_it_again_even_under_the_old_size_and_time(folder, paths, decoded):
    opened(folder, paths)
    before = paths[3].stat()
    content = bytearray(paths[3].read_bytes())
    content[-40] ^= 0xFF
    paths[3].write_bytes(content)
    os.utime(paths[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert paths[3].stat().st_mtime_ns == before.st_mtime_ns
    cache = opened(folder, paths)
    assert len(decoded) == 12
    assert np.array_equal(cache[3], load_image(paths[3], SIZE))


def test_another_size_is_another_file(folder, paths):
    small, usual = open_cache(folder, paths, (12, 12), progress=False), opened(folder, paths)
    assert small.file != usual.file
    assert small[0].shape == (12, 12, 3)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def drop_header(file: Path) -> None:
    file.with_suffix(".json").unlink()


def break_header(file: Path) -> None:
    file.with_suffix(".json").write_text("{")


def other_shape(file: Path) -> None:
    np.save(file, np.zeros((6, 24, 31, 3), np.uint8))


def other_layout(file: Path) -> None:
    header = json.loads(file.with_suffix(".json").read_text())
    file.with_suffix(".json").write_text(json.dumps({**header, "layout": 1}))


@pytest.mark.parametrize("harm", [cut_short, empty, drop_header, break_header, other_shape, other_layout, Path.unlink])
def test_a_broken_cache_is_made_again(folder, paths, decoded, harm):
    harm(opened(folder, paths).file)
    cache = opened(folder, paths)
    assert len(decoded) == 12
    assert np.array_equal(cache[0], load_image(paths[0], SIZE))


def test_a_failure_while_making_leaves_nothing_behind(folder, paths, monkeypatch):
    original = cache_module._write_row

    def stop(*args):
        if args[-1][0] == 4:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(cache_module, "_write_row", stop)
    with pytest.raises(KeyboardInterrupt):
        opened(folder, paths)
    assert list(folder.iterdir()) == []


def test_broken_images_are_remembered_with_their_reason(folder, paths):
    paths[1].write_bytes(b"<html>")
    paths[2].unlink()
    for _ in range(2):  # made, and opened again
        cache = opened(folder, paths)
        with pytest.raises(ImageError, match=r"1\.jpg: not a JPEG"):
            cache.load(paths[1])
        with pytest.raises(ImageError, match=r"2\.jpg: cannot be read"):
            cache.load(paths[2])
    dataset = ImageDataset(paths, range(6), cache.load)
    assert len([picture for picture, _, _ in dataset]) == 6
    assert dataset.failed == {1, 2}
    save(paths[1], 1)
    assert np.array_equal(opened(folder, paths).load(paths[1]), load_image(paths[1], SIZE))


def test_the_data_set_sees_the_same_pictures_through_it(folder, paths):
    cache = opened(folder, paths)
    for transform in (None, train_transform("strong", (16, 16))):
        plain = ImageDataset(paths, range(6), partial(load_image, size=SIZE), transform=transform)
        cached = ImageDataset(paths, range(6), cache.load, transform=transform)
        loaded = torch.cat([batch for batch, _, _ in DataLoader(cached, 2, num_workers=2)])
        assert torch.equal(loaded, torch.stack([picture for picture, _, _ in plain]))


def test_it_travels_to_processes_without_its_pixels(folder, paths):
    cache = opened(folder, paths)
    row = cache[0].copy()
    content = pickle.dumps(cache)
    assert len(content) < 2000
    assert np.array_equal(pickle.loads(content)[0], row)


def test_two_images_of_one_name_in_two_folders_keep_their_own_pixels(folder, paths, tmp_path, decoded):
    (tmp_path / "other").mkdir()
    save(tmp_path / "other" / "0.jpg", 9)
    both = [*paths, tmp_path / "other" / "0.jpg"]
    cache = opened(folder, both)
    assert all(np.array_equal(cache[n], load_image(path, cache.size)) for n, path in enumerate(both))
    decoded.clear()
    some = opened(folder, [both[-1], both[1]])
    assert decoded == [] and np.array_equal(some[0], cache[len(both) - 1]) and np.array_equal(some[1], cache[1])
    assert np.array_equal(some.load(both[-1]), cache[len(both) - 1])
    with pytest.raises(ValueError, match="one is given twice"):
        opened(folder, [*paths, paths[0]])
    with pytest.raises(ValueError, match="at least one image"):
        opened(folder, [])


def test_too_small_a_disk_is_said_before_the_work(folder, paths, monkeypatch, decoded):
    class Usage:
        free = 1000

    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(ValueError, match="does not fit"):
        opened(folder, paths)
    assert decoded == []


def test_an_interruption_never_leaves_new_pixels_under_an_old_header(folder, paths, monkeypatch):
    """Killed between the two files: the old header would give the second image the pixels of the third."""
    opened(folder, paths[:2])
    monkeypatch.setattr(cache_module, "write_json", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        opened(folder, [paths[0], paths[2]])
    monkeypatch.undo()
    again = opened(folder, paths[:2])
    assert np.array_equal(again[1], load_image(paths[1], SIZE))
