"""BYOL: predict the momentum network's projection of the other view; no negatives (arXiv:2006.07733)."""

from __future__ import annotations

import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from torch import Tensor, nn

from cassava_kit.training.ssl.method_settings import BYOLConfig
from cassava_kit.training.ssl.module import SSLModule
from cassava_kit.training.ssl.parts import momentum_copy, with_norm


class BYOL(SSLModule):
    """Backbone, projection and prediction head; the target is a momentum copy of the first two."""

    config_class = BYOLConfig
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, backbone: nn.Module) -> None:
        super().__init__(config, backbone)
        projection = BYOLProjectionHead(self.feature_dim, config.hidden_dim, config.output_dim)
        prediction = BYOLPredictionHead(config.output_dim, config.predictor_dim, config.output_dim)
        self.projection_head = with_norm(projection, config.head_norm)
        self.prediction_head = with_norm(prediction, config.head_norm)
        self.momentum_backbone = momentum_copy(self.backbone)
        self.momentum_projection_head = momentum_copy(self.projection_head)
        self.criterion = NegativeCosineSimilarity()

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return backbone and projection head with their copies: only the online network predicts."""
        return [(self.backbone, self.momentum_backbone), (self.projection_head, self.momentum_projection_head)]

    def compute_loss(self, views: list[Tensor]) -> Tensor:
        """Return the sum over both directions of |p - z|^2 of unit vectors, 2 - 2 cos, in 0..8: equation 2."""
        x0, x1 = views
        z0, z1 = (self.projection_head(self.backbone(x)) for x in views)
        self.embeddings = z0.detach().float()
        p0, p1 = (self.prediction_head(z).float() for z in (z0, z1))
        return 4 + 2 * (self.criterion(p0, self.target(x1)) + self.criterion(p1, self.target(x0)))

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """Return the momentum network's projection z (N, d), through which no gradient flows."""
        return self.momentum_projection_head(self.momentum_backbone(images)).float()
