"""SimCLR: the two views of an image find each other among all views of the batch (arXiv:2002.05709)."""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from cassava_kit.training.ssl.method_settings import SimCLRConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import with_norm


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
