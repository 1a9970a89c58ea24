"""A checkpoint's precision: settled on a first batch (`settle_precision`), kept in its header (`half_verdict`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cassava_kit.data.images import ImageError, load_image, resize
from cassava_kit.data.transforms import normalize
from cassava_kit.inference.loading import load_network
from cassava_kit.inference.machine import usable_devices
from cassava_kit.models.checkpoint import read_info, save_checkpoint
from cassava_kit.models.precision import HalfVerdict, Precision, compare_precisions, judge_half, logits_in
from cassava_kit.models.weights import load_tensors

# Images of the first batch that are compared: as many fit into memory in single precision where the batch does in half.
FIRST_IMAGES = 16


@dataclass(frozen=True)
class Settled:
    """A model with the weights of its precision; `reason` says why a faster one was not taken."""

    model: nn.Module
    precision: Precision
    reason: str | None = None


@torch.inference_mode(False)
def settle_precision(model: nn.Module, images: torch.Tensor, candidates: Sequence[Precision]) -> Settled:
    """Return the first of the candidates whose logits of normalised images (B, 3, H, W) are those of single precision.

    The model has float32 weights, and is not changed; the last candidate is `fp32`. A GPU's half precision can be wrong
    without an error and without a number that is not finite: a sum that loses its low bits, a value cut off at 65504.
    So the answers are compared, once per checkpoint and device.
    """
    if len(candidates) == 1:
        return Settled(model, candidates[0])
    images, reasons = images[:FIRST_IMAGES], []
    with torch.no_grad():
        reference = logits_in(model, images, "fp32").cpu()
        for precision in candidates[:-1]:
            tried = copy.deepcopy(model).half() if precision == "fp16" else model
            try:
                found = compare_precisions(logits_in(tried, images, precision).cpu(), reference)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # this GPU has no kernel of a layer in this precision
                reasons.append(f"{precision}: {error}".splitlines()[0])
                continue
            if found.agrees:
                return Settled(tried, precision, "; ".join(reasons) or None)
            reasons.append(f"{precision}: {found}")
    return Settled(model, candidates[-1], "; ".join(reasons))


def half_verdict(checkpoint: Path, images: Sequence[Path] = ()) -> HalfVerdict | None:
    """Return what float16 does to a checkpoint on this machine's GPU; None where there is none, or it has no memory.

    It is judged by the first of the image files that can be read, filled up with drawn fields of colour.
    """
    device = usable_devices("auto")[0]
    if device.type != "cuda":
        return None
    network = load_network(checkpoint)
    size, mean, std = network.info.input_size, network.info.mean, network.info.std
    pixels = []
    for path in images[:FIRST_IMAGES]:
        with suppress(ImageError):
            pixels.append(load_image(path, size))
    rng = np.random.default_rng(0)
    while len(pixels) < FIRST_IMAGES:
        pixels.append(resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), size))
    try:
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        return judge_half(network.on_device(device), normalize(batch, mean, std))[0]
    except RuntimeError:  # a verdict must not cost the checkpoint that is judged
        return None


def add_verdict(checkpoint: Path) -> None:
    """Put the verdict into the header of a checkpoint that lacks one, where this machine has a GPU."""
    info = read_info(checkpoint)
    verdict = None if info.fp16 is not None else half_verdict(checkpoint)
    if verdict is not None:
        save_checkpoint(checkpoint, load_tensors(checkpoint), info.model_copy(update={"fp16": verdict}))
