"""Views: cut in batches like torchvision's, by lightly's transforms from files, and never the same twice."""

import colorsys

import numpy as np
import pytest
import torch
from lightly.transforms import BYOLTransform, MoCoV2Transform, SimCLRTransform, SwaVTransform
from lightly.transforms.multi_view_transform import MultiViewTransform
from lightly.transforms.torchvision_v2_compatibility import torchvision_transforms as T
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as tv

from cassava_kit.training.ssl.batch_views import (
    colour_maps,
    crop,
    cut_views,
    draw_boxes,
    draw_view,
    gaussian_blur,
    hue_matrices,
    swap_backgrounds,
)
from cassava_kit.training.ssl.file_views import file_transform
from cassava_kit.training.ssl.methods import configure
from cassava_kit.training.ssl.view import ViewConfig

PLAIN = {"jitter_prob": 0, "grayscale_prob": 0, "blur_prob": 0, "hflip_prob": 0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=4, height=48, width=64):
    """Smooth random pictures in 0..1."""
    coarse = torch.rand(n, 3, 6, 8, generator=generator(9))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def test_the_whole_image_and_a_box_are_torchvisions_crops():
    images = pictures()
    box = torch.tensor([[0.5, 0.5, 0.5, 0.5]]).expand(4, 4)
    ones = torch.ones(4, 2)
    whole = tv.resize(images, [32, 32], antialias=False)
    assert torch.allclose(crop(images, box, 32, flips=ones), whole, atol=1e-5)
    assert torch.allclose(crop(images, box, 32, flips=ones * torch.tensor([-1.0, 1.0])), whole.flip(3), atol=1e-5)
    assert torch.allclose(crop(images, box, 32, flips=ones * torch.tensor([1.0, -1.0])), whole.flip(2), atol=1e-5)
    left, top, width, height = 16, 12, 32, 24
    part = torch.tensor([[(left + width / 2) / 64, (top + height / 2) / 48, width / 2 / 64, height / 2 / 48]]).expand(
        4, 4
    )
    expected = tv.resized_crop(images, top, left, height, width, [20, 20], antialias=False)
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))  # at the rim torchvision does not see beyond the box
    assert torch.allclose(crop(images, part, 20, flips=ones)[inner], expected[inner], atol=1e-4)


def test_a_strong_reduction_does_not_alias():
    stripes = (torch.arange(256) % 2).float().expand(1, 3, 256, 256)
    box = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    reduced = crop(stripes, box, 32, flips=torch.ones(1, 2))
    assert (reduced - 0.5).abs().max() < 0.05


def test_boxes_have_the_area_and_lie_inside():
    boxes = draw_boxes(4000, (480, 640), ViewConfig(scale=(0.2, 0.5)), generator())
    centre, half = boxes[:, :2], boxes[:, 2:]
    assert bool((centre - half >= -1e-6).all() and (centre + half <= 1 + 1e-6).all())
    area = (2 * half).prod(dim=1)
    assert 0.19 < area.min() < 0.21 and 0.49 < area.max() <= 0.5 + 1e-6
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    aspect = half[:, 0] * 640 / (half[:, 1] * 480)
    assert 0.74 < aspect.min() < 0.77 and 1.31 < aspect.max() < 1.34
    assert centre.std(dim=0).min() > 0.09
    near = draw_boxes(4000, (480, 640), ViewConfig(scale=(0.2, 0.5), spread=0.5), generator())[:, :2]
    assert torch.allclose(near - 0.5, (centre - 0.5) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "operation"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_each_colour_operation_is_torchvisions(field, operation):
    images = pictures(n=1) * 0.4 + 0.3  # far from 0 and 1, where torchvision clamps and we do not yet
    amounts = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0} | {field: 0.5}
    view = ViewConfig(size=8, jitter_prob=1, grayscale_prob=0, **amounts)
    matrix, offset = colour_maps(images.mean(dim=(2, 3)), view, generator(3))
    ours = torch.einsum("nij,njhw->nihw", matrix, images) + offset[:, :, None, None]
    factors = torch.linspace(0.5, 1.5, 4001)
    probe = [float((operation(images, float(f)) - ours).abs().max()) for f in factors[::50]]
    best = float(factors[::50][int(np.argmin(probe))])
    fine = [float((operation(images, f) - ours).abs().max()) for f in np.linspace(best - 0.02, best + 0.02, 201)]
    assert min(fine) < 2e-3
    assert abs(best - 1) > 0.02, "the draw must move something for the test to mean anything"


def test_hue_turns_the_circle_and_keeps_the_luminance():
    red = torch.tensor([1.0, 0.0, 0.0])
    matrices = hue_matrices(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0]))
    turned = matrices @ red
    assert torch.allclose(matrices[0], torch.eye(3), atol=1e-4)
    assert torch.allclose(matrices[3], torch.eye(3), atol=1e-4)
    gray = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(turned @ gray, torch.full((4,), float(red @ gray)), atol=1e-3)
    hues = [colorsys.rgb_to_hsv(*(row - row.min()).tolist())[0] for row in turned]
    assert len({round(hue, 1) % 1 for hue in hues}) == 3
    assert torch.allclose(matrices @ torch.ones(3), torch.ones(4, 3), atol=1e-3), "gray stays gray"


def test_grayscale_and_no_jitter():
    images = pictures()
    gray = draw_view(images, ViewConfig(size=16, **PLAIN | {"grayscale_prob": 1}), generator())
    assert (gray.amax(dim=1) - gray.amin(dim=1)).max() < 1e-5
    plain = draw_view(images, ViewConfig(size=16, scale=(1, 1), **PLAIN), generator())
    assert plain.mean() == pytest.approx(float(images.mean()), abs=0.02)


def test_solarize_inverts_what_is_bright():
    images = torch.full((3, 3, 8, 8), 0.8)
    images[1] = 0.3
    out = draw_view(images, ViewConfig(size=8, scale=(1, 1), **PLAIN | {"solarize_prob": 1}), generator())
    assert torch.allclose(out[:, 0, 0, 0], torch.tensor([0.2, 0.3, 0.2]), atol=1e-6)


def test_blur_is_torchvisions():
    images = torch.rand(2, 3, 24, 24, generator=generator())
    ours = gaussian_blur(images, torch.tensor([0.8, 2.0]))
    for row, sigma in enumerate((0.8, 2.0)):
        theirs = tv.gaussian_blur(images[row], [13, 13], [sigma, sigma])
        assert torch.allclose(ours[row, :, 6:-6, 6:-6], theirs[:, 6:-6, 6:-6], atol=2e-3)


def test_views_differ_between_themselves_images_and_seeds_and_repeat_for_a_seed():
    images = (pictures(n=6) * 255).to(torch.uint8)
    views = (ViewConfig(size=16, count=2), ViewConfig(size=8, count=3, scale=(0.1, 0.3)))
    arguments = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    made = cut_views(images, views, **arguments, generator=generator(1))
    assert [tuple(view.shape) for view in made] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 3
    assert (made[0] - made[1]).abs().mean() > 0.1
    again = cut_views(images, views, **arguments, generator=generator(1))
    other = cut_views(images, views, **arguments, generator=generator(2))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert (made[0] - other[0]).abs().mean() > 0.1
    same = cut_views(images[:1].expand(6, -1, -1, -1), views, **arguments, generator=generator(1))[0]
    assert (same[0] - same[1]).abs().mean() > 0.1, "each image has its own draw"


def test_views_are_normalised():
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.5)
    out = cut_views(images, (ViewConfig(size=8, **PLAIN),), mean=mean, std=std, generator=generator())[0]
    assert torch.allclose(out[0, :, 0, 0], torch.tensor([3.0, 2.0, 0.8]), atol=1e-5)


def leaves(transform):
    """The single transforms of a composed one, in order, without those that change nothing."""
    inner = getattr(transform, "transform", None)
    if isinstance(inner, T.Compose):
        return leaves(inner)
    if isinstance(transform, (T.Compose, MultiViewTransform)):
        return [leaf for part in transform.transforms for leaf in leaves(part)]
    return [] if getattr(transform, "prob", None) == 0 or repr(transform) == "ColorJitter()" else [transform]


def settings_of(transform):
    """What a composed transform is made of, as text."""
    settings = []
    for leaf in leaves(transform):
        own = {
            k: v for k, v in vars(leaf).items() if not k.startswith("_") and isinstance(v, (int, float, tuple, list))
        }
        settings.append(
            repr((type(leaf).__name__, own)).replace("2.0)", "2)") + repr(leaf) * isinstance(leaf, nn.Module)
        )
    return settings


@pytest.mark.parametrize(
    ("method", "lightlys"),
    [("simclr", SimCLRTransform), ("byol", BYOLTransform), ("moco", MoCoV2Transform), ("swav", SwaVTransform)],
)
def test_the_published_views_are_lightlys_defaults(method, lightlys):
    theirs = settings_of(lightlys())
    assert settings_of(file_transform(configure(method))) == theirs
    assert sum("RandomResizedCrop" in text for text in theirs) == (8 if method == "swav" else 2)


def test_a_view_is_lightlys_pixel_by_pixel():
    image = Image.fromarray((np.random.default_rng(0).random((60, 80, 3)) * 255).astype(np.uint8))
    first = []
    for transform in (file_transform(configure("simclr")), SimCLRTransform()):
        torch.manual_seed(3)
        np.random.seed(3)
        first.append(transform(image)[0])
    assert torch.equal(*first)


def test_file_views_have_the_sizes_asked_for():
    image = Image.fromarray((np.random.default_rng(0).random((60, 80, 3)) * 255).astype(np.uint8))
    views = file_transform(configure("swav"))(image)
    assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 6
    assert not torch.equal(views[0], views[1])


def test_any_method_may_solarize_its_file_views():
    image = Image.fromarray(np.full((32, 32, 3), 204, np.uint8))
    view = {**PLAIN, "size": 8, "count": 2, "solarize_prob": 1, "scale": (0.2, 0.5)}
    config = configure("simclr", views=(view,), mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(file_transform(config)(image)[0], torch.full((3, 8, 8), 0.2), atol=1e-6)


def test_what_lightlys_views_cannot_do_is_said():
    for field in ({"spread": 0.5}, {"channel_gain": 0.5}, {"background_swap_prob": 0.5}):
        with pytest.raises(ValueError, match="no channel_gain, spread or background_swap_prob"):
            file_transform(configure("simclr", views=({"count": 2, **field},)))


def test_channel_gains_scale_each_channel_by_itself():
    images = torch.full((2000, 3, 2, 2), 0.4)
    out = draw_view(images, ViewConfig(size=8, scale=(1, 1), channel_gain=0.5, **PLAIN), generator())[:, :, 0, 0]
    assert 0.2 <= float(out.min()) < 0.22 and 0.58 < float(out.max()) <= 0.6
    assert abs(float(torch.corrcoef(out.T)[0, 1])) < 0.1


def test_backgrounds_are_swapped_and_the_middle_stays():
    levels = torch.linspace(0.1, 0.9, 9)
    images = levels[:, None, None, None].expand(9, 3, 40, 60).contiguous()
    swapped = swap_backgrounds(images, 1.0, generator())
    assert torch.allclose(swapped[:, :, 20, 30], images[:, :, 20, 30], atol=0.01)
    corners = swapped[:, 0, 0, 0]
    assert bool(((corners - levels).abs() > 0.05).all()), "every corner is another image's"
    assert sorted(corners.tolist()) == pytest.approx(levels.tolist(), abs=0.01)
    assert torch.allclose(swap_backgrounds(images, 0.0, generator()), images)
    some = swap_backgrounds(images.repeat(100, 1, 1, 1), 0.5, generator())[:, 0, 0, 0]
    assert 0.35 < float(((some - levels.repeat(100)).abs() > 0.05).float().mean()) < 0.55
