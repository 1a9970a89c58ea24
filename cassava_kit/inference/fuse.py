"""Batch normalisation folded into the convolution before it: `fuse_conv_bn`; fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

FUSED_TOLERANCE = 1e-3
PairNames = tuple[tuple[str, str], ...]  # of a convolution and of the norm layer that alone reads its output
# The pairs of architectures that were fused in this process, by the caller's key. Which layer reads which does not
# depend on the weights.
KNOWN: dict[Hashable, PairNames] = {}


def fuse_conv_bn(model: nn.Module, size: tuple[int, int], *, architecture: Hashable | None = None) -> int:
    """Fold every BatchNorm2d that alone reads a convolution's output into it; return how many.

    torch.fx's pass does nothing on timm's EfficientNets, whose norm layers carry the activation: here the pairs are
    seen in one forward pass of a model in eval mode. The fused model must answer as before (relative difference of
    the logits below 1e-3), or it is put back as it was and 0 is returned. Networks of one `architecture` (None: of
    none) are looked at once, and one without norm layers never.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return 0
    known = KNOWN.get(architecture) if architecture is not None else None
    if known is not None:
        undo = _fold_all(model, known)
        if not all(conv.weight.isfinite().all() for conv, *_ in undo):
            return _put_back(model, undo)  # weights that are no numbers are for the run to name
        return len(known)
    probe = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    pairs, before = _find_pairs(model, probe)
    undo = _fold_all(model, pairs)
    with torch.inference_mode():
        after = model(probe)
    # Weights that are no numbers are for the run to name: nothing is fused then.
    scale = float(before.nan_to_num().abs().max())
    if pairs and not torch.allclose(before, after, rtol=FUSED_TOLERANCE, atol=FUSED_TOLERANCE * scale):
        return _put_back(model, undo)
    if architecture is not None:
        KNOWN[architecture] = pairs
    return len(pairs)


Undo = list[tuple[nn.Conv2d, nn.Parameter, nn.Parameter | None, str, nn.Module]]


def _fold_all(model: nn.Module, pairs: PairNames) -> Undo:
    """Fold the pairs, and return what puts them back."""
    undo: Undo = []
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        undo.append((conv, conv.weight, conv.bias, norm_name, norm))
        _fold(conv, norm)
        model.set_submodule(norm_name, _remaining_module(norm))
    return undo


def _put_back(model: nn.Module, undo: Undo) -> int:
    """Put the layers back as they were; returns 0, the number of layers that stay folded."""
    for conv, weight, bias, name, norm in undo:
        conv.weight, conv.bias = weight, bias
        model.set_submodule(name, norm)
    return 0


class _Readers(TorchFunctionMode):
    """Count the operations that make a tensor from each tensor noted in `made_by`, by the convolution that made it."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: dict[int, nn.Conv2d] = {}
        self.count: Counter[nn.Conv2d] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, bool | int | torch.Size | torch.dtype | torch.device):
            for value in _tensors((args, kwargs or {})):
                if id(value) in self.made_by:
                    self.count[self.made_by[id(value)]] += 1
        return result


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    """The tensors in arguments, also in lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _find_pairs(model: nn.Module, probe: torch.Tensor) -> tuple[PairNames, torch.Tensor]:
    """Convolutions and the norm layers that alone read their outputs, as a forward pass shows them; and its answer."""
    names = {module: name for name, module in model.named_modules()}
    readers = _Readers()
    alive: list[torch.Tensor] = []  # keeps outputs alive, so that no later one gets the id of an earlier one
    read: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: Counter[nn.Module] = Counter()

    def after_conv(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] += 1
        readers.made_by[id(output)] = module
        alive.append(output)

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] += 1
        if id(inputs[0]) in readers.made_by:
            read.append((readers.made_by[id(inputs[0])], module))

    handles = [m.register_forward_hook(after_conv) for m in names if isinstance(m, nn.Conv2d)]
    handles += [m.register_forward_pre_hook(before_norm) for m in names if isinstance(m, nn.BatchNorm2d)]
    try:
        with torch.inference_mode(), readers:
            answer = model(probe)
    finally:
        for handle in handles:
            handle.remove()
    whole = [(c, n) for c, n in read if readers.count[c] == calls[c] == calls[n] == 1 and _foldable(c, n)]
    return tuple((names[conv], names[norm]) for conv, norm in whole), answer


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
