"""GPU hours against published passes, and against counting by hand."""

import pytest

from cassava_kit.settings import replace
from cassava_kit.training.cost import SINGLE_PRECISION, count_operations, pass_seconds, train_hours
from cassava_kit.training.recipes import recipe
from cassava_kit.training.ssl.cost import pretrain_hours
from cassava_kit.training.ssl.recipes import pretrain_recipe as pretraining


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
    assert sum(count_operations(model, size)) / 2e9 == pytest.approx(published, rel=0.04)


def test_depthwise_convolutions_are_those_of_the_papers_table():
    """MobileNetV2, table 2: expansion t, channels c, repeats n, first stride s; one 3x3 depthwise layer a block."""
    table = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    channels, side, expected = 32, 112, 0
    for t, c, n, s in table:
        for k in range(n):
            side //= s if k == 0 else 1
            expected += 2 * 9 * t * channels * side**2
            channels = c
    assert count_operations("mobilenetv2_100", 224)[1] == expected


def test_a_week_of_resnet50_is_counted_by_hand():
    """15,000 images in 13 s a pass (published): five folds of 10 epochs, each pass forward and back."""
    config = replace(recipe("resnet50"), epochs=10, precision="16-mixed")
    seconds = 13 / 15_000 * 10 * (3 * 4 / 5 + 1 / 5) * 21_397 * 3  # three rounds of two folds
    assert train_hours(config, 21_397, 5) == pytest.approx(seconds / 3600, rel=0.1)


def test_training_passes():
    config = replace(recipe("resnet18"), epochs=10)
    pass_ = pass_seconds("resnet18", 224) * SINGLE_PRECISION
    assert train_hours(config, 1000, 4) * 3600 == pytest.approx(10 * pass_ * (3 * 3 * 1000 + 1000) / 2)
    # Three rounds of two folds, in the last of which one GPU has nothing to do.
    assert train_hours(config, 1000, 5) * 3600 == pytest.approx(10 * pass_ * (3 * 4 * 1000 + 1000) / 5 * 3)
    frozen = train_hours(replace(config, freeze_backbone=True), 1000, 5)
    assert frozen * 3600 == pytest.approx(10 * pass_ * 3 * 1000)
    assert train_hours(replace(config, precision="16-mixed"), 1000, 5) * SINGLE_PRECISION == pytest.approx(
        train_hours(config, 1000, 5)
    )


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
