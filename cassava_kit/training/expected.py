"""Seconds that training takes on this machine, from a few timed steps. Entry point: `fold_seconds`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cassava_kit.training.config import RunConfig

SAMPLE = 8  # images that are augmented to time it
TIMED_OPERATIONS = 2e10  # at most so many in a timed step: some seconds of one core
TIMED_STEPS = 2


def fold_seconds(config: RunConfig, paths: Sequence[Path], n_splits: int, *, threads: int) -> float:
    """Return seconds of one fold: training, validation and prediction of the rows held out, measured by a few steps.

    `paths` are the table's images, of which a few are read. Decoding counts where no pixel cache holds the images. On a
    GPU the steps are timed there, and all cores load meanwhile.
    """
    import torch

    from cassava_kit.data.images import ImageError
    from cassava_kit.inference.machine import cpu_count
    from cassava_kit.models.network import args_for_size, create_model
    from cassava_kit.training.cost import set_for_a_step
    from cassava_kit.training.devices import Devices, uses_gpu
    from cassava_kit.training.side_by_side import step_operations, use_threads

    try:
        loading = item_seconds(config, paths)
    except ImageError:  # the images tried are broken: what training makes of them is not known
        loading = 0.0
    per_image = step_operations(config.model, config.image_size, json.dumps(config.model_args, sort_keys=True), 1)
    n = max(1, min(config.batch_size, int(TIMED_OPERATIONS / per_image)))
    args = args_for_size(config.model, config.image_size, config.model_args)
    device = "cuda" if uses_gpu(Devices()) else "cpu"
    model = create_model(config.model, 2, model_args=args, head=config.head)
    model = model.to(device, memory_format=torch.channels_last)
    set_for_a_step(model, config)
    images = torch.zeros(n, 3, config.image_size, config.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    kind = torch.float16 if config.precision == "16-mixed" and device == "cuda" else torch.bfloat16
    half = torch.autocast(device, kind, enabled=config.precision != "32-true")
    with use_threads(threads), half:
        step = timed(lambda: model(images).sum().backward(), device) / n
        model.eval()
        with torch.no_grad():
            forward = timed(lambda: model(images), device) / n
    held_out = len(paths) / n_splits
    rows = config.epochs * (len(paths) - held_out)
    training = rows * (step + loading if device == "cpu" else max(step, loading / cpu_count()))
    return training + (config.epochs + 1) * held_out * forward


def item_seconds(config: RunConfig, paths: Sequence[Path]) -> float:
    """Return seconds to bring one image to a training step: augmented, and decoded where no cache can hold it."""
    import pandas as pd

    from cassava_kit.data.images import load_image, read_image
    from cassava_kit.training.loaders import training_set

    tried = list(paths[:SAMPLE])
    load: Callable[[Path], np.ndarray] = read_image
    if config.train_pixels is not None:
        kept = {path: load_image(path, config.train_pixels) for path in tried}
        load = kept.__getitem__
    rows = training_set(config, tried, pd.Series([0] * len(tried)), load)
    return timed(lambda: [rows[index] for index in range(len(tried))]) / len(tried)


def timed(call: Callable[[], object], device: str = "cpu") -> float:
    """Return the seconds of a call, the mean of a few after one to warm up."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    call()
    wait()
    started = time.perf_counter()
    for _ in range(TIMED_STEPS):
        call()
    wait()
    return (time.perf_counter() - started) / TIMED_STEPS
