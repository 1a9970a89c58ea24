"""Seconds that a pretraining takes on this machine's processor, from a few timed steps: `pretraining_seconds`."""

from __future__ import annotations

from cassava_kit.training.ssl.config import PretrainConfig


def pretraining_seconds(config: PretrainConfig, n_images: int, *, threads: int) -> float:
    """Return seconds of all epochs on `n_images`: views are cut and a step is taken; decoding does not count."""
    import torch

    from cassava_kit.training.expected import timed
    from cassava_kit.training.side_by_side import use_threads
    from cassava_kit.training.ssl.batch_views import cut_views
    from cassava_kit.training.ssl.methods import make_ssl_module

    module = make_ssl_module(config)
    size = config.store_size or (config.image_size, config.image_size)
    images = torch.randint(0, 256, (min(config.batch_size, n_images), 3, *size), dtype=torch.uint8)

    def step() -> None:
        generator = torch.Generator().manual_seed(0)
        views = cut_views(images, config.views, mean=config.mean, std=config.std, generator=generator)
        module.compute_loss([view.contiguous(memory_format=torch.channels_last) for view in views]).backward()

    with use_threads(threads):
        return config.epochs * timed(step) / len(images) * n_images
