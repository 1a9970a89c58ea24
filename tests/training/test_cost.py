"""GPU hours against published passes, and against counting by hand."""

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from cassava_kit.errors import UserError
from cassava_kit.settings import replace
from cassava_kit.training import cost
from cassava_kit.training.cost import (
    AUGMENT,
    DECODE,
    T4,
    Gpu,
    count_operations,
    epoch_seconds,
    kept_bytes,
    loader_seconds,
    pass_seconds,
    train_hours,
    trained_share,
)
from cassava_kit.training.recipes import recipe
from cassava_kit.training.side_by_side import fold_bytes
from cassava_kit.training.ssl.cost import pretrain_hours
from cassava_kit.training.ssl.recipes import pretrain_recipe as pretraining


@pytest.fixture(scope="module", autouse=True)
def counted_here(tmp_path_factory):
    """What these tests see is counted by this code, and not kept from before."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CASSAVA_KIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        cost._read_counts.cache_clear()
        yield
    cost._read_counts.cache_clear()


@pytest.mark.parametrize(
    ("model", "size", "seconds"),
    [("resnet50", 224, 13), ("resnet50", 448, 50), ("efficientnet_b4", 380, 50), ("efficientnet_b4", 512, 91)],
)
def test_a_pass_takes_what_was_published(model, size, seconds):
    assert 15_000 * pass_seconds(model, size) == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(
    ("model", "size", "published"),
    [
        ("vgg16", 224, 15.47),
        ("resnet18", 224, 1.82),
        ("resnet50", 224, 4.11),
        ("densenet169", 224, 3.40),
        ("mobilenetv2_100", 224, 0.31),
        ("efficientnet_b0", 224, 0.40),
        ("vit_small_patch16_224", 224, 4.61),
        ("vit_base_patch16_224", 224, 17.58),
    ],
)
def test_operations_are_those_that_were_published(model, size, published):
    """Billions of multiply-adds, from timm's model cards (VGG's from its paper)."""
    assert count_operations(model, size).every / 2e9 == pytest.approx(published, rel=0.04)


@pytest.mark.parametrize(
    ("name", "size", "published"),
    [
        ("convnext_small", 384, 25.58),
        ("convnext_base", 384, 45.21),
        ("tiny_vit", 384, 13.77),
        ("eva02_small", 336, 15.48),
        ("vit_base_clip", 384, 55.54),
        ("dinov2_small", 518, 46.76),
        ("dinov2_base", 518, 151.71),
    ],
)
def test_the_recipes_networks_cost_what_timm_published(name, size, published):
    """Billions of multiply-adds of timm's results/benchmark-infer-amp-nhwc-pt240-cu124-rtx3090.csv."""
    config = recipe(name)
    assert count_operations(config.model, size, config.model_args).every / 2e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("model", "size", "images_a_second"),
    [
        ("convnext_small.in12k_ft_in1k_384", 384, 656.34),
        ("tiny_vit_21m_384.dist_in22k_ft_in1k", 384, 953.33),
        ("eva02_small_patch14_336.mim_in22k_ft_in1k", 336, 952.08),
        ("efficientnet_b4", 384, 888.84),
        ("mobilenetv2_100", 224, 9887.57),
    ],
)
def test_large_depthwise_kernels_cost_no_more_than_small_ones(model, size, images_a_second):
    """Against ResNet-50 at 224 pixels (3,729.86 images a second) in the same table of timm's, on another GPU."""
    relative = pass_seconds(model, size) / pass_seconds("resnet50", 224)
    assert relative == pytest.approx(3729.86 / images_a_second, rel=0.45)


def test_depthwise_convolutions_are_those_of_the_papers_table():
    """MobileNetV2, table 2: expansion t, channels c, repeats n, first stride s; one 3x3 depthwise layer a block."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    channels, side, expected = 32, 112, 0
    for t, c, n, s in table:
        for k in range(n):
            side //= s if k == 0 else 1
            expected += 2 * 9 * t * channels * side**2
            channels = c
    found = count_operations("mobilenetv2_100", 224)
    assert found.depthwise == expected and found.outputs == expected / 18


def test_a_week_of_resnet50_is_counted_by_hand():
    """15,000 images in 13 s a pass (published): five folds of 10 epochs, each pass forward and back."""
    config = replace(recipe("resnet50"), epochs=10, precision="16-mixed")
    seconds = 13 / 15_000 * 10 * (3 * 4 / 5 + 1 / 5) * 21_397 * 3  # three rounds of two folds
    assert train_hours(config, 21_397, 5) == pytest.approx(seconds / 3600, rel=0.1)


def test_training_passes():
    config = replace(recipe("resnet18"), epochs=10, train_pixels=(224, 224), augment_on="device")
    pass_ = pass_seconds("resnet18", 224) * T4.single_precision
    assert train_hours(config, 1000, 4) * 3600 == pytest.approx(10 * pass_ * (3 * 3 * 1000 + 1000) / 2)
    # Three rounds of two folds, in the last of which one GPU has nothing to do.
    assert train_hours(config, 1000, 5) * 3600 == pytest.approx(10 * pass_ * (3 * 4 * 1000 + 1000) / 5 * 3)
    frozen = train_hours(replace(config, freeze_backbone=True), 1000, 5)
    assert frozen * 3600 == pytest.approx(10 * pass_ * 3 * 1000)
    assert train_hours(replace(config, precision="16-mixed"), 1000, 5) * T4.single_precision == pytest.approx(
        train_hours(config, 1000, 5)
    )


def test_the_top_blocks_of_a_vit_cost_their_share_of_a_pass_backward():
    """Four of twelve equal blocks, forward through all: published ViT-S at 224 pixels has 12 blocks of one size."""
    config = recipe("dinov2_top")
    assert config.keep_stages == 4 and trained_share(config) == pytest.approx(4 / 12, abs=0.01)
    whole = replace(config, keep_stages=None)
    rows = {"n_training": 900, "n_validation": 0}
    assert epoch_seconds(config, **rows) / epoch_seconds(whole, **rows) == pytest.approx((1 + 2 / 3) / 3, abs=0.01)


def test_a_slow_loader_decides_and_a_fast_one_does_not():
    config = replace(recipe("resnet18"), precision="16-mixed", image_size=224)
    each, pixel = AUGMENT["light"]
    hand = 800 * (DECODE + each + pixel * 224 * 224) + 200 * DECODE
    assert loader_seconds(config, 800, 200) == pytest.approx(hand)
    assert epoch_seconds(config, 800, 200) == pytest.approx(hand / 2)  # ResNet-18 in half precision waits for two cores
    many = Gpu("T4", T4.dense, T4.depthwise, T4.single_precision, cores=64)
    assert epoch_seconds(config, 800, 200, gpu=many) == pytest.approx(pass_seconds("resnet18", 224) * (3 * 800 + 200))
    assert loader_seconds(replace(config, train_pixels=(240, 320)), 800, 200) == pytest.approx(hand - 1000 * DECODE)


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("byol_resnet50", 2 * 3 + 2),
        ("simclr_resnet50", 2 * 3),
        ("moco_resnet50", 3 + 1),
        ("swav_resnet50", 3 * (2 + 6 * (96 / 224) ** 2)),
    ],
)
def test_pretraining_passes(name, passes):
    config = pretraining(name)
    hand = config.epochs * 100 * passes * pass_seconds("resnet50", 224) / 2 / 3600
    assert pretrain_hours(config, 100) == pytest.approx(hand)


def test_shapes_alone_do_not_load_the_compiler():
    """Weights drawn on the meta device would: torch computes there in Python."""
    code = "import sys; from cassava_kit.models.network import args_for_size, meta_model\n"
    code += "args_for_size('resnet18', 64); meta_model('vit_tiny_patch16_224', 224)\n"
    code += "print([each for each in ('torch._dynamo', 'sympy') if each in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_network_that_was_counted_is_not_tried_again(monkeypatch, tmp_path):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path))
    cost._read_counts.cache_clear()
    with pytest.raises(UserError, match="patches of 16 pixels, and 100 is no multiple"):
        count_operations("test_vit", 100)
    config = recipe("small_resnet")
    size = fold_bytes(config)
    cost._read_counts.cache_clear()  # another process
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a network was tried"))
    assert fold_bytes(config) == size
    cost._read_counts.cache_clear()


def test_what_was_counted_is_kept_and_a_damaged_file_is_counted_again(monkeypatch, tmp_path):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path))
    cost._read_counts.cache_clear()
    right = count_operations("test_vit", 160)
    (file,) = Path(os.environ["CASSAVA_KIT_CACHE"]).glob("operations-*.json")
    kept = file.read_text()
    assert str(right.every) in kept

    def counted(*_):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr(cost, "_count", counted)
        cost._read_counts.cache_clear()
        assert count_operations("test_vit", 160) == right  # another process
        assert count_operations("test_vit", 160, {}) == right
        with pytest.raises(AssertionError, match="counted again"):
            count_operations("test_vit", 192)
    for damaged in ("{", "[]", kept.replace(str(right.every), '"many"'), kept.replace(str(right.every), "-1")):
        file.write_text(damaged)
        cost._read_counts.cache_clear()
        assert count_operations("test_vit", 160) == right
    cost._read_counts.cache_clear()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, 4 * (3 * 8 * 8 + 5 * 8 * 8)),  # the picture for the convolution, and once its answer for ReLU and linear
        ({"freeze_backbone": True}, 4 * 5 * 8 * 8),  # what the linear layer reads
    ],
)
def test_what_a_step_keeps_of_an_image_is_counted_as_by_hand(monkeypatch, tmp_path, settings, kept):
    class Network(nn.Module):
        pretrained_cfg: ClassVar = {"classifier": "head"}

        def __init__(self):
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten())
            self.head = nn.Linear(5 * 8 * 8, 2)

        def forward(self, x):
            return self.head(self.features(x))

    def made(*_, **__):
        with torch.device("meta"):
            return Network(), torch.empty(1, 3, 8, 8)

    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path))
    monkeypatch.setattr("cassava_kit.models.network.meta_model", made)
    cost._read_counts.cache_clear()
    assert kept_bytes(replace(recipe("small_resnet"), **settings)) == kept
    cost._read_counts.cache_clear()


def test_a_network_whose_last_picture_is_one_pixel_is_counted():
    assert kept_bytes(replace(recipe("small_resnet"), model="test_resnet", model_args={}, image_size=32)) > 0


def test_frozen_stages_keep_nothing():
    """A network of which the top is trained needs a part of the memory; DINOv2's would not run at home otherwise."""
    top = recipe("dinov2_top")
    whole = top.with_settings(["keep_stages=None"])
    assert 0.2 < kept_bytes(top) / kept_bytes(whole) < 0.4, "four blocks of twelve"
