"""Averages of the weights during training: `make_ema` (timm's exponential one), `make_swa` (torch's plain one)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cassava_kit.models.network import keep_frozen
from cassava_kit.training.config import RunConfig


def make_ema(model: nn.Module, config: RunConfig) -> Any:
    """Return timm's exponential moving average of the weights, or None."""
    if config.ema is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(model, decay=config.ema, use_warmup=True)


def make_swa(model: nn.Module, config: RunConfig) -> torch.optim.swa_utils.AveragedModel | None:
    """Return torch's plain average of the weights after each of the last epochs, or None. Izmailov et al. 2018."""
    return torch.optim.swa_utils.AveragedModel(model) if config.swa_epochs else None


@torch.no_grad()
def renew_statistics(model: nn.Module, batches: Iterable[Any], prepare: Callable[[Any], Tensor]) -> None:
    """Compute BatchNorm's running statistics for averaged weights, as plain means over all batches.

    A frozen norm keeps its own, with which its layers were trained.
    """
    was_training = model.training
    model.train()
    keep_frozen(model)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [module for module in norms if module.track_running_stats and module.training]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the cumulative mean
    if norms:
        device = next(model.parameters()).device
        for batch in batches:
            model(prepare(batch[0].to(device)))
    model.train(was_training)
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
