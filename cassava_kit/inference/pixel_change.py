"""What another way from file to pixels does to a checkpoint's answers, on a few real images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.data.images import PIXEL_PATHS
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.pixels import Format, PixelStore
from cassava_kit.inference.tta import make_views


def compare_pixels(forward: Forward, paths: Sequence[Path], batch_size: int) -> dict[str, Any]:
    """Run the first images through every path of `PIXEL_PATHS`; what differs between `exact` and `fast`.

    Images that cannot be read are left out: `images` counted, `labels_changed`, and the largest and the mean absolute
    difference of a probability.
    """
    answers, failed = {}, set()
    for pixels in PIXEL_PATHS:
        with PixelStore(paths, [Format(forward.info.input_size, pixels)], keep=False) as store:
            answers[pixels] = _answers(forward, store, batch_size)
            failed |= set(store.failed)
    whole = np.setdiff1d(np.arange(len(paths)), list(failed))
    exact, fast = answers["exact"][whole], answers["fast"][whole]
    difference = np.abs(exact - fast) if len(whole) else np.zeros(1)
    return {
        "images": len(whole),
        "labels_changed": int((exact.argmax(axis=1) != fast.argmax(axis=1)).sum()),
        "largest_difference": float(difference.max()),
        "mean_difference": float(difference.mean()),
    }


def _answers(forward: Forward, store: PixelStore, batch_size: int) -> np.ndarray:
    """Plain-view probabilities (N, K) of the store's images."""
    plain, (wanted,) = make_views("none")[0], store.formats
    batches = store.batches(np.arange(len(store.paths)), wanted, batch_size)
    return np.concatenate(
        [forward.finish(forward.start(b.pixels, plain), b.pixels, plain)[: len(b.rows)] for b in batches]
    )
