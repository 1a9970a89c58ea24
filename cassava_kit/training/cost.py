"""Estimated hours of a recipe on Kaggle's GPUs, from counted operations: `train_hours`, `fold_hours`.

What was counted stays in a file of the kit's cache: counting a network takes up to a second, and needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from cassava_kit.errors import UserError
from cassava_kit.files import KIT_VERSION, cache_dir, read_json, write_json
from cassava_kit.training.config import RunConfig

if TYPE_CHECKING:
    from torch import nn

BACKWARD = 2  # passes forward that a pass backward costs


@dataclass(frozen=True)
class Gpu:
    """Speed of one GPU, and of the processor beside it.

    `dense`: operations a second in half precision. `depthwise`: outputs a second of depthwise convolutions, which wait
    for memory whatever their kernel's size. `single_precision`: how many times slower single precision is. `cores`:
    processor cores for each GPU. `name` is a part of what the driver calls it.
    """

    name: str
    dense: float
    depthwise: float
    single_precision: float
    cores: int


# From published passes over 15,000 images: ResNet-50 at 224 pixels in 13 s, EfficientNet-B4 at 380 in 50 s.
T4 = Gpu("T4", dense=9.5e12, depthwise=7.9e9, single_precision=2.8, cores=2)
# Seconds of one processor core for a photograph of 800 x 600: decoding it, and augmenting it (for each image, and for
# each pixel of the result), measured by process time on 40 photographs.
DECODE = 2.7e-3
AUGMENT = {"none": (0.3e-3, 8e-9), "light": (0.4e-3, 1.2e-9), "strong": (0.6e-3, 6.2e-9)}


class Operations(NamedTuple):
    """Additions and multiplications of one image forward: all layers', depthwise convolutions' among them.

    A published count of multiply-adds (MACs) is half of `every`. `outputs` are the numbers that depthwise convolutions
    write, `weights` the network's own.
    """

    every: int
    depthwise: int
    outputs: int
    weights: int


def train_hours(config: RunConfig, n_images: int, n_splits: int, *, gpu: Gpu = T4) -> float:
    """Return hours of two GPUs for all folds of a recipe: one fold a GPU at a time, an odd last one keeps both busy."""
    return fold_hours(config, n_images, n_splits, gpu=gpu) * math.ceil(n_splits / 2)


def fold_hours(config: RunConfig, n_images: int, n_splits: int, *, gpu: Gpu = T4) -> float:
    """Return hours of one GPU for one fold: what takes longer, the network or the loader beside it."""
    n_validation = n_images / n_splits
    seconds = epoch_seconds(config, n_images - n_validation, n_validation, gpu=gpu)
    return config.epochs * seconds / 3600


def epoch_seconds(config: RunConfig, n_training: float, n_validation: float, *, gpu: Gpu = T4) -> float:
    """Return seconds of an epoch: a pass forward and backward a training row, one forward a validation row.

    The loader decodes and augments on the processor meanwhile, and counts where it is slower.
    """
    forward = pass_seconds(config.model, config.image_size, config.model_args, config.head, gpu=gpu)
    forward *= precision_slowdown(config.precision, gpu)
    network = forward * ((1 + backward_passes(config)) * n_training + n_validation)
    return max(network, loader_seconds(config, n_training, n_validation) / gpu.cores)


def loader_seconds(config: RunConfig, n_training: float, n_validation: float) -> float:
    """Return seconds of one processor core that an epoch's images take: decoded, unless a cache holds them, augmented.

    With `train_pixels` a run may keep decoded pixels (--cache), which is taken for granted.
    """
    decode = 0.0 if config.train_pixels else DECODE
    each, pixel = AUGMENT[config.augmentation]
    augment = 0.0 if config.augment_on == "device" else each + pixel * config.image_size**2
    return n_training * (decode + augment) + n_validation * decode


def backward_passes(config: RunConfig) -> float:
    """Return the cost of the pass backward in passes forward: none below what is trained.

    Where the top stages alone are trained (`keep_stages`), their share of the operations counts.
    """
    if config.freeze_backbone:
        return 0.0
    return BACKWARD if config.keep_stages is None else BACKWARD * trained_share(config)


def trained_share(config: RunConfig) -> float:
    """Return the trained part's share of a pass backward through the whole network, in operations."""
    network = [config.model, config.image_size, config.model_args, config.head, config.keep_stages]
    return _kept(network, lambda: [_trained_share(config)])[0]


def _trained_share(config: RunConfig) -> float:
    """Return the share, counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cassava_kit.models.network import args_for_size, free_stages, meta_model

    args = args_for_size(config.model, config.image_size, config.model_args)
    found = []
    for keep in (config.keep_stages, None):
        model, image = meta_model(config.model, config.image_size, model_args=args, head=config.head)
        if keep is not None:
            free_stages(model, keep)
        with FlopCounterMode(display=False) as forward:
            answer = model(image)
        with FlopCounterMode(display=False) as backward, torch.enable_grad():
            answer.sum().backward()
        found.append(backward.get_total_flops() / forward.get_total_flops())
    return found[0] / found[1]


def set_for_a_step(model: nn.Module, config: RunConfig) -> None:
    """Put a network into the state of a training step: what the recipe freezes is frozen."""
    from cassava_kit.models.network import free_stages, freeze_backbone, keep_frozen

    if config.freeze_backbone:
        freeze_backbone(model)
    if config.keep_stages is not None:
        free_stages(model, config.keep_stages)
    keep_frozen(model.train())


def kept_bytes(config: RunConfig) -> int:
    """Return the bytes that a training step keeps of one image for the pass backward, in single precision."""
    network = [config.model, config.image_size, config.model_args, config.head, config.keep_stages]
    return int(_kept([*network, config.freeze_backbone], lambda: [_kept_bytes(config)])[0])


def _kept_bytes(config: RunConfig) -> int:
    """Return the bytes, counted: each tensor once, parameters and buffers not."""
    import torch

    from cassava_kit.models.network import args_for_size, meta_model

    args = args_for_size(config.model, config.image_size, config.model_args)
    model, image = meta_model(config.model, config.image_size, model_args=args, head=config.head)
    set_for_a_step(model, config)
    own = {each.untyped_storage()._cdata for each in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in own:
            kept.setdefault(storage, tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image.repeat(2, 1, 1, 1))  # BatchNorm wants two
    return sum(each.untyped_storage().nbytes() for each in kept.values()) // 2


def pass_seconds(
    name: str, size: int, model_args: dict[str, Any] | None = None, head: str = "linear", *, gpu: Gpu = T4
) -> float:
    """Return seconds of one GPU for one image forward through a timm model, in half precision; no weights are made."""
    found = count_operations(name, size, model_args, head)
    return (found.every - found.depthwise) / gpu.dense + found.outputs / gpu.depthwise


def count_operations(
    name: str, size: int, model_args: dict[str, Any] | None = None, head: str = "linear"
) -> Operations:
    """Return the operations of one image forward through a timm model; no weights are made.

    Raises:
        UserError: timm does not know the model, or it does not take images of this size (`check_image_size`).
    """
    found = _kept([name, size, model_args or {}, head], lambda: _count(name, size, model_args or {}, head))
    return Operations(*map(int, found))


def _kept(network: list[Any], count: Callable[[], Any]) -> list[float]:
    """Return what was counted of a network, by this kit, torch and timm: here before, or now, and kept in the cache."""
    libraries = "-".join([KIT_VERSION, version("torch"), version("timm")])
    counts = _read_counts(libraries)
    key = json.dumps(network, sort_keys=True)
    if key not in counts:
        counts[key] = list(count())
        with suppress(OSError):  # it is counted again next time
            write_json(cache_dir() / f"operations-{libraries}.json", counts)
    return counts[key]


@cache
def _read_counts(libraries: str) -> dict[str, list[float]]:
    """Return the counts of the cache's file by network; none where it is missing or damaged."""
    try:
        kept = read_json(cache_dir() / f"operations-{libraries}.json")
    except (OSError, UserError):
        return {}
    return {key: counts for key, counts in kept.items() if _are_counts(counts)} if isinstance(kept, dict) else {}


def _are_counts(counts: Any) -> bool:
    """Return whether a value of the cache's file is one share, or the numbers of `Operations`."""
    return (
        isinstance(counts, list)
        and len(counts) in (1, len(Operations._fields))
        and all(isinstance(n, int | float) and n >= 0 for n in counts)
    )


def _count(name: str, size: int, model_args: dict[str, Any], head: str) -> Operations:
    """Return the operations, counted."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cassava_kit.models.network import args_for_size, check_image_size, meta_model

    check_image_size(name, size, model_args)
    args = args_for_size(name, size, model_args)
    model, image = meta_model(name, size, model_args=args, head=head)
    depthwise = outputs = 0

    def count(layer: torch.nn.Conv2d, _: Any, answer: torch.Tensor) -> None:
        nonlocal depthwise, outputs
        numbers = answer.numel()
        if layer.groups == layer.in_channels > 1:
            depthwise += 2 * numbers * layer.weight[0].numel()
            outputs += numbers

    for layer in model.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(count)
    model.requires_grad_(False)  # torch's counter looks for gradients of a PiT's inputs, which are none here
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    weights = sum(parameter.numel() for parameter in model.parameters())
    return Operations(counter.get_total_flops(), depthwise, outputs, weights)


def precision_slowdown(precision: str, gpu: Gpu = T4) -> float:
    """Return how many times slower than half precision a GPU computes."""
    return gpu.single_precision if precision == "32-true" else 1.0
