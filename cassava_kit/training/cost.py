"""What a recipe costs on Kaggle's GPUs, from counted operations: an estimate, for planning a week's hours."""

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
    """Hours of two T4s for every fold of a recipe, a fold on each at a time, so that an odd one holds both.

    Counted are passes over the training rows, and one a validation row and epoch; decoding and augmenting are not.
    """
    forward = pass_seconds(config.model, config.image_size, config.model_args, config.head) * _slower(config.precision)
    passes = 1 if config.freeze_backbone else 1 + BACKWARD
    images = config.epochs * n_images * (passes * (n_splits - 1) + 1) / n_splits
    return forward * images * math.ceil(n_splits / 2) / 3600


def pass_seconds(name: str, size: int, model_args: dict[str, Any] | None = None, head: str = "linear") -> float:
    """Seconds of one T4 for one image forward through a timm model, in half precision; no weights are made."""
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
    return (counter.get_total_flops() - depthwise) / DENSE + depthwise / DEPTHWISE


def _slower(precision: str) -> float:
    return SINGLE_PRECISION if precision == "32-true" else 1.0
