"""MoCo v2: a query finds its key among a queue of earlier keys (arXiv:1911.05722, 2003.04297)."""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle
from lightly.utils import dist
from torch import Tensor, nn

from cassava_kit.training.ssl.method_settings import MoCoConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import Queue, has_batch_norm, momentum_copy, with_norm


class MoCo(SSLModule):
    """Backbone and head, their momentum copies as the key encoder, and the queue of keys."""

    config_class = MoCoConfig
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        batch_norm = config.head_norm != "none"
        head = MoCoProjectionHead(self.feature_dim, config.hidden_dim, config.output_dim, batch_norm=batch_norm)
        self.projection_head = with_norm(head, config.head_norm) if batch_norm else head
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projection_head = momentum_copy(self.projection_head)
        self.criterion = NTXentLoss(temperature=config.temperature)
        self.criterion.memory_bank = Queue(config.queue_size, config.output_dim)
        self.keys: list[Tensor] = []
        self.shuffles = has_batch_norm(self.backbone) or has_batch_norm(self.projection_head)

    @property
    def queue(self) -> Queue:
        """Keys that serve as negatives."""
        return self.criterion.memory_bank

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return both parts of the network with their copies in the key encoder."""
        return [(self.backbone, self.momentum_backbone), (self.projection_head, self.momentum_projection_head)]

    def compute_loss(self, views: list[Tensor]) -> Tensor:
        """Return the cross-entropy of queries, each with its key against the queue; `symmetric`: of both directions."""
        directions = [(0, 1), (1, 0)] if self.config.symmetric else [(0, 1)]
        losses = []
        for query, key in directions:
            q = self._in_groups(self.backbone, self.projection_head, views[query])
            k = self.encode_keys(views[key])
            self.keys.append(k)
            self.embeddings = q.detach()
            losses.append(self.criterion(q, k))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def encode_keys(self, images: Tensor) -> Tensor:
        """Return unit keys (N, d), shuffled between BatchNorm groups while they are computed.

        Otherwise statistics would give the positive away. Across processes this is MoCo's shuffle. On one device, where
        the paper has none, `bn_groups` stand in for devices: queries are normalised in groups of neighbours, keys in
        groups of a random order.
        """
        spread = dist.world_size() > 1
        if not self.shuffles:
            return nn.functional.normalize(
                self._in_groups(self.momentum_backbone, self.momentum_projection_head, images), dim=1
            )
        images, order = batch_shuffle(images, distributed=spread)
        keys = self._in_groups(self.momentum_backbone, self.momentum_projection_head, images)
        return nn.functional.normalize(batch_unshuffle(keys.contiguous(), order, distributed=spread), dim=1)

    def _in_groups(self, backbone: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
        groups = self.config.bn_groups if self.shuffles else 1
        return torch.cat([head(backbone(part)) for part in images.chunk(groups)]).float()

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Push the batch's keys into the queue, after its gradient is computed."""
        for keys in self.keys:
            self.queue.push(keys)
        self.keys = []
