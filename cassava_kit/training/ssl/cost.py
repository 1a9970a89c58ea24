"""Kaggle hours of a pretraining run: `pretrain_hours`."""

from __future__ import annotations

from cassava_kit.training.cost import BACKWARD, T4, Gpu, pass_seconds, precision_slowdown
from cassava_kit.training.ssl.config import PretrainConfig


def pretrain_hours(config: PretrainConfig, n_images: int, *, gpu: Gpu = T4) -> float:
    """Return the hours of two T4s: every view forward and back, and those of the momentum network forward alone."""
    learnt, forward_only = config.passes()
    seconds = pass_seconds(config.backbone, config.views[0].size, config.model_args, gpu=gpu)
    seconds *= precision_slowdown(config.precision, gpu)
    return seconds * config.epochs * n_images * (learnt * (1 + BACKWARD) + forward_only) / 2 / 3600
