"""Augmentation on the device means what it means in the loader."""

import torch

from cassava_kit.data.device_augment import light_layers


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
