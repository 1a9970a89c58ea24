"""Augmentation: right shapes, seeds that decide, and no argument that is silently ignored."""

from __future__ import annotations

import warnings

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


def test_a_seed_does_not_tie_transforms_together(image):
    import albumentations as A

    transform = train_transform("light", (60, 80))
    transform.transforms = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
    seen = {transform(image, seed=seed).tobytes() for seed in range(40)}
    turns = (image, image[::-1], image[:, ::-1], image[::-1, ::-1])
    assert seen == {np.ascontiguousarray(turn).tobytes() for turn in turns}


def test_without_a_seed_pictures_vary(image):
    transform = train_transform("light", (32, 32))
    assert len({transform(image).tobytes() for _ in range(8)}) > 1


def test_light_leaves_colours_alone_and_strong_does_not():
    flat = np.full((60, 80, 3), (40, 120, 200), np.uint8)
    light, strong = train_transform("light", (32, 32)), train_transform("strong", (32, 32))
    assert all((light(flat, seed=seed) == flat[0, 0]).all() for seed in range(20))
    assert not all((strong(flat, seed=seed) == flat[0, 0]).all() for seed in range(20))


def test_light_reaches_all_eight_symmetries():
    corner = np.zeros((64, 64, 3), np.uint8)
    corner[:32, :24] = 255
    corner[:12, :32] = 128
    transform = train_transform("light", (64, 64))
    transform.transforms[0].p = 0.0  # without the crop only the symmetries are left
    seen = {transform(corner, seed=seed).tobytes() for seed in range(100)}
    turns = [np.rot90(side, k) for side in (corner, corner[:, ::-1]) for k in range(4)]
    assert seen == {np.ascontiguousarray(turn).tobytes() for turn in turns}


@pytest.mark.parametrize("element", ["e", "r90", "r180", "r270", "v", "h", "t", "hvt"])
def test_symmetries_are_the_librarys(image, element):
    from albumentations.augmentations.geometric.functional import d4

    from cassava_kit.data.augment import symmetry

    assert np.array_equal(symmetry(image, element), d4(image, element))


def test_a_crops_pixels_are_the_librarys_where_nothing_shrinks(image):
    import albumentations as A

    from cassava_kit.data.augment import CropResize, make_transform

    options = {"size": (64, 64), "scale": (0.4, 1.0), "p": 1.0}
    ours, theirs = make_transform(CropResize, **options), make_transform(A.RandomResizedCrop, **options)
    for seed in range(5):
        ours.set_random_seed(seed)
        theirs.set_random_seed(seed)
        assert np.array_equal(ours(image=image)["image"], theirs(image=image)["image"])


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


def test_an_argument_the_library_would_ignore_is_an_error():
    import albumentations as A

    from cassava_kit.data.augment import make_transform

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        A.CoarseDropout(max_holes=8)  # the trap: the library only warns and uses its defaults
    for transform, argument in ((A.CoarseDropout, "max_holes"), (A.GaussNoise, "var_limit"), (A.PadIfNeeded, "value")):
        with pytest.raises(ValueError, match=f"{transform.__name__}: .*{argument}"):
            make_transform(transform, **{argument: 3})
    with pytest.raises(ValueError, match="RandomResizedCrop"):
        make_transform(A.RandomResizedCrop, height=32, width=32)
    assert make_transform(A.CoarseDropout, num_holes_range=(1, 8)).num_holes_range == (1, 8)


def test_the_pipelines_are_built_without_a_warning():
    from cassava_kit.data.augment import pipeline

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(pipeline(name, (32, 32))) for name in AUGMENTATIONS] == [0, 2, 6]


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
