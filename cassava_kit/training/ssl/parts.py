"""Embeddings of earlier batches, in order; part of the state, so that a resumed run has them."""

from __future__ import annotations

import copy
import math

import torch
from lightly.models.utils import concat_all_gather, deactivate_requires_grad
from lightly.utils import dist
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring of the last `size` embeddings (size, dim).

    lightly's memory bank drops what passes its end and is not saved with the model; this one wraps around and is.
    It starts with random unit vectors, as MoCo's does.
    """

    bank: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))

    @property
    def full(self) -> bool:
        """Whether every place holds a real embedding."""
        return int(self.pushed) >= len(self.bank)

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Replace the oldest embeddings by these (N, dim); with several processes, by those of all of them."""
        if dist.world_size() > 1:
            embeddings = concat_all_gather(embeddings.contiguous())
        size = len(self.bank)
        latest = embeddings[-size:].to(self.bank.dtype)
        start = int(self.pushed) + len(embeddings) - len(latest)
        places = (start + torch.arange(len(latest), device=self.bank.device)) % size
        self.bank[places] = latest
        self.pushed += len(embeddings)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor]:
        """The interface of lightly's memory bank, for its NTXentLoss: `output` unchanged and the negatives (dim, size).

        `update` is not obeyed: keys enter by `push`, after the backward pass, so that the graph's negatives stay put.
        """
        return output, self.bank.t()


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


@torch.no_grad()
def sinkhorn(scores: Tensor, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Soft assignments (N, K), each row summing to 1 and each column to about N / K (SwAV, arXiv:2006.09882).

    The published form exponentiates scores / eps: NaN in fp16, and an overflow in fp32 on scores that are not
    normalised. Logarithms of sums are finite for any finite scores, and equal to it elsewhere. With several processes
    the columns are summed over all of them.
    """
    log_q = scores.float() / eps
    for _ in range(iterations):
        log_q = log_q - _joint_logsumexp(log_q)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def _joint_logsumexp(log_q: Tensor) -> Tensor:
    """Logarithm of each column's sum (1, K) over the rows of all processes."""
    columns = torch.logsumexp(log_q, dim=0, keepdim=True)
    if dist.world_size() == 1:
        return columns
    parts = [torch.empty_like(columns) for _ in range(dist.world_size())]
    torch.distributed.all_gather(parts, columns.contiguous())
    return torch.logsumexp(torch.cat(parts), dim=0, keepdim=True)
