"""Balanced assignments of embeddings to prototypes, in the log domain."""

from __future__ import annotations

import torch
from lightly.utils import dist
from torch import Tensor


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
