"""Checkpoints and image files in, probabilities out: `predict_images`, for validation, OOF and the verb predict."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.data.listing import relative_names
from cassava_kit.data.progress import count_steps
from cassava_kit.errors import UserError
from cassava_kit.models.checkpoint import CheckpointInfo, read_info

BATCH_SIZES = {"cpu": 16, "cuda": 64}


def predict_images(
    checkpoints: Sequence[Path],
    paths: Sequence[Path],
    *,
    views: str | Any = "none",
    batch_size: int | None = None,
    device: str | Sequence[str] = "auto",
    progress: bool = True,
) -> tuple[np.ndarray, list[str]]:
    """Return probabilities (M, N, K) float32 of M checkpoints for N image files, and the names of files that failed.

    Every checkpoint sees its own input size, pixels and statistics, and the mean over `views` (a preset of `tta`, or
    a ttach Compose) of its softmax. A file that cannot be read gets the checkpoint's prior (even shares without).
    """
    from cassava_kit.inference.machine import usable_devices
    from cassava_kit.inference.pixels import PixelStore
    from cassava_kit.inference.runner import Runner
    from cassava_kit.inference.tta import make_views

    infos = [read_info(path) for path in checkpoints]
    if not infos or len({info.n_classes for info in infos}) != 1:
        raise UserError(f"expected checkpoints for the same classes, got {[info.n_classes for info in infos]}")
    seen = [make_views(views, size=info.input_size) for info in infos]
    out = np.zeros((len(infos), len(paths), infos[0].n_classes), np.float32)
    devices = usable_devices(device)
    passes = sum(map(len, seen))
    with (
        PixelStore(
            paths, [info.input_size for info in infos], keep=len(infos) > 1, pinned=devices[0].type == "cuda"
        ) as store,
        count_steps("Predicting", passes * len(paths), show=progress) as count,
    ):
        runner = Runner(store, devices, choose_batch_size(batch_size, devices[0], len(paths)))
        for member, checkpoint in enumerate(checkpoints):

            def add(_: int, rows: np.ndarray, probabilities: np.ndarray, member: int = member) -> None:
                out[member, rows] += probabilities / len(seen[member])
                count(len(rows))

            runner.predict(Path(checkpoint), seen[member], np.arange(len(paths)), add)
        failed = sorted(store.failed)
    for member, info in enumerate(infos):
        out[member, failed] = class_shares(info)
    names = relative_names([Path(path) for path in paths]) if failed else []
    return out, [names[row] for row in failed]


def class_shares(info: CheckpointInfo) -> np.ndarray:
    """Return the training labels' class shares (K,) that a checkpoint carries, or even shares."""
    return np.array(info.prior or [1 / info.n_classes] * info.n_classes, np.float32)


def choose_batch_size(batch_size: int | None, device: Any, n_images: int) -> int:
    """Return the batch size asked for, else the device's; few images get the next power of two instead."""
    wanted = batch_size or BATCH_SIZES.get(device.type, BATCH_SIZES["cuda"])
    return min(wanted, 1 << max(0, n_images - 1).bit_length())
