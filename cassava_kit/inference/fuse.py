"""Batch normalisation folded into the convolution before it: `fuse_conv_bn`; fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

FUSED_TOLERANCE = 1e-3
Pair = tuple[nn.Conv2d, str, nn.BatchNorm2d]  # a convolution, its norm layer and that layer's name


def fuse_conv_bn(model: nn.Module, size: tuple[int, int]) -> int:
    """Fold every BatchNorm2d that reads exactly one convolution's output into it; return how many.

    torch.fx's pass does nothing on timm's EfficientNets, whose norm layers carry the activation: here the pairs are
    seen in one forward pass of a model in eval mode. The fused model must answer as before (relative difference of
    the logits below 1e-3), or it is put back as it was and 0 is returned.
    """
    probe = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    pairs, before = _find_pairs(model, probe)
    undo = [(conv, conv.weight, conv.bias, name, norm) for conv, name, norm in pairs]
    for conv, name, norm in pairs:
        _fold(conv, norm)
        model.set_submodule(name, _remaining_module(norm))
    with torch.inference_mode():
        after = model(probe)
    # Weights that are no numbers are for the run to name: nothing is fused then.
    scale = float(before.nan_to_num().abs().max())
    if pairs and not torch.allclose(before, after, rtol=FUSED_TOLERANCE, atol=FUSED_TOLERANCE * scale):
        for conv, weight, bias, name, norm in undo:
            conv.weight, conv.bias = weight, bias
            model.set_submodule(name, norm)
        return 0
    return len(pairs)


def _find_pairs(model: nn.Module, probe: torch.Tensor) -> tuple[list[Pair], torch.Tensor]:
    """Convolutions and the norm layers that read their outputs, as one forward pass shows them, and its answer."""
    names = {module: name for name, module in model.named_modules()}
    made_by: dict[int, nn.Conv2d] = {}
    alive: list[torch.Tensor] = []  # keeps outputs alive, so that no later one gets the id of an earlier one
    read: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def after_conv(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] += 1
        made_by[id(output)] = module
        alive.append(output)

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] += 1
        if id(inputs[0]) in made_by:
            read.append((made_by[id(inputs[0])], module))

    handles = [m.register_forward_hook(after_conv) for m in names if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(before_norm) for m in names if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode():
            answer = model(probe)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(conv for conv, _ in read)
    whole = [(c, n) for c, n in read if readers[c] == calls[c] == calls[n] == 1 and _foldable(c, n)]
    return [(conv, names[norm], norm) for conv, norm in whole], answer


def _foldable(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    """A convolution that computes with its weight as stored (no weight standardisation), and a norm with statistics."""
    plain = type(conv).__name__ in ("Conv2d", "Conv2dSame")
    return plain and not norm.training and norm.running_mean is not None


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight, conv.bias = weight, bias


def _remaining_module(norm: nn.BatchNorm2d) -> nn.Module:
    """The activation that timm's norm layers carry, or nothing."""
    carried = [module for module in (getattr(norm, "drop", None), getattr(norm, "act", None)) if module is not None]
    kept = [module for module in carried if not isinstance(module, nn.Identity)]
    return nn.Sequential(*kept) if kept else nn.Identity()
