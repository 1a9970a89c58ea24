"""What several methods are built of: `Queue`, `with_norm`, `momentum_copy`, `momentum_at`, `sinkhorn`."""

from __future__ import annotations

import copy
import math

import torch
from lightly.models.utils import concat_all_gather, deactivate_requires_grad
from lightly.utils import dist
from torch import Tensor, nn


class Queue(nn.Module):
    """A ring of the last `size` embeddings (size, dim), saved with the model.

    lightly's memory bank drops the embeddings that pass its end, and is not saved. Both start with random unit vectors.
    """

    bank: Tensor
    pushed: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("bank", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.long))
        self._was_full = False

    @property
    def full(self) -> bool:
        """Whether every place holds an embedding that was pushed."""
        # Read from the device until it is so, and never again: each reading waits for all work.
        self._was_full = self._was_full or int(self.pushed) >= len(self.bank)
        return self._was_full

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Replace the oldest embeddings by these (N, dim), gathered from all processes."""
        if dist.world_size() > 1:
            embeddings = concat_all_gather(embeddings.contiguous())
        size = len(self.bank)
        latest = embeddings[-size:].to(self.bank.dtype)
        start = self.pushed + len(embeddings) - len(latest)
        places = (start + torch.arange(len(latest), device=self.bank.device)) % size
        self.bank[places] = latest
        self.pushed += len(embeddings)

    def forward(self, output: Tensor, labels: Tensor | None = None, update: bool = False) -> tuple[Tensor, Tensor]:
        """Return `output` unchanged and the negatives (dim, size): the interface that lightly's NTXentLoss calls.

        `update` has no effect: keys enter by `push` after the backward pass, so that the graph's negatives stay valid.
        """
        return output, self.bank.t()


def with_norm(head: nn.Module, norm: str) -> nn.Module:
    """Return the head with each BatchNorm kept (`batch`), replaced by LayerNorm (`layer`) or removed (`none`).

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
    """Return a copy of a network that gets no gradient.

    It is in train mode: lightly's `update_momentum` moves parameters alone, and BatchNorm's statistics come from the
    copy's own batches, as in the papers.
    """
    twin = copy.deepcopy(module)
    deactivate_requires_grad(twin)
    return twin


def momentum_at(step: int, steps: int, start: float, end: float) -> float:
    """Return the share kept at optimizer step `step` of `steps`: a cosine from start to end (BYOL, section 3.1)."""
    return end - (end - start) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1) / 2


@torch.no_grad()
def sinkhorn(scores: Tensor, *, eps: float = 0.05, iterations: int = 3) -> Tensor:
    """Return soft assignments (N, K), rows summing to 1 and columns to about N / K (SwAV, arXiv:2006.09882).

    Computed in the log domain: the published form exponentiates scores / eps, which is NaN in fp16, and overflows in
    fp32 where scores are not normalised. Columns are summed over all processes.
    """
    log_q = scores.float() / eps
    for _ in range(iterations):
        log_q = log_q - _joint_logsumexp(log_q)
        log_q = log_q - torch.logsumexp(log_q, dim=1, keepdim=True)
    return log_q.exp()


def _joint_logsumexp(log_q: Tensor) -> Tensor:
    """Return the logarithm of each column's sum (1, K) over the rows of all processes."""
    columns = torch.logsumexp(log_q, dim=0, keepdim=True)
    if dist.world_size() == 1:
        return columns
    parts = [torch.empty_like(columns) for _ in range(dist.world_size())]
    torch.distributed.all_gather(parts, columns.contiguous())
    return torch.logsumexp(torch.cat(parts), dim=0, keepdim=True)


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether any part of a network computes statistics of the batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
