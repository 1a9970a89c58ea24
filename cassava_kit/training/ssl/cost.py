"""cassava_kit.training.ssl.cost."""

from __future__ import annotations

from cassava_kit.training.cost import BACKWARD, _slower, pass_seconds
from cassava_kit.training.ssl.config import PretrainConfig


def pretrain_hours(config: PretrainConfig, n_images: int) -> float:
    """Hours of two T4s for a pretraining run: every view forward and back, and those the momentum network sees."""
    area = config.views[0].size ** 2
    full = sum(view.count for view in config.views if view.size**2 == area)
    views = sum(view.count * view.size**2 / area for view in config.views)
    seen = {"byol": full, "moco": full if config.symmetric else 1, "simclr": 0, "swav": 0}[config.method]
    learnt = views if config.method != "moco" or config.symmetric else 1
    forward = pass_seconds(config.backbone, config.views[0].size, config.model_args) * _slower(config.precision)
    return forward * config.epochs * n_images * (learnt * (1 + BACKWARD) + seen) / 2 / 3600
