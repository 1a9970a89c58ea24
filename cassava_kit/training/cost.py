"""Estimated hours of a recipe on Kaggle's GPUs, from counted operations: `train_hours`."""

from __future__ import annotations

import math
from typing import Any

from cassava_kit.training.config import RunConfig

# Operations a second of one T4 in half precision, from published passes over 15,000 images: ResNet-50 at 224 pixels in
# 13 s, EfficientNet-B4 at 380 in 50 s. Depthwise convolutions wait for memory and are counted apart.
DENSE, DEPTHWISE = 9.5e12, 0.24e12
SINGLE_PRECISION = 2.8  # times slower
BACKWARD = 2  # passes forward that a pass backward costs


def train_hours(config: RunConfig, n_images: int, n_splits: int) -> float:
    """Return hours of two T4s for all folds of a recipe: one fold a GPU at a time, an odd last one keeps both busy.

    Counted are passes over the training rows, and one a validation row and epoch; decoding and augmenting are not.
    """
    forward = pass_seconds(config.model, config.image_size, config.model_args, config.head) * precision_slowdown(
        config.precision
    )
    passes = 1 if config.freeze_backbone else 1 + BACKWARD
    images = config.epochs * n_images * (passes * (n_splits - 1) + 1) / n_splits
    return forward * images * math.ceil(n_splits / 2) / 3600


def pass_seconds(name: str, size: int, model_args: dict[str, Any] | None = None, head: str = "linear") -> float:
    """Return seconds of one T4 for one image forward through a timm model, in half precision; no weights are made."""
    dense, depthwise = count_operations(name, size, model_args, head)
    return dense / DENSE + depthwise / DEPTHWISE


def count_operations(
    name: str, size: int, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> tuple[int, int]:
    """Return the additions and multiplications of one image forward: in all other layers, in depthwise convolutions.

    A published count of multiply-adds (MACs) is half the sum.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cassava_kit.models.network import args_for_size, meta_model

    model, image = meta_model(name, size, model_args=args_for_size(name, size, model_args), head=head)
    depthwise = 0

    def count(layer: Any, _: Any, answer: torch.Tensor) -> None:
        nonlocal depthwise
        depthwise += 2 * answer.numel() * layer.weight[0].numel()

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels > 1:
            layer.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() - depthwise, depthwise


def precision_slowdown(precision: str) -> float:
    """Return how many times slower than half precision a T4 computes."""
    return SINGLE_PRECISION if precision == "32-true" else 1.0
