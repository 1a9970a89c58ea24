"""SwAV: predict a view's cluster assignment from the other views (arXiv:2006.09882)."""

from __future__ import annotations

from itertools import groupby

import torch
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.utils import dist
from torch import Tensor, nn

from cassava_kit.training.ssl.method_settings import N_FULL, SwAVConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import Queue, sinkhorn, with_norm


class SwAV(SSLModule):
    """Backbone, projection head, unit prototypes, and a queue of projections for each full view."""

    config_class = SwAVConfig
    config: SwAVConfig

    def __init__(self, config: SwAVConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        head = SwaVProjectionHead(self.feature_dim, config.hidden_dim, config.output_dim)
        self.projection_head = with_norm(head, config.head_norm)
        self.prototypes = SwaVPrototypes(config.output_dim, config.prototypes)
        for layer in self.prototypes.heads:
            # lightly's has a bias; a prototype is a direction, and a score its cosine.
            layer.register_parameter("bias", None)
        self.queues = nn.ModuleList(
            Queue(config.queue_size, config.output_dim) for _ in range(N_FULL) if config.queue_size
        )
        self.waiting: list[Tensor] = []

    def compute_loss(self, views: list[Tensor]) -> Tensor:
        """Return the mean cross-entropy of all other views' softmax against each full view's assignment."""
        self.prototypes.normalize()
        z = nn.functional.normalize(self.project(views), dim=1)
        scores = self.prototypes(z).float().chunk(len(views))
        n = len(views[0])
        self.waiting = [z[:n].detach(), z[n : 2 * n].detach()]
        self.embeddings, self.scores = self.waiting[0], scores[0].detach()
        codes = [self.assign(scores[v].detach(), v) for v in range(N_FULL)]
        return swapped_prediction(scores, codes, self.config.temperature)

    def project(self, views: list[Tensor]) -> Tensor:
        """Return projections of all views in turn; views of one size pass the backbone together, as the authors do."""
        same_size = [list(group) for _, group in groupby(views, key=lambda view: view.shape[-1])]
        return self.projection_head(torch.cat([self.backbone(torch.cat(group)) for group in same_size])).float()

    @torch.no_grad()
    def assign(self, scores: Tensor, view: int) -> Tensor:
        """Return the balanced assignment (N, K) of a full view, among the queue's when that is in use."""
        together = scores
        if self.queue_in_use:
            queued = self.queues[view].bank[dist.rank() :: dist.world_size()]
            together = torch.cat([scores, self.prototypes(queued).float()])
        assigned = sinkhorn(together, eps=self.config.sinkhorn_eps, iterations=self.config.sinkhorn_iterations)
        return assigned[: len(scores)]

    @property
    def queue_in_use(self) -> bool:
        """Whether there is a queue and it is full; it is filled from `queue_from_epoch` on."""
        return bool(self.queues) and all(queue.full for queue in self.queues)

    def before_step(self) -> None:
        """Drop the prototypes' gradient in the first epochs, as the authors do, which DDP allows as well."""
        if self.current_epoch < self.config.prototypes_frozen_epochs:
            for parameter in self.prototypes.parameters():
                parameter.grad = None

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Push the batch's projections into the queues, after its gradient is computed, from the queue's epoch on."""
        if self.current_epoch >= self.config.queue_from_epoch:
            for queue, z in zip(self.queues, self.waiting, strict=False):
                queue.push(z)
        self.waiting = []


def swapped_prediction(scores: tuple[Tensor, ...] | list[Tensor], codes: list[Tensor], temperature: float) -> Tensor:
    """Return SwAV's loss of scores (N, K) of all views, full ones first, and assignments (N, K) of the full ones.

    Equal to lightly's SwaVLoss, whose own Sinkhorn cannot be replaced.
    """
    log_p = [torch.log_softmax(score / temperature, dim=1) for score in scores]
    losses = [
        -(code * log_p[v]).sum(dim=1).mean() for i, code in enumerate(codes) for v in range(len(scores)) if v != i
    ]
    return torch.stack(losses).mean()
