"""MoCo v2: a query finds its key among a queue of earlier keys (arXiv:1911.05722, 2003.04297)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle
from lightly.utils import dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from cassava_kit.training.ssl.config import MomentumConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import Queue, has_batch_norm, momentum_copy, with_norm
from cassava_kit.training.ssl.view import ViewConfig

_SOFT: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


class MoCoConfig(MomentumConfig):
    """MoCo v2's settings; the defaults are Chen et al. 2020's, queue and momentum those of He et al. 2019."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2, scale=(0.2, 1.0), **_SOFT),),
        "optimizer": "sgd",
        "base_lr": 0.03,
        "weight_decay": 1e-4,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
        "head_norm": "none",
        "momentum": 0.999,
        "momentum_end": 0.999,
    }
    remedies = "lower base_lr, raise momentum, or use a smaller queue_size"
    sync_batchnorm = False  # its keys are shuffled over devices whose statistics must differ

    method: Literal["moco"] = Field(default="moco", description="Name of the method.")
    temperature: float = Field(default=0.2, gt=0, description="Temperature of the softmax.")
    queue_size: int = Field(default=65536, ge=1, description="Keys kept from earlier batches as negatives.")
    bn_groups: int = Field(
        default=8,
        ge=1,
        description="Groups of a batch with their own BatchNorm statistics, shuffled for the keys.",
    )
    symmetric: bool = Field(
        default=False, description="Each view is query once and key once, not only the first query."
    )

    @model_validator(mode="after")
    def _groups_fit(self) -> MoCoConfig:
        if self.batch_size % self.bn_groups:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of bn_groups ({self.bn_groups})")
        if self.batch_size // self.bn_groups < 2:
            raise ValueError(f"bn_groups={self.bn_groups} leaves fewer than two images a group; use fewer")
        return self

    def one_small_epoch(self, batch_size: int) -> dict[str, Any]:
        """Leave two images to each group of BatchNorm statistics."""
        return super().one_small_epoch(max(batch_size, 2 * self.bn_groups))

    def passes(self) -> tuple[float, float]:
        """Return (1, 1), or (2, 2) where both views are queries and keys."""
        return (2.0, 2.0) if self.symmetric else (1.0, 1.0)


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
