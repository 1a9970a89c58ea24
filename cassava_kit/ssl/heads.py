"""lightly's heads, and what stands in their BatchNorm's place where a batch must not matter."""

from __future__ import annotations

from torch import nn


def with_norm(head: nn.Module, norm: str) -> nn.Module:
    """The head with each BatchNorm kept (`batch`), made a LayerNorm (`layer`) or taken out (`none`).

    lightly's linear layers before a norm have no bias; without the norm they get one.
    """
    if norm == "batch":
        return head
    layers = head.layers
    kept: list[nn.Module] = []
    for layer in layers:
        if not isinstance(layer, nn.BatchNorm1d):
            kept.append(layer)
        elif norm == "layer":
            kept.append(nn.LayerNorm(layer.num_features))
        else:
            kept[-1] = nn.Linear(kept[-1].in_features, layer.num_features)
    head.layers = nn.Sequential(*kept)
    return head
