"""Named runs: each recipe is a function that returns a configuration."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cassava_kit.errors import UserError, closest
from cassava_kit.files import sha256_bytes
from cassava_kit.settings import replace
from cassava_kit.training.config import NAMES, ProbeConfig, RunConfig
from cassava_kit.training.pretrained_recipes import (
    convnext_base,
    convnext_small,
    dinov2_base,
    dinov2_small,
    dinov2_top,
    efficientnet_lite0,
    efficientnet_lite2,
    eva02_small,
    tiny_vit,
    vit_base_clip,
)
from cassava_kit.training.small_recipes import small_resnet, small_ssl_resnet, small_vit

TIMM_PREFIX = "timm:"
PLAIN_SETTINGS = " with plain settings"
PROBE_OF = "Linear probe of "
LONGEST_NAME = 72


def resnet18() -> RunConfig:
    """ResNet-18, 108 epochs of AdamW with a cosine from 1e-3 (published: .80)."""
    return RunConfig(
        recipe="resnet18", model="resnet18", image_size=224, epochs=108, batch_size=64, lr=1e-3, weight_decay=1e-2
    )


def resnet34() -> RunConfig:
    """ResNet-34, 50 epochs of AdamW with a cosine from 1e-2 (published: .78)."""
    return replace(resnet18(), recipe="resnet34", model="resnet34", epochs=50, lr=1e-2)


def resnet50() -> RunConfig:
    """ResNet-50, 30 epochs of AdamW with a cosine from 1e-3 (published: .868)."""
    return replace(resnet18(), recipe="resnet50", model="resnet50", epochs=30)


def vit_base() -> RunConfig:
    """ViT-B/16, 5 epochs of Adam at 2e-5, batches of 50 (published: .82)."""
    return RunConfig(
        recipe="vit_base",
        model="vit_base_patch16_224",
        epochs=5,
        batch_size=50,
        optimizer="adam",
        lr=2e-5,
        weight_decay=0.0,
    )


def ssl_transfer() -> RunConfig:
    """ResNet-50 self-supervised elsewhere (its file by --weights), head replaced, finetuned."""
    return replace(resnet50(), recipe="ssl_transfer", backbone_lr_scale=0.1)


def vgg16() -> RunConfig:
    """VGG-16 frozen under three dense layers with dropout, 30 epochs at 1e-3 (published: .74 on 2,000 images)."""
    return RunConfig(
        recipe="vgg16",
        model="vgg16",
        head="dense",
        freeze_backbone=True,
        epochs=30,
        batch_size=16,
        optimizer="adam",
        lr=1e-3,
        weight_decay=0.0,
        label_smoothing=0.0,
        schedule="plateau",
        early_stopping=8,
        select="best",
    )


def vgg19() -> RunConfig:
    """VGG-19 frozen under the same head (published: .61 on 2,000 images)."""
    return replace(vgg16(), recipe="vgg19", model="vgg19")


def resnet50_frozen() -> RunConfig:
    """ResNet-50 frozen under the same head (published: .60 on 2,000 images)."""
    return replace(vgg16(), recipe="resnet50_frozen", model="resnet50")


def densenet169() -> RunConfig:
    """DenseNet-169 frozen under the same head, 20 epochs at 1e-4 (published: .618, the majority's share)."""
    return replace(vgg16(), recipe="densenet169", model="densenet169", epochs=20, lr=1e-4)


def unfreeze() -> RunConfig:
    """ResNet-50 unfrozen stage by stage from the top, one every second epoch, each at a third of the rate above it."""
    return replace(
        resnet50(), recipe="unfreeze", epochs=20, layer_decay=0.3, unfreeze_every=2, schedule="cosine", warmup_epochs=1
    )


def efficientnet_b4() -> RunConfig:
    """EfficientNet-B4 (noisy student) at 512 pixels with cutmix, as the competition's best teams trained it."""
    return RunConfig(
        recipe="efficientnet_b4",
        model="tf_efficientnet_b4.ns_jft_in1k",
        image_size=512,
        epochs=10,
        batch_size=16,
        accumulate=2,
        lr=3e-4,
        warmup_epochs=1,
        label_smoothing=0.2,
        cutmix=1.0,
        plain_epochs=2,
        augmentation="strong",
        precision="16-mixed",
    )


def resnext50() -> RunConfig:
    """ResNeXt-50 32x4d (semi-weakly supervised init) at 512 pixels, trained like efficientnet_b4."""
    return replace(efficientnet_b4(), recipe="resnext50", model="resnext50_32x4d.fb_swsl_ig1b_ft_in1k", lr=1e-4)


def deit_base() -> RunConfig:
    """DeIT-B/16 distilled at 384 pixels, trained like efficientnet_b4 at a ViT's rate."""
    return replace(
        efficientnet_b4(), recipe="deit_base", model="deit_base_distilled_patch16_384", image_size=384, lr=3e-5
    )


def mobilenet() -> RunConfig:
    """MobileNetV2 (ImageNet) at 224 pixels: for two CPU cores, 12 epochs, the average of its weights kept."""
    return RunConfig(
        recipe="mobilenet",
        model="mobilenetv2_100",
        model_args={"pad_type": "same"},
        image_size=224,
        train_pixels=(240, 320),
        epochs=12,
        batch_size=32,
        lr=1e-3,
        backbone_lr_scale=0.5,
        schedule="onecycle",
        ema=0.99,
    )


RECIPES: tuple[Callable[[], RunConfig], ...] = (
    resnet18,
    resnet34,
    resnet50,
    vit_base,
    ssl_transfer,
    vgg16,
    vgg19,
    resnet50_frozen,
    densenet169,
    unfreeze,
    efficientnet_b4,
    resnext50,
    deit_base,
    convnext_small,
    convnext_base,
    tiny_vit,
    eva02_small,
    vit_base_clip,
    dinov2_small,
    dinov2_base,
    mobilenet,
    efficientnet_lite0,
    efficientnet_lite2,
    dinov2_top,
    small_resnet,
    small_vit,
    small_ssl_resnet,
)


def initial_weights(config: RunConfig) -> str | None:
    """Return in words which weights a run should start from; None for the small recipes (random ones)."""
    if "dinov2" in config.model:
        return "DINOv2's (python -m cassava_kit weights)"
    if "ssl" in config.recipe:
        return "a self-supervised backbone (python -m cassava_kit pretrain)"
    if config.recipe.startswith("small_"):
        return None
    return "ImageNet's (python -m cassava_kit weights)"


def recipe_names() -> list[str]:
    """Return the names of all recipes."""
    return [function.__name__ for function in RECIPES]


def run_name(config: RunConfig | ProbeConfig) -> str:
    """Return the name of a run and of its folder: `name`, or the recipe's with what was changed in it.

    Example:
        >>> run_name(recipe("small_resnet").with_settings(["epochs=2", "lr=0.01"]))
        'small_resnet--epochs-2--lr-0.01'
    """
    if config.name is not None:
        return config.name
    text = "--".join([config.recipe, *(_slug(field, value) for field, value in changes(config).items())])
    if len(text) <= LONGEST_NAME:
        return text
    return f"{text[: LONGEST_NAME - 9]}-{sha256_bytes(text.encode())[:8]}"


def changes(config: RunConfig | ProbeConfig) -> dict[str, Any]:
    """Return the settings that differ from the recipe's, by name; empty where the recipe is not one of the kit's."""
    base: RunConfig | ProbeConfig
    if isinstance(config, ProbeConfig):
        base = probe_of(config.about.removeprefix(PROBE_OF))
    elif config.about.endswith(PLAIN_SETTINGS):
        base = recipe(f"{TIMM_PREFIX}{config.about.removesuffix(PLAIN_SETTINGS)}")
    elif config.recipe in recipe_names():
        base = recipe(config.recipe)
    else:
        return {}
    before, now = base.model_dump(), config.model_dump()
    return {field: now[field] for field in now if now[field] != before[field] and field not in NAMES}


def _slug(field: str, value: Any) -> str:
    """A setting as part of a file's name: `train_pixels`, (96, 128) -> `train_pixels-96-128`.

    A value that letters, digits and `_.+-` do not say whole has a hash behind it.
    """
    listed = isinstance(value, tuple | list)
    parts = list(value) if listed else [value]
    letters = r"[\w.+]+" if listed else r"[\w.+-]+"  # a hyphen in a listed text is not told from the one between texts
    text = "-".join([field, *map(str, parts)])
    if all(isinstance(part, int | float) or re.fullmatch(letters, str(part), re.ASCII) for part in parts):
        return text
    return f"{re.sub(r'[^A-Za-z0-9_.+-]+', '-', text).strip('-')}-{sha256_bytes(text.encode())[:8]}"


def recipe(name: str) -> RunConfig:
    """Return the configuration of a recipe, or of `timm:NAME`: any timm model with plain settings.

    Raises:
        UserError: There is no such recipe; the message names near ones.
    """
    if name.startswith(TIMM_PREFIX):
        model = name.removeprefix(TIMM_PREFIX)
        if not model:
            raise UserError("timm: needs the name of a model behind it, e.g. timm:resnet18")
        called = f"timm-{model}" if model in recipe_names() else model.replace("/", "_")
        return RunConfig(recipe=called, about=f"{model}{PLAIN_SETTINGS}", model=model)
    for function in RECIPES:
        if function.__name__ == name:
            about = (function.__doc__ or "").strip().splitlines()[0]
            return replace(function(), about=about)
    raise UserError(
        f"no recipe {name!r}{closest(name, recipe_names())}; recipes are {', '.join(recipe_names())}, or timm:NAME for "
        "any timm model"
    )


def probe_of(name: str) -> ProbeConfig:
    """Return the configuration of a linear probe of `timm:NAME`, or of a recipe's network at the recipe's size.

    Example:
        >>> probe_of("timm:convnext_tiny").recipe
        'probe-convnext_tiny'

    Raises:
        UserError: There is no such recipe; the message names near ones.
    """
    network = recipe(name)
    args = {key: value for key, value in network.model_args.items() if key != "drop_path_rate"}
    return ProbeConfig(
        recipe=f"probe-{network.recipe}",
        about=f"{PROBE_OF}{name}",
        model=network.model,
        model_args=args,
        image_size=network.image_size,
    )
