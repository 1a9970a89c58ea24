"""Augmentation draws as albumentations draws, and does to a picture what its transforms do one by one."""

from __future__ import annotations

import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would look for a newer version on the network

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.augmentations.geometric.functional import d4
from scipy.stats import chisquare, ks_2samp

from cassava_kit.data import augment
from cassava_kit.data.augment import SYMMETRIES, Draw, TrainTransform, apply_draw

N = 1500
STRONG = {
    "crop": A.RandomResizedCrop(size=(96, 64), scale=(0.4, 1.0), ratio=(0.75, 4 / 3)),
    "warp": A.Affine(
        translate_percent=(-0.0625, 0.0625),
        scale=(0.9, 1.1),
        rotate=(-45, 45),
        border_mode=cv2.BORDER_REFLECT_101,
        p=1.0,
    ),
    "colour": A.HueSaturationValue(20, 30, 20, p=1.0),
    "light": A.RandomBrightnessContrast(0.2, 0.2, p=1.0),
    "holes": A.CoarseDropout(
        num_holes_range=(1, 8), hole_height_range=(0.05, 0.12), hole_width_range=(0.05, 0.12), p=1.0
    ),
}


@pytest.fixture(scope="module")
def draws() -> list[Draw]:
    transform = TrainTransform("strong", (96, 64))
    return [transform.draw((120, 160), seed) for seed in range(N)]


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """Blurred noise of all colours, (90, 120, 3) uint8, with some gray, black and white."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 0, 255, cv2.NORM_MINMAX)
    image[:9, :9], image[:9, 9:18], image[:9, 18:27] = 0, 128, 255
    return image


def library(name: str, shape: tuple[int, int], seed: int) -> dict:
    """Return the parameters that albumentations' transform draws for a picture of `shape`."""
    transform = STRONG[name]
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
    image = np.zeros((*shape, 3), np.uint8)
    drawn = transform.get_params() | transform.get_params_dependent_on_data({"shape": image.shape}, {"image": image})
    return {key: value for key, value in drawn.items() if key != "shape"}


@pytest.mark.parametrize("shape", [(120, 160), (40, 400), (400, 40), (97, 96)])
def test_crops_are_the_librarys_draw_by_draw(shape):
    for seed in range(200):
        assert augment.draw_crop(random.Random(seed), shape) == library("crop", shape, seed)["crop_coords"]


@pytest.mark.parametrize("name", ["colour", "light"])
def test_colour_and_light_are_the_librarys_draw_by_draw(name):
    draw = {"colour": augment.draw_colour, "light": augment.draw_light}[name]
    for seed in range(50):
        assert draw(random.Random(seed)) == pytest.approx(tuple(library(name, (96, 64), seed).values()))


def test_warps_are_distributed_as_the_librarys(draws):
    ours = np.array([draw.warp.ravel() for draw in draws if draw.warp is not None])
    theirs = np.array([library("warp", (96, 64), seed)["matrix"][:2].ravel() for seed in range(N)])
    assert [ks_2samp(a, b).pvalue > 1e-3 for a, b in zip(ours.T, theirs.T, strict=True)] == [True] * 6
    # Scales and angle together, which the entries alone do not show.
    for of in (np.linalg.det, lambda m: np.hypot(m[:, 0, 0], m[:, 1, 0]), lambda m: np.hypot(m[:, 0, 1], m[:, 1, 1])):
        a, b = (of(m.reshape(-1, 2, 3)[:, :, :2]) for m in (ours, theirs))
        assert ks_2samp(a, b).pvalue > 1e-3


def test_holes_are_distributed_as_the_librarys(draws):
    ours = [np.array(draw.holes) for draw in draws if draw.holes]
    theirs = [library("holes", (96, 64), seed)["holes"] for seed in range(N)]
    assert ks_2samp(list(map(len, ours)), list(map(len, theirs))).pvalue > 1e-3
    a, b = (np.concatenate(holes) for holes in (ours, theirs))
    for of in (lambda h: h[:, 0], lambda h: h[:, 1], lambda h: h[:, 2] - h[:, 0], lambda h: h[:, 3] - h[:, 1]):
        assert ks_2samp(of(a), of(b)).pvalue > 1e-3
        assert set(of(a)) == set(of(b))  # also the edges of the picture and the smallest and largest hole


def test_each_change_has_probability_one_half_and_none_depends_on_another(draws):
    made = np.array([[bool(d.holes), *(part is not None for part in (d.warp, d.colour, d.light))] for d in draws])
    assert np.abs(made.mean(axis=0) - 0.5).max() < 0.05  # 3.9 standard errors
    assert np.abs(np.corrcoef(made.T) - np.eye(4)).max() < 0.1
    counts = [sum(draw.symmetry == name for draw in draws) for name in SYMMETRIES]
    assert chisquare(counts).pvalue > 1e-3


def test_light_has_crops_and_symmetries_alone():
    for seed in range(20):
        draw = TrainTransform("light", (32, 48)).draw((60, 80), seed)
        assert (draw.warp, draw.colour, draw.light, draw.holes) == (None, None, None, ())


@pytest.mark.parametrize("symmetry", list(SYMMETRIES))
def test_symmetries_are_the_librarys(photo, symmetry):
    assert np.array_equal(augment.symmetric(photo, symmetry), d4(photo, symmetry))


@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("symmetry", list(SYMMETRIES))
def test_a_crop_lies_where_the_library_cuts_it(photo, symmetry, warped):
    """Symmetry, then a crop that is not resized: pixel by pixel what indexing gives, also with a warp by nothing."""
    turned = d4(photo, symmetry)
    crop = (7, 11, 7 + 40, 11 + 56)
    draw = Draw(symmetry, crop, np.eye(2, 3) if warped else None)
    assert np.array_equal(apply_draw(photo, draw, (56, 40)), turned[11 : 11 + 56, 7 : 7 + 40])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (30, 20)])
def test_one_warp_is_the_librarys_transforms_one_by_one(size):
    """On a ramp, which interpolation keeps: at most three levels apart and .4 on the mean, where nothing is mirrored.

    Half a pixel beside the right place is more than .4. The last size halves each crop first.
    """
    y, x = np.mgrid[0:90, 0:120]
    ramp = np.stack([20 + x * 1.8, 20 + y * 2.3, 120 - x * 0.7 + y * 0.9], axis=2).round().astype(np.uint8)
    seen = 0.0
    for seed in range(24):
        symmetry = list(SYMMETRIES)[seed % 8]
        turned = d4(ramp, symmetry)
        left, top, right, bottom = library("crop", turned.shape[:2], seed)["crop_coords"]
        # Of an odd side halving drops the last line, which is the first one where the symmetry comes later.
        right, bottom = right - (right - left) % 4, bottom - (bottom - top) % 4
        crop = (left, top, right, bottom)
        resized = augment.resize_crop(turned[top:bottom, left:right], size)
        drawn = library("warp", size, seed)
        theirs = STRONG["warp"].apply(resized, drawn["matrix"], drawn["output_shape"])
        ours = apply_draw(ramp, Draw(symmetry, crop, drawn["matrix"][:2]), size)
        middle = np.zeros(size, np.uint8)
        middle[2:-2, 2:-2] = 1
        inside = cv2.warpAffine(middle, drawn["matrix"][:2], size[::-1], flags=cv2.INTER_NEAREST) == 1
        difference = (ours.astype(int) - theirs)[inside]
        assert np.abs(difference).max() <= 3 and np.abs(difference.mean(axis=0)).max() < 0.4
        seen += inside.mean() / 24
    assert seen > 0.6


def test_one_warp_of_a_photograph_is_near_the_librarys(photo):
    """The library interpolates twice, which blurs: mean difference below one level for smooth content."""
    smooth = cv2.GaussianBlur(photo, (0, 0), 3)
    differences = []
    for seed in range(24):
        left, top, right, bottom = crop = library("crop", (90, 120), seed)["crop_coords"]
        drawn = library("warp", (64, 64), seed)
        resized = augment.resize_crop(smooth[top:bottom, left:right], (64, 64))
        theirs = STRONG["warp"].apply(resized, drawn["matrix"], drawn["output_shape"]).astype(int)
        differences.append(np.abs(apply_draw(smooth, Draw("e", crop, drawn["matrix"][:2]), (64, 64)) - theirs).mean())
    assert np.mean(differences) < 1


def test_colours_are_the_librarys(photo):
    """One value in a hundred differs by more than two levels: hues are rounded, and mirrored for a shift down."""
    for seed in range(30):
        drawn = library("colour", photo.shape[:2], seed)
        theirs = STRONG["colour"].apply(photo, **drawn).astype(int)
        difference = np.abs(augment.shift_colour(photo, *drawn.values()) - theirs)
        assert (difference > 2).mean() < 0.01 and difference.mean() < 0.2
        assert difference[:9, :27].max() == 0  # what has no colour gets none


def test_light_is_the_librarys(photo):
    for seed in range(30):
        drawn = library("light", photo.shape[:2], seed)
        theirs = STRONG["light"].apply(photo, **drawn).astype(int)
        difference = np.abs(augment.change_light(photo, *drawn.values()) - theirs)
        assert difference.max() <= 1 and difference.mean() < 0.02  # rounded instead of cut off, half would differ


def test_holes_are_black_and_nothing_else_changes(photo):
    draw = Draw("e", (0, 0, 120, 90), holes=((3, 5, 20, 11), (100, 80, 120, 90)))
    expected = photo.copy()
    expected[5:11, 3:20] = expected[80:90, 100:120] = 0
    assert np.array_equal(apply_draw(photo, draw, (90, 120)), expected)


def test_what_lies_beyond_the_crop_is_mirrored_not_read(photo):
    """Around the crop the image is white; a warp by a shift shows the crop's own first columns again."""
    image = np.full_like(photo, 255)
    image[20:60, 30:80] = photo[20:60, 30:80]
    shift = np.array([[1.0, 0, 10], [0, 1, 0]])
    picture = apply_draw(image, Draw("e", (30, 20, 80, 60), shift), (40, 50))
    part = photo[20:60, 30:80]
    assert np.array_equal(picture, np.concatenate([part[:, 10:0:-1], part[:, :40]], axis=1))


def test_a_picture_of_a_cache_is_read_without_being_written_to(photo):
    fixed = photo.copy()
    fixed.flags.writeable = False
    transform = TrainTransform("strong", (90, 120))
    assert all(transform(fixed, seed=seed).flags.writeable for seed in range(30))
    whole = apply_draw(fixed, Draw("e", (0, 0, 120, 90), holes=((0, 0, 5, 5),)), (90, 120))
    assert not whole[:5, :5].any() and np.array_equal(fixed, photo)
