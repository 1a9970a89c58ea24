"""The data set: rows as asked, pictures decided by seed, epoch and row, broken images survived."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cassava_kit.data.dataset import PLACEHOLDER, ImageDataset, collate, item_seed
from cassava_kit.data.images import ImageError, load_image, read_image
from cassava_kit.data.transforms import train_transform

LOAD = partial(load_image, size=(24, 32))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    for n in range(8):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((80, 60), Image.BICUBIC).save(tmp_path / f"{n}.jpg")
    return sorted(tmp_path.glob("*.jpg"))


def augmented(paths: list[Path], **options) -> ImageDataset:
    return ImageDataset(paths, range(8), read_image, transform=train_transform("strong", (24, 24)), **options)


def pictures(dataset: ImageDataset, **loader) -> torch.Tensor:
    return torch.cat([batch for batch, _, _ in DataLoader(dataset, batch_size=3, collate_fn=collate, **loader)])


def test_rows_come_as_asked(paths):
    dataset = ImageDataset(paths, [4, 3, 2, 1, 0, 1, 2, 3], LOAD)
    assert len(dataset) == 8
    for index in (0, 5, 7):
        picture, label, at = dataset[index]
        assert (label, at) == ([4, 3, 2, 1, 0, 1, 2, 3][index], index)
        assert picture.dtype == torch.uint8
        assert np.array_equal(picture.permute(1, 2, 0), LOAD(paths[index]))


def test_batches_by_either_collate_are_equal(paths):
    dataset = ImageDataset(paths, range(8), LOAD)
    for ours, usual in zip(DataLoader(dataset, 3, collate_fn=collate), DataLoader(dataset, 3), strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, usual, strict=True))
        assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_one_label_for_every_image(paths):
    with pytest.raises(ValueError, match="got 8 images and 7 labels"):
        ImageDataset(paths, range(7), LOAD)


def test_seed_epoch_and_row_decide_a_picture(paths):
    first, same, other = augmented(paths, seed=1), augmented(paths, seed=1), augmented(paths, seed=2)
    _ = [same[index] for index in (3, 3, 1)]  # what was drawn before has no say
    assert torch.equal(pictures(first), pictures(same))
    assert not torch.equal(pictures(first), pictures(other))
    before = pictures(first)
    first.set_epoch(1)
    after = pictures(first)
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    first.set_epoch(0)
    assert torch.equal(pictures(first), before)


def test_seeds_do_not_collide():
    seeds = {item_seed(seed, epoch, index) for seed in range(3) for epoch in range(10) for index in range(100)}
    assert len(seeds) == 3000


def test_workers_give_the_same_pictures_and_hear_of_the_epoch(paths):
    dataset = augmented(paths, seed=1)
    loader = DataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=True, collate_fn=collate)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        alone = augmented(paths, seed=1)
        alone.set_epoch(epoch)
        assert torch.equal(torch.cat([batch for batch, _, _ in loader]), pictures(alone))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_gray_and_remembered(paths, workers):
    paths[0].write_bytes(b"<html>")
    paths[5].write_bytes(paths[5].read_bytes()[:300])
    paths[6].unlink()
    dataset = ImageDataset(paths, range(8), LOAD)
    batch = pictures(dataset, num_workers=workers)
    assert batch.shape == (8, 3, 24, 32)
    assert dataset.failed == {0, 5, 6}
    assert all((batch[n] == PLACEHOLDER).all() for n in dataset.failed)
    assert not (batch[1] == PLACEHOLDER).all()


def test_a_broken_image_is_augmented_like_the_others(paths):
    paths[2].write_bytes(b"")
    dataset = augmented(paths)
    assert pictures(dataset).shape == (8, 3, 24, 24)
    assert dataset.failed == {2}


def test_only_broken_images_are_an_error(paths):
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"none of the 8 images can be decoded .*0\.jpg"):
        ImageDataset(paths, range(8), LOAD)[3]


def test_other_errors_are_not_hidden(paths):
    def load(path: Path) -> np.ndarray:
        if path.name == "3.jpg":
            raise MemoryError("out of memory")
        return LOAD(path)

    with pytest.raises(MemoryError):
        ImageDataset(paths, range(8), load)[3]


def test_gray_pictures_share_no_memory(paths):
    paths[1].write_bytes(b"")
    dataset = ImageDataset(paths, range(8), LOAD)
    dataset[1][0].zero_()
    assert (dataset[1][0] == PLACEHOLDER).all()


def test_a_picture_may_be_written_to_without_reaching_the_source(paths):
    source = np.zeros((4, 4, 3), np.uint8)
    source.flags.writeable = False
    picture, _, _ = ImageDataset(paths[:1], [0], lambda path: source)[0]
    picture += 1
    assert source.sum() == 0


def test_the_data_set_can_be_pickled(paths):
    dataset = pickle.loads(pickle.dumps(augmented(paths, seed=3)))
    assert torch.equal(pictures(dataset), pictures(augmented(paths, seed=3)))
