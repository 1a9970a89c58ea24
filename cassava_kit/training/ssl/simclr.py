"""SimCLR: the two views of an image find each other among all views of the batch (arXiv:2002.05709)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from pydantic import Field
from torch import Tensor, nn

from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import with_norm
from cassava_kit.training.ssl.view import ViewConfig


class SimCLRConfig(PretrainConfig):
    """SimCLR's settings; the defaults are Chen et al. 2020's, who train in batches of 4,096."""

    paper: ClassVar[dict[str, Any]] = {
        "views": (ViewConfig(count=2),),
        "optimizer": "lars",
        "base_lr": 0.3,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
        "hidden_dim": 2048,
        "output_dim": 128,
    }
    remedies = "lower base_lr, warm up longer, or raise the temperature"

    method: Literal["simclr"] = Field(default="simclr", description="Name of the method.")
    temperature: float = Field(default=0.1, gt=0, description="Temperature of the softmax.")

    def accumulation_warning(self) -> str:
        """Negatives come from one batch."""
        return (
            f"accumulate={self.accumulate} does not make a larger batch for simclr: its negatives come from batches of "
            f"{self.batch_size} all the same; use method moco, whose queue holds negatives"
        )


class SimCLR(SSLModule):
    """Backbone, projection head of two layers, NT-Xent over the batches of all processes."""

    config_class = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        head = SimCLRProjectionHead(self.feature_dim, config.hidden_dim, config.output_dim)
        self.projection_head = with_norm(head, config.head_norm)
        self.criterion = NTXentLoss(temperature=config.temperature, gather_distributed=True)

    def compute_loss(self, views: list[Tensor]) -> Tensor:
        """Return NT-Xent of the two views, which pass the network as one batch, as in the authors' code."""
        z = self.projection_head(self.backbone(torch.cat(views))).float()
        z0, z1 = z.chunk(2)
        self.embeddings = z0.detach()
        return self.criterion(z0, z1)
