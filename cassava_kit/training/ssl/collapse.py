"""Collapse of embeddings, measured at the head's output, as it hardly shows in the backbone: `find_collapse`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cassava_kit.errors import UserError

# SwAV's loss is ln(prototypes) where all prototypes get the same probability; alarm above this share of it.
UNIFORM_LOSS = 0.995


class CollapseError(UserError):
    """A run's embeddings no longer tell images apart."""


@dataclass(frozen=True)
class Health:
    """How spread embeddings are: `std` is 1 for isotropic and 0 for constant ones, `cosine` the mean between images.

    `usage` is the effective number of prototypes that are nearest to some image, as a share of what this batch could
    use; `uniformity` is SwAV's loss as a share of ln(prototypes).
    """

    std: float
    rank: float
    cosine: float
    usage: float | None = None
    uniformity: float | None = None


@torch.no_grad()
def measure_health(z: Tensor, scores: Tensor | None = None, loss: float | None = None) -> Health:
    """Measure embeddings z (N, d) and, for SwAV, their scores against the prototypes (N, K) and the loss."""
    unit = torch.nn.functional.normalize(z.detach().float(), dim=1)
    n, d = unit.shape
    mean_norm = unit.mean(dim=0).square().sum()
    cosine = (n * mean_norm - 1) / (n - 1)
    std = math.sqrt(d) * unit.std(dim=0).mean()
    usage = prototype_usage(scores) if scores is not None else None
    uniformity = loss / math.log(scores.shape[1]) if scores is not None and loss is not None else None
    return Health(float(std), rank_me(unit), float(cosine), usage, uniformity)


@torch.no_grad()
def rank_me(z: Tensor) -> float:
    """Return exp(entropy of the normalised singular values), 1..min(N, d); NaN for NaN (RankMe, arXiv:2210.02885)."""
    if not torch.isfinite(z).all():
        return math.nan
    values = torch.linalg.svdvals(z.float())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


@torch.no_grad()
def prototype_usage(scores: Tensor) -> float:
    """Return exp(entropy) of how often each prototype is the nearest, as a share of min(N, K)."""
    n, k = scores.shape
    share = torch.bincount(scores.argmax(dim=1), minlength=k).float() / n
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return float(entropy.exp() / min(n, k))


def find_collapse(measured: Health, *, min_std: float, min_rank: float) -> str | None:
    """Return what is wrong with embeddings, in words, or None."""
    if not math.isfinite(measured.std) or not math.isfinite(measured.rank):
        return "the head's output is not finite"
    if measured.std < min_std:
        spread = f"sqrt(d) x std is {measured.std:.3f}, below {min_std:g}"
        return f"embeddings hardly differ: {spread} (mean cosine {measured.cosine:.3f})"
    if measured.rank < min_rank:
        return f"embeddings lie on a line: effective rank {measured.rank:.2f}, below {min_rank:g}"
    if measured.uniformity is not None and measured.uniformity > UNIFORM_LOSS:
        return f"all prototypes get the same probability: the loss is {measured.uniformity:.3f} of ln(prototypes)"
    if measured.usage is not None and measured.usage < 0.05:
        return f"few prototypes are used: {measured.usage:.1%} of those that this batch could use"
    return None
