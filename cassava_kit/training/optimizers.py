"""Optimisers over a model's parts, each part at its own rate, and the schedules of these rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cassava_kit.models.network import head_parameters, stages
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import zero_optimizer

KINDS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adadelta": torch.optim.Adadelta,
    "sgd": torch.optim.SGD,
}


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return the trainable parameters by rate and by whether they decay; vectors and biases do not.

    Nor do those that a timm model names (`no_weight_decay`): position embeddings, class tokens. `scales` multiply the
    rate by parameter name; default: one rate for all.
    """
    exempt = set(module.no_weight_decay()) if hasattr(module, "no_weight_decay") else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if scales is None else scales[name]
            groups.setdefault((scale, parameter.ndim > 1 and name not in exempt), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * scale, "weight_decay": weight_decay if decays else 0.0}
        for (scale, decays), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def lr_scales(model: nn.Module, config: RunConfig) -> dict[str, float]:
    """Return each parameter's share of the head's learning rate, by name.

    The head learns at `lr`, the backbone at its share of it, times `layer_decay` for each of timm's stages or blocks
    below the head (layerwise learning-rate decay, Clark et al. 2020, "ELECTRA").
    """
    head = head_parameters(model)
    scales = {name: 1.0 if name in head else config.backbone_lr_scale for name, _ in model.named_parameters()}
    if config.layer_decay < 1:
        parts = stages(model, coarse=config.layer_decay_by == "stage")
        for depth, names in enumerate(parts):
            for name in names:
                scales[name] *= config.layer_decay ** (len(parts) - depth)
    return scales


def make_optimizer(
    groups: list[dict[str, Any]],
    name: str,
    *,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """Return torch's optimiser of that name, or lightly's LARS; `sharded` spreads its state over processes (ZeRO-1).

    `momentum` is that of sgd and lars, `nesterov` chooses sgd's form of it.
    """
    if name == "lars":
        from lightly.utils.lars import LARS

        return LARS(groups, lr=lr, momentum=momentum)
    arguments: dict[str, Any] = {"lr": lr}
    if name == "sgd":
        arguments |= {"momentum": momentum, "nesterov": nesterov and momentum > 0}
    if name in ("adam", "adamw"):
        arguments["betas"] = (0.9, 0.999)  # torch's own; named, so that a one-cycle schedule finds them when sharded
    if sharded:
        return zero_optimizer(groups, KINDS[name], arguments)
    return KINDS[name](groups, **arguments)


def attach_schedule(optimizer: torch.optim.Optimizer, config: RunConfig, total_steps: int, warmup_steps: int) -> Any:
    """What Lightning's `configure_optimizers` returns for the configured schedule."""
    schedulers = torch.optim.lr_scheduler
    if config.schedule == "plateau":
        patience = max(1, (config.early_stopping or 6) // 3)
        plateau = schedulers.ReduceLROnPlateau(optimizer, factor=0.3, patience=patience)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
    if config.schedule == "onecycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = max(total_steps + 1, 5)  # a rise of a quarter needs five: with four torch divides by zero
        schedule: Any = schedulers.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.25)
    else:
        schedule = schedulers.LambdaLR(optimizer, lambda step: lr_factor(step, config, total_steps, warmup_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def lr_factor(step: int, config: RunConfig, total_steps: int, warmup_steps: int) -> float:
    """Share of the highest rate at a step: linear warm-up, then constant or half a cosine.

    The cosine ends at 0; where weights are averaged, it ends at `swa_lr_scale` when the averaging begins, and stays.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "constant":
        return 1.0
    last = config.swa_lr_scale if config.swa_epochs else 0.0
    falling = total_steps * (config.epochs - config.swa_epochs) / config.epochs - warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1.0, falling))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * done))
