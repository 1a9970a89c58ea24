"""A checkpoint on one device, uint8 pixels in and class probabilities out: `place` gives a `Forward`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from cassava_kit.data.transforms import normalize
from cassava_kit.inference.device_queue import DeviceQueue, Ordered, make_queue, order
from cassava_kit.inference.loading import Network
from cassava_kit.inference.precision import settle_precision
from cassava_kit.inference.tta import View
from cassava_kit.models.checkpoint import CheckpointInfo
from cassava_kit.models.precision import Precision, logits_in, precisions_to_try


@dataclass(frozen=True)
class Started:
    """A batch under way through its views."""

    ordered: Ordered
    views: Sequence[View]


@dataclass
class Forward:
    """A model on its device, with float32 weights until its first batch settles the precision.

    `candidates` are the precisions to choose from then, the fastest first (empty: it is settled), `reason` says why a
    faster one was not taken. A batch that is not finite in half precision ends in `fp32`. `largest_batch` is how many
    images fit into memory at once since it ran out (0: it never did).
    """

    model: nn.Module
    info: CheckpointInfo
    device: torch.device
    precision: Precision = "fp32"
    candidates: tuple[Precision, ...] = ()
    reason: str | None = None
    batch_seconds: float = 0.0
    largest_batch: int = 0
    overflowed: bool = False
    queue: DeviceQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = make_queue(self.device)

    @property
    def n_bytes(self) -> int:
        """Memory that the weights take."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    @torch.inference_mode()
    def start(self, pixels: torch.Tensor, views: Sequence[View]) -> Started:
        """Order the probabilities of pixels (B, H, W, 3) uint8 on the host through V views, uploaded once.

        A GPU computes on after the return; `finish` waits for it. A batch that does not fit into memory is halved until
        it does, and later ones are cut to that size at once.
        """

        def compute(piece: torch.Tensor) -> torch.Tensor:
            images = normalize(piece.permute(0, 3, 1, 2), self.info.mean, self.info.std)
            if self.candidates:
                self._settle(views[0](images))
            return torch.stack([self._logits(view(images)).softmax(dim=1) for view in views])

        most = min(self.largest_batch or len(pixels), len(pixels))
        ordered, size = order(self.queue, pixels, compute, most)
        if size < most:
            self.largest_batch = size
        return Started(ordered, views)

    def _settle(self, images: torch.Tensor) -> None:
        found = settle_precision(self.model, images, self.candidates)
        self.model, self.precision, self.reason, self.candidates = found.model, found.precision, found.reason, ()

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return logits_in(self.model, images, self.precision)

    def finish(self, started: Started) -> np.ndarray:
        """Return the probabilities (V, B, K) on the host, in single precision where half precision overflowed."""
        answer = started.ordered.answer.wait()
        if np.isfinite(answer).all() or (self.precision == "fp32" and not self.overflowed):
            return answer
        if not self.overflowed:
            self.model.float()
            self.reason = f"{self.precision}: a batch is not finite"
            self.precision, self.overflowed = "fp32", True
        # Also for the batch that was under way in half precision when another one overflowed.
        again = self.start(started.ordered.batch, started.views)
        return again.ordered.answer.wait()


def place(network: Network, device: torch.device, known: Precision | None = None) -> Forward:
    """Return a copy of a network on a device.

    The precision is `known`, where the checkpoint ran before. Else its first batch settles it, among those that the
    header's verdict on float16 leaves; without a verdict a network that is known to be wrong in it (DINOv3) is.
    """
    model, info = network.on_device(device), network.info
    if known is not None:
        return Forward(model.half() if known == "fp16" else model, info, device, known)
    candidates = precisions_to_try(info.fp16, info.model, device)
    return Forward(model, info, device, candidates=candidates if len(candidates) > 1 else ())
