"""A checkpoint on one device, uint8 pixels in and class probabilities out: `load_forward` gives a `Forward`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cassava_kit.data.transforms import normalize
from cassava_kit.inference.fuse import fuse_conv_bn
from cassava_kit.inference.tta import View
from cassava_kit.models.checkpoint import CheckpointInfo, load_model
from cassava_kit.models.precision import half_is_wrong

OUT_OF_MEMORY_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")


@dataclass
class Forward:
    """A model on its device; half precision on GPUs until a batch comes out non-finite, then single.

    `largest_batch` is how many images fit into memory at once since it ran out (0: it never did).
    """

    model: nn.Module
    info: CheckpointInfo
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch_seconds: float = 0.0
    largest_batch: int = 0
    overflowed: bool = False

    @property
    def n_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @torch.inference_mode()
    def start(self, pixels: torch.Tensor, view: View) -> torch.Tensor:
        """Return probabilities for one view: pixels (B, H, W, 3) uint8 on the host to (B, K) float32 on the device.

        A GPU computes on after the return; `finish` waits for it. A batch that does not fit into memory is halved until
        it does, and later ones are cut to that size at once.
        """
        if 0 < self.largest_batch < len(pixels):
            return torch.cat([self.start(piece, view) for piece in pixels.split(self.largest_batch)])
        try:
            batch = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            images = view(normalize(batch, self.info.mean, self.info.std))
            return self._logits(images).float().softmax(dim=1)
        except RuntimeError as error:
            if len(pixels) == 1 or not is_out_of_memory(error):
                raise
        # Outside the handler, where the traceback no longer holds the failed batch's tensors.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.largest_batch = (len(pixels) + 1) // 2
        return self.start(pixels, view)

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images.to(self.dtype, memory_format=torch.channels_last))

    def finish(self, started: torch.Tensor, pixels: torch.Tensor, view: View) -> np.ndarray:
        """Return the probabilities on the host, computed again in single precision where half precision overflowed."""
        answer = started.cpu().numpy()
        if np.isfinite(answer).all() or (self.dtype == torch.float32 and not self.overflowed):
            return answer
        if not self.overflowed:
            self.model.float()
            self.dtype, self.overflowed = torch.float32, True
        # Also for the batch that was under way in half precision when another one overflowed.
        return self.start(pixels, view).cpu().numpy()


def load_forward(path: str | Path, device: torch.device) -> Forward:
    """Load a checkpoint for a device: convolutions and norms fused, channels last, half precision on a GPU.

    A network that half precision spoils without an error (DINOv3) stays in single precision.
    """
    model, info = load_model(path)
    fuse_conv_bn(model, info.input_size)
    half = device.type == "cuda" and not half_is_wrong(info.model)
    dtype = torch.float16 if half else torch.float32
    model = model.to(device, dtype, memory_format=torch.channels_last)
    return Forward(model.eval(), info, device, dtype)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_WORDS)
