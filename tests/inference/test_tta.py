"""Every view equals the loop one would write by hand, and the mean is over probabilities."""

import numpy as np
import pytest
import torch
import ttach
from torch import nn
from torch.nn import functional as F

from cassava_kit.errors import UserError
from cassava_kit.inference.tta import PRESETS, Transpose, View, make_views, predict_views


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    # Position counts (the last layer sees where), so that every symmetry changes the answer.
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


def average_views(model: nn.Module, images: torch.Tensor, views: tuple[View, ...]) -> torch.Tensor:
    return sum(model(view(images)).softmax(dim=1) for view in views) / len(views)


def zoomed(x: torch.Tensor) -> torch.Tensor:
    n = x.shape[2]
    crop = round(n * 0.8)
    top = (n - crop) // 2
    inside = x[:, :, top : top + crop, top : top + crop]
    return F.interpolate(inside, size=(n, n), mode="bilinear", align_corners=False)


def rotations(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.rot90(x, k, (2, 3)) for k in range(4)]


def by_hand(views: str, x: torch.Tensor) -> list[torch.Tensor]:
    flips = [x, x.flip(3), x.flip(2), x.flip(2).flip(3)]
    eight = [*rotations(x), *rotations(x.flip(3))]
    return {"none": [x], "hflip": flips[:2], "flips": flips, "d4": eight, "d4+zoom": [*eight, zoomed(x)]}[views]


@torch.no_grad()
def mean_by_hand(model: nn.Module, images: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([model(image).softmax(1) for image in images]).mean(0)


@pytest.mark.parametrize("views", ["none", "hflip", "flips", "d4", "d4+zoom"])
def test_presets_equal_the_loop_by_hand(model: nn.Module, views: str) -> None:
    x = torch.rand(4, 3, 40, 40)
    expected = by_hand(views, x)
    found = make_views(views)
    assert len(found) == len(expected)
    with torch.no_grad():
        answer = average_views(model, x, found)
    assert torch.allclose(answer, mean_by_hand(model, expected), atol=1e-6)
    assert torch.allclose(answer.sum(1), torch.ones(4))


ALIASES = {
    "flip": (ttach.aliases.flip_transform(), 4),
    "hflip": (ttach.aliases.hflip_transform(), 2),
    "vflip": (ttach.aliases.vlip_transform(), 2),
    "d4": (ttach.aliases.d4_transform(), 8),
    "multiscale": (ttach.aliases.multiscale_transform([0.75, 1.25]), 3),
    "five_crop": (ttach.aliases.five_crop_transform(24, 24), 5),
    "ten_crop": (ttach.aliases.ten_crop_transform(24, 24), 10),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_ttach_aliases_equal_the_loop_by_hand(model: nn.Module, alias: str) -> None:
    composed, n = ALIASES[alias]
    x = torch.rand(4, 3, 40, 40)
    own = [chain.augment_image(x) for chain in composed]
    assert len(own) == n
    # Crops have no plain view of their own: it is added.
    expected = own if any(torch.equal(image, x) for image in own if image.shape == x.shape) else [x, *own]
    with torch.no_grad():
        answer = average_views(model, x, make_views(composed))
    assert torch.allclose(answer, mean_by_hand(model, expected), atol=1e-6)


@pytest.mark.parametrize("views", ["none", "flips", "d4", "d4+zoom", *(a for a, _ in ALIASES.values())])
def test_the_plain_view_leads_and_names_are_distinct(views: object) -> None:
    x = torch.rand(1, 3, 40, 40)
    found = make_views(views)
    assert found[0].name == "plain"
    assert torch.equal(found[0](x), x)
    assert len({view.name for view in found}) == len(found)


def test_the_eight_are_eight_different_pictures() -> None:
    x = torch.rand(1, 3, 11, 11)
    pictures = [view(x) for view in make_views("d4")]
    assert sum(torch.equal(a, b) for a in pictures for b in pictures) == 8


def test_an_oblong_input_keeps_its_shape() -> None:
    x = torch.rand(1, 3, 20, 30)
    found = make_views("d4+zoom", size=(20, 30))
    assert [view.name for view in found] == ["plain", "vflip", "hflip", "hflip+vflip", "zoom"]
    assert all(view(x).shape == x.shape for view in found)


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none, hflip, flips, d4, d4\+zoom.*got 'all'"):
        make_views("all")


def test_our_transform_is_one_of_ttachs() -> None:
    x = torch.rand(2, 3, 8, 8)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    wrapped = ttach.ClassificationTTAWrapper(model, ttach.Compose([Transpose(), ttach.HorizontalFlip()]))
    with torch.no_grad():
        by_hand = torch.stack([model(v) for v in (x, x.flip(3), x.mT, x.mT.flip(3))]).mean(0)
        assert torch.allclose(wrapped(x), by_hand, atol=1e-6)


@pytest.mark.parametrize("views", list(PRESETS))
def test_a_models_mean_over_views_is_the_loop_by_hand(model: nn.Module, views: str) -> None:
    x = torch.rand(4, 3, 40, 40)
    model.train()
    answer = predict_views(model, x, views)
    assert answer.dtype == np.float32 and model.training  # the mode it came in
    model.eval()
    assert np.abs(answer - mean_by_hand(model, by_hand(views, x)).numpy()).max() < 1e-6


def test_dropout_is_off_while_views_are_averaged() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 3)).train()
    x = torch.rand(2, 3, 4, 4)
    assert np.array_equal(predict_views(model, x), predict_views(model, x))


def test_what_is_no_batch_or_gives_no_logits_is_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"batch \(N, C, H, W\), got shape \(3, 8, 8\)"):
        predict_views(model, torch.rand(3, 8, 8))
    with pytest.raises(UserError, match=r"logits of shape \(2, K\) for each view, got"):
        predict_views(nn.Identity(), torch.rand(2, 3, 8, 8))


def test_arrays_are_batches_too_and_other_things_are_refused(model: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    assert np.array_equal(predict_views(model, x.numpy()), predict_views(model, x))
    assert np.abs(predict_views(model, x.double().tolist()) - predict_views(model, x)).max() < 1e-6
    for wrong in (None, "images", ["a.jpg"], {}):
        with pytest.raises(UserError, match=r"tensor or array \(N, C, H, W\)"):
            predict_views(model, wrong)
    with pytest.raises(UserError, match=r"got shape \(0, 3, 8, 8\)"):
        predict_views(model, x[:0])
    for nothing in (None, 3, ["flips"]):
        with pytest.raises(UserError, match="views must be one of none, hflip, flips"):
            make_views(nothing)


def test_views_take_any_number_of_channels() -> None:
    x = torch.rand(2, 1, 6, 6)
    assert [tuple(view(x).shape) for view in make_views("d4+zoom")] == [(2, 1, 6, 6)] * 9
