"""GPU hours against published passes, and against counting by hand."""

import pytest

from cassava_kit.settings import replace
from cassava_kit.training.cost import SINGLE_PRECISION, pass_seconds, train_hours
from cassava_kit.training.recipes import recipe
from cassava_kit.training.ssl.cost import pretrain_hours
from cassava_kit.training.ssl.recipes import pretrain_recipe as pretraining


@pytest.mark.parametrize(
    ("model", "size", "seconds"),
    [("resnet50", 224, 13), ("resnet50", 448, 50), ("efficientnet_b4", 380, 50), ("efficientnet_b4", 512, 91)],
)
def test_a_pass_takes_what_was_published(model, size, seconds):
    assert 15_000 * pass_seconds(model, size) == pytest.approx(seconds, rel=0.1)


def test_a_convolution_is_counted_as_by_hand():
    """VGG's operations are those of its convolutions and dense layers: 15.5 billion multiply-adds."""
    assert pass_seconds("vgg16", 224) * 9.5e12 == pytest.approx(2 * 15.5e9, rel=0.02)


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
