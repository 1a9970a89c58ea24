"""Configurations: round trip, settings from the command line, values that are refused."""

import pytest

from cassava_kit.settings import parse_setting, replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.recipes import initial_weights, recipe, recipe_names

PUBLISHED = {
    "resnet18": {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-3, "epochs": 108},
    "resnet34": {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-2, "epochs": 50},
    "resnet50": {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-3, "epochs": 30},
    "vit_base": {"optimizer": "adam", "lr": 2e-5, "batch_size": 50, "epochs": 5},
    "vgg16": {"head": "dense", "freeze_backbone": True, "image_size": 224, "batch_size": 16, "lr": 1e-3, "epochs": 30},
    "vgg19": {"head": "dense", "freeze_backbone": True, "image_size": 224, "batch_size": 16, "lr": 1e-3, "epochs": 30},
    "resnet50_frozen": {"head": "dense", "freeze_backbone": True, "batch_size": 16, "lr": 1e-3, "epochs": 30},
    "densenet169": {"head": "dense", "batch_size": 16, "lr": 1e-4, "epochs": 20},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_have_their_published_settings(name):
    config = recipe(name).model_dump()
    assert {key: config[key] for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_round_trips_through_json_and_names_itself(name):
    config = recipe(name)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert config.recipe == name and config.about


def test_settings_change_one_thing_each():
    config = recipe("resnet18").with_settings(["lr=0.5", "optimizer=sgd", "ema=None", 'model_args={"a": 1}'])
    assert (config.lr, config.optimizer, config.ema, config.model_args) == (0.5, "sgd", None, {"a": 1})
    assert config.epochs == recipe("resnet18").epochs


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs=0", "epochs: .*greater than or equal to 1, got 0"),
        ("optimizer=lion", "'adam', 'adamw', 'adadelta' or 'sgd', got 'lion'"),
        ("nonsense=1", "no setting 'nonsense'; settings are recipe"),
        ("lr", "expected name=value, got 'lr'"),
        ("lr=fast", "lr: .* got 'fast'"),
        ("plain_epochs=2", "plain_epochs needs mixup or cutmix"),
        ("warmup_epochs=500", "less than epochs"),
        ("seed=4294967296", "seed: .*less than or equal to 4294967295"),
    ],
)
def test_bad_settings_die_at_once_in_one_line(setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        recipe("resnet18").with_settings([setting])
    assert "\n" not in str(caught.value)


def test_options_that_would_be_ignored_are_refused():
    with pytest.raises(ValueError, match="frozen backbone"):
        replace(recipe("vgg16"), backbone_lr_scale=0.1)


def test_recipes_say_whose_weights_they_start_from():
    assert [name for name in recipe_names() if initial_weights(recipe(name)) is None] == ["small_resnet", "small_vit"]
    assert "pretrain" in initial_weights(recipe("small_ssl_resnet"))
    assert "ImageNet" in initial_weights(recipe("timm:convnext_tiny"))


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        recipe("resnet18").lr = 1.0


def test_unknown_recipe_lists_the_known_and_timm_names_work():
    with pytest.raises(ValueError, match=r"no recipe 'resnet' .*; recipes are resnet18, resnet34"):
        recipe("resnet")
    assert recipe("timm:convnext_tiny").model == "convnext_tiny"


def test_setting_values_are_json_or_plain_text():
    assert parse_setting("a=1e-3") == ("a", 1e-3)
    assert parse_setting("a=True") == ("a", True)
    assert parse_setting("a=b=c") == ("a", "b=c")
