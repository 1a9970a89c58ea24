"""Embeddings of earlier batches, in order; part of the state, so that a resumed run has them."""

from __future__ import annotations

import torch
from lightly.models.utils import concat_all_gather
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
