"""Augmentation on the device means what it means in the loader."""

import numpy as np
import pytest
import torch
from PIL import Image

from cassava_kit.data.device_augment import DeviceAugment, light_layers


def test_light_takes_each_symmetry_as_often_as_the_loader():
    """A gradient along one axis says after a quarter turn along which it runs: half of the pictures are turned."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 32)[None, None, None].expand(600, 3, 32, 32)
    out = ramp.clone()
    for step in light_layers((32, 32))[1:]:
        out = step(out)
    down = (out[:, 0, -1, 0] - out[:, 0, 0, 0]).abs() > 0.5
    across = (out[:, 0, 0, -1] - out[:, 0, 0, 0]).abs() > 0.5
    assert (down ^ across).all() and 0.42 < down.float().mean() < 0.58
    backward = out[:, 0, 0, 0] > 0.5
    assert 0.42 < backward.float().mean() < 0.58


@pytest.mark.parametrize("name", ["none", "light"])
def test_a_flat_picture_keeps_its_value(name):
    """Crops, symmetries and resizing move pixels: each of the 256 values stays, which truncation would lower."""
    torch.manual_seed(0)
    values = torch.arange(256, dtype=torch.uint8)
    out = DeviceAugment(name, (16, 16))(values[:, None, None, None].expand(256, 3, 24, 20))
    assert out.shape == (256, 3, 16, 16) and out.dtype == torch.uint8
    assert torch.equal(out, values[:, None, None, None].expand(256, 3, 16, 16))


def test_none_gives_the_evaluation_pixels():
    """Reference: PIL's bilinear resize, within two levels."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(image).resize((16, 12), Image.BILINEAR))
    ours = DeviceAugment("none", (12, 16))(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 2


def test_strong_changes_colours_and_light_does_not():
    torch.manual_seed(0)
    flat = torch.full((32, 3, 24, 24), 100, dtype=torch.uint8)
    assert (DeviceAugment("strong", (16, 16))(flat) != 100).any(dim=3).any(dim=2).any(dim=1).float().mean() > 0.5
    with pytest.raises(ValueError, match="augmentation must be one of none, light, strong, got 'heavy'"):
        DeviceAugment("heavy", (16, 16))


def test_mixed_precision_does_not_reach_the_pixels():
    """Matrices of crops and rotations in half precision would move and blur the pictures."""
    augment, images = DeviceAugment("strong", (48, 48)), torch.randint(0, 256, (4, 3, 64, 80), dtype=torch.uint8)
    torch.manual_seed(1)
    expected = augment(images)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images), expected)
