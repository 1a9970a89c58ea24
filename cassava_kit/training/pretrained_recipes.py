"""Recipes that finetune published backbones of 2021 to 2024: families of their own, for an ensemble's sake.

Classes are never balanced: with the competition's noisy labels that costs accuracy. `recipes.RECIPES` lists them.
"""

from __future__ import annotations

from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig


def convnext_small() -> RunConfig:
    """ConvNeXt-S (ImageNet-12k, timm) at 384 pixels: AdamW 1e-4, layer decay .8, drop path .2, EMA.

    Finetuning of Liu et al. 2022, "A ConvNet for the 2020s", appendix A: layer decay, drop path, smoothing, an average
    of the weights, next to no weight decay; their rate for batches of 512, brought to 32. Layers as timm counts them.
    """
    return RunConfig(
        recipe="convnext_small",
        model="convnext_small.in12k_ft_in1k_384",
        model_args={"drop_path_rate": 0.2},
        image_size=384,
        epochs=12,
        batch_size=16,
        accumulate=2,
        lr=1e-4,
        layer_decay=0.8,
        layer_decay_by="block",
        weight_decay=1e-8,
        warmup_epochs=1,
        ema=0.999,
        augmentation="strong",
        precision="16-mixed",
    )


def convnext_base() -> RunConfig:
    """ConvNeXt-B (CLIP on LAION-2B, then ImageNet-12k) at 384 pixels, like convnext_small at half the rate."""
    model = "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384"
    return replace(convnext_small(), recipe="convnext_base", model=model, lr=5e-5)


def tiny_vit() -> RunConfig:
    """TinyViT-21M (distilled on ImageNet-22k), convolutions below attention, at 384 pixels: layer decay .8.

    Finetuning of Wu et al. 2022, "TinyViT", as its published configuration has it: layer decay .8, drop path .1.
    """
    return replace(
        convnext_small(),
        recipe="tiny_vit",
        model="tiny_vit_21m_384.dist_in22k_ft_in1k",
        model_args={"drop_path_rate": 0.1},
    )


def eva02_small() -> RunConfig:
    """EVA-02-S (masked images with CLIP's features as targets) at 336 pixels: 5e-5, layer decay .7.

    Finetuning of Fang et al. 2023, "EVA-02": weight decay .05, drop path .1, smoothing .1. Half precision of it is
    unverified on a T4: watch its first losses.
    """
    return replace(
        convnext_small(),
        recipe="eva02_small",
        model="eva02_small_patch14_336.mim_in22k_ft_in1k",
        model_args={"drop_path_rate": 0.1},
        image_size=336,
        lr=5e-5,
        layer_decay=0.7,
        layer_decay_by="stage",  # a ViT's stages are its blocks
        weight_decay=0.05,
    )


def vit_base_clip() -> RunConfig:
    """ViT-B/16 (CLIP on LAION-2B, then ImageNet-12k) at 384 pixels: 5e-5, layer decay .7.

    Dong et al. 2022, "CLIP Itself is a Strong Fine-tuner": a small rate, strong layer decay and an average of the
    weights are what finetuning CLIP needs.
    """
    model = "vit_base_patch16_clip_384.laion2b_ft_in12k_in1k"
    return replace(eva02_small(), recipe="vit_base_clip", model=model, image_size=384)


def dinov2_small() -> RunConfig:
    """ViT-S/14 self-supervised on LVD-142M (DINOv2) at 392 pixels: 5e-5, layer decay .75; ssl_transfer for a ViT.

    Layer decay as self-supervised ViTs are finetuned with it (He et al. 2022, "Masked Autoencoders", table 9). 392 is
    28 patches of 14; the published 518 costs twice as much.
    """
    model = "vit_small_patch14_dinov2.lvd142m"
    return replace(eva02_small(), recipe="dinov2_small", model=model, image_size=392, layer_decay=0.75)


def dinov2_base() -> RunConfig:
    """ViT-B/14 self-supervised on LVD-142M (DINOv2) at 392 pixels, like dinov2_small."""
    return replace(dinov2_small(), recipe="dinov2_base", model="vit_base_patch14_dinov2.lvd142m")


def dinov2_top() -> RunConfig:
    """ViT-S/14 of DINOv2 at 224 pixels, the top four blocks trained: the ViT that two CPU cores allow.

    The lower blocks are frozen, which takes nearly half of a step away, and keeps what 142 M images taught them. The
    rate is four times dinov2_small's: a few hundred images make a few hundred steps, not thousands.
    """
    return replace(
        dinov2_small(),
        recipe="dinov2_top",
        image_size=224,
        lr=2e-4,
        keep_stages=4,
        train_pixels=(240, 320),
        batch_size=32,
        accumulate=1,
        ema=0.99,
        augmentation="light",
        precision="bf16-mixed",
    )


def efficientnet_lite0() -> RunConfig:
    """EfficientNet-Lite0 (ImageNet) at 224 pixels: for two CPU cores, like mobilenet, its average kept."""
    return RunConfig(
        recipe="efficientnet_lite0",
        model="tf_efficientnet_lite0.in1k",
        image_size=224,
        train_pixels=(240, 320),
        epochs=12,
        batch_size=32,
        lr=1e-3,
        layer_decay=0.8,
        warmup_epochs=1,
        ema=0.99,
    )


def efficientnet_lite2() -> RunConfig:
    """EfficientNet-Lite2 (ImageNet) at 260 pixels: twice the cost of efficientnet_lite0, and as much more to see."""
    return replace(
        efficientnet_lite0(),
        recipe="efficientnet_lite2",
        model="tf_efficientnet_lite2.in1k",
        image_size=260,
        train_pixels=(280, 374),
    )
