"""Augmentation by name: right shapes, seeds that decide, pixels that are not written to; and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cassava_kit.data.images import resize
from cassava_kit.data.transforms import AUGMENTATIONS, normalize, train_transform


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A gradient with no symmetry: every flip and turn shows. (60, 80, 3) uint8."""
    y, x = np.mgrid[0:60, 0:80]
    return np.stack([y * 4, x * 3, (x + y) // 2], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (96, 96)])
def test_pictures_have_the_asked_size(image, name, size):
    transform = train_transform(name, size)
    for seed in range(8):
        picture = transform(image, seed=seed)
        assert picture.shape == (*size, 3)
        assert picture.dtype == np.uint8
        assert picture.flags.c_contiguous


def test_none_gives_the_evaluation_pixels(image):
    assert np.array_equal(train_transform("none", (32, 48))(image, seed=1), resize(image, (32, 48)))


@pytest.mark.parametrize("name", ["light", "strong"])
def test_the_seed_decides_the_picture(image, name):
    transform, other = train_transform(name, (32, 32)), train_transform(name, (32, 32))
    first = [transform(image, seed=seed) for seed in range(12)]
    again = [other(image, seed=seed) for seed in reversed(range(12))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({picture.tobytes() for picture in first}) == 12


@pytest.mark.parametrize("name", ["light", "strong"])
def test_global_random_states_have_no_say(image, name):
    transform = train_transform(name, (32, 32))
    np.random.seed(0)
    first = transform(image, seed=7)
    np.random.seed(1)
    torch.manual_seed(1)
    assert np.array_equal(transform(image, seed=7), first)


def test_without_a_seed_pictures_vary(image):
    transform = train_transform("light", (32, 32))
    assert len({transform(image).tobytes() for _ in range(8)}) > 1


def test_light_leaves_colours_alone_and_strong_does_not():
    flat = np.full((60, 80, 3), (40, 120, 200), np.uint8)
    light, strong = train_transform("light", (32, 32)), train_transform("strong", (32, 32))
    assert all((light(flat, seed=seed) == flat[0, 0]).all() for seed in range(20))
    assert not all((strong(flat, seed=seed) == flat[0, 0]).all() for seed in range(20))


@pytest.mark.parametrize("shrink", [(2.3, 2.3), (3.5, 3.5), (4.1, 4.1), (1.0, 3.5), (2.6, 1.2)])
def test_a_shrunk_crop_does_not_alias(shrink):
    import cv2

    from cassava_kit.data.augment import resize_crop

    height, width = (round(64 * factor) for factor in shrink)
    texture = np.random.default_rng(0).normal(128, 50, (height, width, 3)).clip(0, 255).astype(np.uint8)
    exact = resize(texture, (64, 64)).astype(float)
    error, of_bilinear = (
        np.abs(picture - exact).mean() for picture in (resize_crop(texture, (64, 64)), cv2.resize(texture, (64, 64)))
    )
    assert error < 0.65 * of_bilinear


def test_halving_takes_the_mean_of_four_pixels(image):
    from cassava_kit.data.augment import resize_crop

    means = image.reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize_crop(image, (30, 40)) - means).max() <= 0.5


def test_the_originals_image_is_not_written_to(image):
    before = image.copy()
    for name in AUGMENTATIONS:
        for seed in range(5):
            train_transform(name, (60, 80))(image, seed=seed)
    assert np.array_equal(image, before)


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="augmentation must be one of none, light, strong, got 'heavy'"):
        train_transform("heavy", (32, 32))


def test_normalize_equals_torchvision():
    from torchvision.transforms.v2.functional import normalize as reference
    from torchvision.transforms.v2.functional import to_dtype

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batch = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8)
    before = batch.clone()
    theirs = reference(to_dtype(batch, torch.float32, scale=True), list(mean), list(std))
    for layout in (torch.contiguous_format, torch.channels_last):
        ours = normalize(batch.contiguous(memory_format=layout), mean, std)
        assert ours.dtype == torch.float32
        assert ours.is_contiguous(memory_format=layout)
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(normalize(batch[:, :, ::2, ::3], mean, std), theirs[:, :, ::2, ::3])
    assert torch.equal(batch, before)


def test_crops_take_forty_to_a_hundred_percent_of_the_image():
    """Red grows from left to right, green from top to bottom: their ranges are a crop's shares of both sides."""
    y, x = np.mgrid[0:192, 0:256]
    image = np.stack([x, y * 255 // 191, np.zeros_like(x)], axis=2).astype(np.uint8)
    crop = train_transform("light", (96, 96))
    spans = np.array([np.ptp(crop(image, seed=seed), axis=(0, 1))[:2] / 255 for seed in range(150)])
    shares, aspects = spans.prod(axis=1), spans[:, 0] * 256 / (spans[:, 1] * 192)
    assert 0.36 < shares.min() < 0.5 and shares.max() > 0.9
    assert 0.7 < aspects.min() < 0.85 and 1.2 < aspects.max() < 1.4
