"""The loader: every image once an epoch, the same views for the same seed, broken files stood in for."""

import cv2
import numpy as np
import pytest
import torch

from cassava_kit.training.loaders import EpochSampler
from cassava_kit.training.ssl.file_views import file_transform
from cassava_kit.training.ssl.loader import FileViews, PretrainImages, StoredPixels, make_loader, make_store
from cassava_kit.training.ssl.methods import configure
from cassava_kit.training.ssl.run_folder import whole_images


@pytest.fixture
def images(tmp_path):
    """Seven small photographs, each of one colour level of its own."""
    paths = []
    for k in range(7):
        path = tmp_path / f"{k}.png"
        cv2.imwrite(str(path), np.full((12, 16, 3), 30 * k, dtype=np.uint8))
        paths.append(path)
    return paths


def dataset_of(n):
    """An empty data set of n images, for a sampler."""
    return FileViews([f"{k}.png" for k in range(n)], None, seed=0)


def test_an_epoch_is_every_image_once_in_another_order():
    dataset = dataset_of(50)
    sampler = EpochSampler(dataset, 3)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert dataset.epoch == 1, "views follow the epoch"
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert list(sampler) == second, "the same epoch again is the same order"
    assert list(EpochSampler(dataset, 4)) != first


def test_processes_share_the_epoch_without_overlap(monkeypatch):
    whole = list(EpochSampler(dataset_of(51), 3))[:50]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("cassava_kit.training.loaders.process_rank", lambda rank=rank: (rank, 2))
        parts.append(list(EpochSampler(dataset_of(51), 3)))
    assert [len(part) for part in parts] == [25, 25]
    assert [index for pair in zip(*parts, strict=True) for index in pair] == whole


def test_the_store_holds_the_evaluation_pixels(images, tmp_path):
    from cassava_kit.data.images import load_image

    make_store(images, (6, 8), tmp_path / "pixels.npy")
    dataset = StoredPixels(tmp_path / "pixels.npy")
    assert len(dataset) == 7
    batch = dataset.__getitems__([3, 5])
    assert batch.shape == (2, 3, 6, 8) and batch.dtype == torch.uint8
    for row, index in zip(batch, (3, 5), strict=True):
        assert np.array_equal(row.numpy().transpose(1, 2, 0), load_image(images[index], (6, 8)))
    assert torch.equal(dataset[4], dataset.__getitems__([4])[0])


def test_a_broken_image_is_replaced_by_the_next_and_named(images, tmp_path):
    images[2].write_bytes(images[2].read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"2\.png"):
        make_store(images, (6, 8), tmp_path / "pixels.npy")
    dataset = StoredPixels(tmp_path / "pixels.npy")
    assert torch.equal(dataset[2], dataset[3])
    assert whole_images(images) == [path for path in images if path.name != "2.png"]
    images[6].write_bytes(b"")
    with pytest.warns(UserWarning, match=r"6\.png"):
        make_store(images, (6, 8), tmp_path / "again.npy")
    assert torch.equal(StoredPixels(tmp_path / "again.npy")[6], dataset[0])


def test_missing_and_hopeless_files_are_refused(images, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        whole_images([*images, tmp_path / "nowhere.jpg"])
    (tmp_path / "text.jpg").write_text("hello")
    with pytest.raises(ValueError, match="none of the 1 files"):
        whole_images([tmp_path / "text.jpg"])


def test_views_from_files_depend_on_seed_epoch_and_image_alone(images):
    cv2.imwrite(str(images[3]), np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8))
    transform = file_transform(configure("byol", views=({"size": 8}, {"size": 8})))
    dataset = FileViews(images, transform, seed=5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = dataset[3]
    assert torch.equal(torch.random.get_rng_state(), before[0]) and np.array_equal(np.random.get_state()[1], before[1])
    torch.rand(7), np.random.random(3)
    again, other = dataset[3], FileViews(images, transform, seed=6)[3]
    dataset.set_epoch(1)
    later = dataset[3]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0]) and not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("store_size", [None, (8, 10)])
def test_batches_have_the_form_that_the_module_takes(images, tmp_path, store_size):
    config = configure("byol", views=({"size": 8}, {"size": 8}), batch_size=3, store_size=store_size)
    data = PretrainImages(config, images, tmp_path / "pixels.npy")
    data.prepare_data()
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    if store_size:
        assert batches[0].shape == (3, 3, 8, 10) and batches[0].dtype == torch.uint8
    else:
        assert [view.shape for view in batches[0]] == [(3, 3, 8, 8)] * 2


def test_workers_cut_the_same_views(images):
    config = configure("byol", views=({"size": 8}, {"size": 8}), batch_size=3, num_workers=2)
    made = []
    for workers in (0, 2):
        changed = config.model_copy(update={"num_workers": workers})
        loader = make_loader(FileViews(images, file_transform(changed), seed=5), changed)
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            made.append([view for batch in loader for view in batch])
    assert all(torch.equal(a, b) for a, b in zip(made[0] + made[1], made[2] + made[3], strict=True))
    assert not torch.equal(made[2][0], made[3][0])


def test_the_order_follows_the_runs_seed(images, tmp_path):
    make_store(images, (8, 10), tmp_path / "pixels.npy")
    orders = []
    for seed in (1, 1, 2):
        config = configure("byol", views=({"size": 8}, {"size": 8}), batch_size=3, store_size=(8, 10), seed=seed)
        loader = make_loader(StoredPixels(tmp_path / "pixels.npy"), config)
        orders.append([int(image[0, 0, 0]) for batch in loader for image in batch])
    assert len(orders[0]) == 6 and orders[0] == orders[1] != orders[2]
