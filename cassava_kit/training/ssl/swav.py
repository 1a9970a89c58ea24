"""SwAV: predict a view's cluster assignment from the other views (arXiv:2006.09882)."""

from __future__ import annotations

from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from lightly.utils import dist
from pydantic import Field, model_validator
from torch import Tensor, nn

from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import Queue, sinkhorn, with_norm
from cassava_kit.training.ssl.view import ViewConfig

N_FULL = 2


class SwAVConfig(PretrainConfig):
    """SwAV's settings; the defaults are Caron et al. 2020's, with the authors' values for batches of 256."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2, scale=(0.14, 1.0)), ViewConfig(size=96, count=6, scale=(0.05, 0.14))),
        "optimizer": "lars",
        "base_lr": 0.6,
        "weight_decay": 1e-6,
        "warmup_epochs": 0,
        "hidden_dim": 2048,
        "output_dim": 128,
    }
    remedies = "set sinkhorn_eps=0.03, freeze prototypes longer, soften the crops, or use a smaller or later queue"

    method: Literal["swav"] = Field(default="swav", description="Name of the method.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the softmax.")
    queue_size: int = Field(default=3840, ge=0, description="Projections kept from earlier batches, 0 for none.")
    queue_from_epoch: int = Field(default=15, ge=0, description="First epoch that uses the queue.")
    prototypes: int = Field(default=3000, ge=2, description="Number of prototypes.")
    prototypes_frozen_epochs: int = Field(
        default=1, ge=0, description="First epochs in which the prototypes are not updated."
    )
    sinkhorn_eps: float = Field(default=0.05, gt=0, description="Smoothness of the assignments.")
    sinkhorn_iterations: int = Field(default=3, ge=1, description="Steps of Sinkhorn-Knopp.")

    def check_views(self) -> None:
        """Check that there are two full views and at most one kind of small crop.

        Raises:
            ValueError: There are not. Pydantic collects the message, and the user sees a UserError.
        """
        if self.views[0].count != N_FULL or len(self.views) > 2:
            raise ValueError("swav takes two full views (count 2) and at most one kind of small crop")

    @model_validator(mode="after")
    def _queue_fits(self) -> SwAVConfig:
        if self.queue_size and self.queue_from_epoch >= self.epochs:
            raise ValueError(
                f"queue_from_epoch={self.queue_from_epoch} is never reached in {self.epochs} epochs; set queue_size=0"
            )
        if not self.queue_size and self.queue_from_epoch:
            raise ValueError("queue_from_epoch needs a queue_size; set it to 0")
        return self

    def one_small_epoch(self, batch_size: int) -> dict[str, Any]:
        """Use the queue, if there is one, in the only epoch."""
        return {**super().one_small_epoch(batch_size), "queue_from_epoch": 0}

    def accumulation_warning(self) -> str:
        """Assignments are balanced within one batch."""
        return (
            f"accumulate={self.accumulate} does not make a larger batch for swav: its balanced assignments come from "
            f"batches of {self.batch_size} all the same; use a queue (queue_size=3840)"
        )


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
