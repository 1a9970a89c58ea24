"""Recipes that take seconds a fold on two CPU cores, for the demo and for tests; `recipes.RECIPES` lists them."""

from __future__ import annotations

from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig


def small_resnet() -> RunConfig:
    """A ResNet of 0.7 M parameters: seconds a fold on two CPU cores."""
    return RunConfig(
        recipe="small_resnet",
        model="resnet18",
        model_args={"layers": [1, 1, 1, 1], "channels": [24, 48, 96, 192]},
        image_size=64,
        train_pixels=(96, 128),
        epochs=10,
        batch_size=32,
        lr=5e-3,
        weight_decay=5e-2,
        schedule="onecycle",
    )


def small_vit() -> RunConfig:
    """A ViT of 0.3 M parameters on a convolutional stem, without which it learns little from a thousand images."""
    size = {"img_size": 56, "patch_size": 2, "embed_dim": 96, "depth": 2, "num_heads": 3}
    return replace(
        small_resnet(),
        recipe="small_vit",
        model="vit_tiny_r_s16_p8_224",
        model_args={**size, "class_token": False, "global_pool": "avg"},
        image_size=56,
        lr=3e-3,
    )


def small_ssl_resnet() -> RunConfig:
    """The small ResNet from a backbone self-supervised on the training images (SimCLR), finetuned."""
    return replace(small_resnet(), recipe="small_ssl_resnet", epochs=8)
