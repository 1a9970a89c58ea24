"""A method without further fields is its paper; what does not fit dies at construction."""

import json

import pytest
from pydantic import ValidationError

from cassava_kit.errors import UserError
from cassava_kit.settings import replace
from cassava_kit.training.ssl.method_settings import METHOD_SETTINGS
from cassava_kit.training.ssl.methods import SSL_METHODS, configure, load_method
from cassava_kit.training.ssl.recipes import PRETRAIN_RECIPES, pretrain_recipe
from cassava_kit.training.ssl.view import ViewConfig


@pytest.mark.parametrize("method", SSL_METHODS)
def test_every_field_has_its_sentence(method):
    for model in (load_method(method).config_class, ViewConfig):
        for name, field in model.model_fields.items():
            assert field.description and field.description.endswith("."), name


@pytest.mark.parametrize("method", SSL_METHODS)
def test_settings_that_load_without_a_network_are_the_networks(method):
    assert METHOD_SETTINGS[method] is load_method(method).config_class


def test_the_defaults_are_the_papers():
    byol, swav, simclr, moco = (configure(method) for method in ("byol", "swav", "simclr", "moco"))
    assert (byol.momentum, byol.momentum_end, byol.weight_decay, byol.warmup_epochs) == (0.996, 1.0, 1.5e-6, 10)
    assert (byol.hidden_dim, byol.output_dim, byol.predictor_dim, byol.lr) == (4096, 256, 4096, 0.2)
    assert [(v.blur_prob, v.solarize_prob) for v in byol.views] == [(1.0, 0.0), (0.1, 0.2)]
    assert [(v.size, v.count, v.scale) for v in swav.views] == [(224, 2, (0.14, 1.0)), (96, 6, (0.05, 0.14))]
    assert (swav.temperature, swav.sinkhorn_eps, swav.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (swav.queue_size, swav.queue_from_epoch, swav.prototypes_frozen_epochs) == (3840, 15, 1)
    assert (simclr.temperature, simclr.base_lr, simclr.weight_decay, simclr.output_dim) == (0.1, 0.3, 1e-6, 128)
    assert (moco.temperature, moco.momentum, moco.momentum_end, moco.queue_size) == (0.2, 0.999, 0.999, 65536)
    assert (moco.optimizer, moco.base_lr, moco.head_norm) == ("sgd", 0.03, "none")


def test_the_learning_rate_follows_the_images_of_a_step():
    config = configure("byol", batch_size=64, accumulate=4, devices=2)
    assert config.step_images == 512
    assert config.lr == pytest.approx(0.4)


@pytest.mark.parametrize("method", SSL_METHODS)
def test_a_setting_of_another_method_is_refused(method):
    own = set(load_method(method).config_class.model_fields)
    others = set().union(*(load_method(each).config_class.model_fields for each in SSL_METHODS)) - own
    assert len(others) >= 4
    for name in others:
        value = {"symmetric": True, "momentum": 0.5, "momentum_end": 0.5}.get(name, 4)
        with pytest.raises(UserError, match=f"{name}: Extra inputs are not permitted"):
            configure(method, **{name: value})
        with pytest.raises(UserError, match=f"no setting '{name}'"):
            configure(method).with_settings([f"{name}=4"])


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("byol", {"epochs": 5}, "warmup_epochs must be less than epochs"),
        ("byol", {"weight_decay": 0}, "lars adapts only what has weight decay"),
        ("byol", {"colour": 1}, "colour"),
        ("byol", {"views": ({"count": 3},)}, "exactly two views, got 3"),
        ("byol", {"views": ({"size": 64}, {"size": 96})}, "views of one size"),
        ("swav", {"views": ({"count": 1}, {"count": 6})}, "two full views"),
        ("swav", {"epochs": 10}, "queue_from_epoch=15 is never reached in 10 epochs"),
        ("swav", {"queue_size": 0}, "queue_from_epoch needs a queue_size"),
        ("moco", {"queue_size": 0}, "queue_size: .*greater than or equal to 1"),
        ("moco", {"batch_size": 12}, "multiple of bn_groups"),
        ("moco", {"batch_size": 8}, "fewer than two images a group"),
        ("simclr", {"temperature": None}, "temperature: Input should be a valid number"),
        ("simclr", {"temperature": -1}, "temperature"),
        ("simclr", {"views": ({"count": 2, "scale": (0.5, 0.2)},)}, "scale must be"),
        ("simclr", {"optimizer": "adamw", "sgd_momentum": 0.8}, "belongs to lars and sgd"),
        ("simclr", {"seed": 2**32}, "seed: .*less than or equal to 4294967295, got 4294967296"),
        ("dino", {}, "method must be one of simclr, moco, byol, swav, got 'dino'"),
    ],
)
def test_what_does_not_fit_is_one_line(method, settings, says):
    with pytest.raises(ValueError, match=says) as caught:
        configure(method, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("function", PRETRAIN_RECIPES, ids=lambda function: function.__name__)
def test_recipes_go_through_json_and_back(function):
    config = function()
    assert config.name == function.__name__
    assert configure(**json.loads(json.dumps(config.model_dump(mode="json")))) == config
    assert pretrain_recipe(config.name) == config


def test_the_published_runs():
    assert (pretrain_recipe("byol_resnet50").epochs, pretrain_recipe("byol_resnet50").batch_size) == (81, 256)
    assert pretrain_recipe("swav_resnet50").backbone == "resnet50"
    assert pretrain_recipe("byol") == configure("byol", name="byol")
    with pytest.raises(ValueError, match="byol_resnet50"):
        pretrain_recipe("byol_resnet")


def test_settings_from_the_command_line():
    config = pretrain_recipe("byol").with_settings(
        ["epochs=40", "backbone=vit_small_patch16_224", 'model_args={"img_size": 96}']
    )
    assert (config.epochs, config.backbone, config.model_args) == (40, "vit_small_patch16_224", {"img_size": 96})
    with pytest.raises(ValueError, match="no setting 'epoch'"):
        config.with_settings(["epoch=4"])
    assert replace(config, epochs=41).epochs == 41


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        pretrain_recipe("byol").epochs = 3


def test_passes_are_counted_by_hand():
    """Views in areas of the first: SwAV has two of 224 and six of 96 pixels; MoCo's first view is its only query."""
    counted = {method: configure(method).passes() for method in SSL_METHODS}
    assert counted["simclr"] == (2, 0) and counted["byol"] == (2, 2) and counted["moco"] == (1, 1)
    assert configure("moco", symmetric=True).passes() == (2, 2)
    assert counted["swav"] == (pytest.approx(2 + 6 * (96 * 96) / (224 * 224)), 0)


@pytest.mark.parametrize("method", SSL_METHODS)
def test_every_paper_can_be_cut_to_one_small_epoch(method):
    paper = configure(method, accumulate=2, precision="16-mixed", num_workers=3)
    small = replace(paper, **paper.one_small_epoch(4))
    assert (small.epochs, small.accumulate, small.precision, small.num_workers) == (1, 1, "32-true", 0)
    assert small.batch_size == (16 if method == "moco" else 4), "two images a group of BatchNorm statistics"
    other = {"epochs", "warmup_epochs", "accumulate", "precision", "num_workers", "batch_size", "queue_from_epoch"}
    assert small.model_dump(exclude=other) == paper.model_dump(exclude=other)
