"""Recipes of published backbones: built at full size, stepped, saved and loaded on random weights, half precision."""

import dataclasses
import re

import numpy as np
import pandas as pd
import pytest
import torch
from cuda_double import play_cuda
from tiny import SILENT, TINY

from cassava_kit.data.images import load_image
from cassava_kit.errors import UserError
from cassava_kit.evidence.predictions import read_predictions
from cassava_kit.inference.forward import place
from cassava_kit.inference.loading import load_network
from cassava_kit.models.checkpoint import CheckpointInfo, load_model, save_checkpoint
from cassava_kit.models.network import args_for_size, check_image_size, create_model, image_statistics, meta_model
from cassava_kit.models.precision import half_is_risky
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.fit import fit_fold
from cassava_kit.training.recipes import initial_weights, recipe, recipe_names
from cassava_kit.training.ssl.recipes import pretrain_recipe

CLIP = (0.48145466, 0.4578275, 0.40821073)
IMAGENET = (0.485, 0.456, 0.406)
# Recipe: millions of parameters of timm's results table less the 1,000-class head's, mean of RGB, drop path.
PUBLISHED = {
    "convnext_small": (50.22 - 0.77, IMAGENET, 0.2),
    "convnext_base": (88.59 - 1.025, CLIP, 0.2),
    "tiny_vit": (21.23 - 0.577, IMAGENET, 0.1),
    "eva02_small": (22.13 - 0.385, CLIP, 0.1),
    "vit_base_clip": (86.86 - 0.769, CLIP, 0.1),
    "dinov2_small": (22.06, IMAGENET, 0.1),
    "dinov2_base": (86.58, IMAGENET, 0.1),
}
# The table: timm model, highest rate, layer decay.
TABLE = {
    "convnext_small": ("convnext_small.in12k_ft_in1k_384", 1e-4, 0.8),
    "convnext_base": ("convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384", 5e-5, 0.8),
    "tiny_vit": ("tiny_vit_21m_384.dist_in22k_ft_in1k", 1e-4, 0.8),
    "eva02_small": ("eva02_small_patch14_336.mim_in22k_ft_in1k", 5e-5, 0.7),
    "vit_base_clip": ("vit_base_patch16_clip_384.laion2b_ft_in12k_in1k", 5e-5, 0.7),
    "dinov2_small": ("vit_small_patch14_dinov2.lvd142m", 5e-5, 0.75),
    "dinov2_base": ("vit_base_patch14_dinov2.lvd142m", 5e-5, 0.75),
}
# The same architecture, made small: what is left of its blocks, and its side in pixels.
SMALL = {
    "convnext_small": ({"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 64),
    "convnext_base": ({"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}, 64),
    "tiny_vit": (
        {
            "embed_dims": [8, 16, 32, 32],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 4],
            "window_sizes": [4, 4, 4, 2],
        },
        64,
    ),
    "eva02_small": ({"embed_dim": 48, "depth": 2, "num_heads": 2}, 42),
    "vit_base_clip": ({"embed_dim": 48, "depth": 2, "num_heads": 3}, 48),
    "dinov2_small": ({"embed_dim": 48, "depth": 2, "num_heads": 3}, 42),
    "dinov2_base": ({"embed_dim": 48, "depth": 2, "num_heads": 3}, 42),
    "dinov2_top": ({"embed_dim": 48, "depth": 5, "num_heads": 3}, 42),
    "efficientnet_lite0": ({}, 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_the_published_network_with_the_settings_of_its_table(name):
    config, (millions, mean, drop_path) = recipe(name), PUBLISHED[name]
    assert (config.model, config.lr, config.layer_decay) == TABLE[name]
    assert config.batch_size * config.accumulate == 32 and config.ema == 0.999 and config.label_smoothing == 0.1
    assert (config.epochs, config.warmup_epochs, config.schedule, config.optimizer) == (12, 1, "cosine", "adamw")
    assert config.precision == "16-mixed" and config.loss == "ce" and not config.loss_args
    args = args_for_size(config.model, config.image_size, config.model_args)
    model, image = meta_model(config.model, config.image_size, model_args=args)
    assert model(image).shape == (1, 2) and image_statistics(model)[0] == mean
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.5)
    dropped = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert max(dropped) == pytest.approx(drop_path) and sorted(dropped) == dropped, "deeper blocks are dropped more"
    assert "weights)" in initial_weights(config)


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_is_stepped_saved_and_loaded(name, data, tmp_path):
    args, size = SMALL[name]
    config = recipe(name)
    config = replace(config, model_args=config.model_args | args, image_size=size, epochs=2, batch_size=8)
    if config.train_pixels:
        config = replace(config, train_pixels=(64, 64))
    result = fit_fold(config, data, 0, tmp_path, options=dataclasses.replace(SILENT, limit=24))
    model, info = load_model(result.checkpoint)
    assert info.input_size == (size, size) and not model.training and info.recipe.startswith(f"{name}--")
    held_out = data.folds.validation(0)["image_id"]
    images = np.stack([load_image(data.table.image_dir / image_id, (size, size)) for image_id in held_out])
    mean, std = (np.array(values) for values in image_statistics(model))
    batch = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    with torch.no_grad():
        answers = model(batch).softmax(dim=1).numpy()
    rows = read_predictions(result.oof_file).frame.set_index("image_id").loc[held_out, [f"p{k}" for k in range(5)]]
    np.testing.assert_allclose(rows.to_numpy(), answers, atol=1e-4)
    losses = pd.read_csv(result.run_dir / "metrics.csv")["train_loss"]
    assert losses.iloc[1] != losses.iloc[0] and np.isfinite(losses).all()


def test_image_sizes_are_whole_patches():
    cut = {name: re.search(r"patch(\d+)", recipe(name).model) for name in recipe_names()}
    sides = {name: int(found[1]) for name, found in cut.items() if found}
    assert len(sides) >= 7 and all(recipe(name).image_size % side == 0 for name, side in sides.items())
    with pytest.raises(UserError, match=r"patches of 14 pixels, and 260 is no multiple of that; .* 252 or 266"):
        check_image_size("vit_small_patch14_dinov2.lvd142m", 260)
    check_image_size("vit_small_patch14_dinov2.lvd142m", 252)


DINOV3 = "vit_small_patch16_dinov3.lvd1689m"


@pytest.mark.parametrize("model", [DINOV3, "convnext_tiny.dinov3_lvd1689m"])
def test_half_precision_is_refused_by_name_where_it_is_wrong_without_an_error(model):
    with pytest.raises(ValueError, match=rf"{model} is wrong in half precision, without an error.*32-true"):
        recipe(f"timm:{model}").with_settings(["precision=16-mixed"])
    assert recipe(f"timm:{model}").precision == "32-true"
    with pytest.raises(ValueError, match="wrong in half precision"):
        replace(pretrain_recipe("simclr_resnet50"), backbone=model, precision="16-mixed")


@pytest.mark.parametrize(
    ("model", "tried"), [(DINOV3, ()), ("vit_tiny_patch16_224", ("fp16", "fp16-autocast", "fp32"))]
)
def test_a_gpu_predicts_in_single_precision_where_half_is_wrong(model, tried, tmp_path, monkeypatch):
    args = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
    network = create_model(model, 3, model_args=args)
    mean, std = image_statistics(network)
    info = CheckpointInfo(
        model=model, model_args=args, n_classes=3, input_size=(32, 32), mean=mean, std=std, recipe="r"
    )
    save_checkpoint(tmp_path / "c.safetensors", network.state_dict(), info)
    with play_cuda(monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))  # a T4
        forward = place(load_network(tmp_path / "c.safetensors"), torch.device("cuda:0"))
    assert (forward.precision, forward.candidates) == ("fp32", tried)


def test_what_may_overflow_in_half_precision_is_said(data, tmp_path, monkeypatch):
    assert half_is_risky("convnextv2_tiny.fcmae") and not half_is_risky("convnext_tiny.in12k")
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    config = replace(TINY, model="convnextv2_atto", model_args=args, image_size=32, epochs=1, precision="16-mixed")
    told: list[str] = []

    class StopError(Exception):
        """Raised in the place of the training."""

    class Trainer:
        precision = "16-mixed"

        def fit(self, *_, **__):
            raise StopError

    monkeypatch.setattr("cassava_kit.training.fit.make_trainer", lambda *_, **__: Trainer())
    for each, expected in ((config, 1), (replace(config, model="convnext_atto"), 0)):
        told.clear()
        with pytest.raises(StopError):
            fit_fold(each, data, 0, tmp_path, options=dataclasses.replace(SILENT, tell=told.append))
        assert len([line for line in told if "may overflow in half precision" in line]) == expected


def test_published_recipes_of_the_mission_stay_as_they_are():
    """Settings that other people's published scores were reached with."""
    expected = {
        "resnet18": ("resnet18", 224, 108, 64, 1e-3, "32-true"),
        "resnet34": ("resnet34", 224, 50, 64, 1e-2, "32-true"),
        "resnet50": ("resnet50", 224, 30, 64, 1e-3, "32-true"),
        "vit_base": ("vit_base_patch16_224", 224, 5, 50, 2e-5, "32-true"),
        "vgg16": ("vgg16", 224, 30, 16, 1e-3, "32-true"),
        "densenet169": ("densenet169", 224, 20, 16, 1e-4, "32-true"),
        "efficientnet_b4": ("tf_efficientnet_b4.ns_jft_in1k", 512, 10, 16, 3e-4, "16-mixed"),
        "resnext50": ("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", 512, 10, 16, 1e-4, "16-mixed"),
        "deit_base": ("deit_base_distilled_patch16_384", 384, 10, 16, 3e-5, "16-mixed"),
    }
    for name, values in expected.items():
        c: RunConfig = recipe(name)
        assert (c.model, c.image_size, c.epochs, c.batch_size, c.lr, c.precision) == values
        assert c.layer_decay_by == "stage" and c.keep_stages is None and c.ema is None and not c.model_args
