"""The momentum network: a copy that follows, and never learns."""

from __future__ import annotations

import copy
import math

from lightly.models.utils import deactivate_requires_grad
from torch import nn


def momentum_copy(module: nn.Module) -> nn.Module:
    """A copy of a network, heads included, that gets no gradient.

    It stays in train mode: lightly's `update_momentum` moves parameters alone, and BatchNorm's statistics then come
    from the copy's own batches, as in the papers.
    """
    twin = copy.deepcopy(module)
    deactivate_requires_grad(twin)
    return twin


def momentum_at(step: int, steps: int, start: float, end: float) -> float:
    """Share kept at optimizer step `step` of `steps`: a cosine from start to end (BYOL, section 3.1)."""
    return end - (end - start) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1) / 2
