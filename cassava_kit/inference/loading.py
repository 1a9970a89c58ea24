"""Checkpoints from their files to a device, the next one read while this one runs: `Prefetch`, `load_network`."""

from __future__ import annotations

import copy
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from cassava_kit.inference.fuse import fuse_conv_bn
from cassava_kit.models.checkpoint import CheckpointInfo, load_model


@dataclass(frozen=True)
class Network:
    """A checkpoint in memory: fused, in evaluation mode, in single precision, channels last, on the CPU."""

    path: Path
    model: nn.Module
    info: CheckpointInfo

    def on_device(self, device: torch.device) -> nn.Module:
        """Return a copy on a device; on the CPU it shares the weights."""
        moved: dict[int, object] = {
            id(each): nn.Parameter(each.detach().to(device), requires_grad=each.requires_grad)
            for each in self.model.parameters()
        }
        moved |= {id(each): each.to(device) for each in self.model.buffers()}
        return copy.deepcopy(self.model, moved)


def load_network(path: str | Path) -> Network:
    """Read a checkpoint's file once, for all devices and views.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: The file is no checkpoint of the kit, or its tensors are not the model's.
    """
    model, info = load_model(path)
    architecture = (info.model, repr(sorted(info.model_args.items())), info.head, info.n_classes)
    fuse_conv_bn(model, info.input_size, architecture=architecture)
    return Network(Path(path), model.to(memory_format=torch.channels_last), info)


@dataclass
class Prefetch:
    """Reads one checkpoint ahead in a thread; an error there is raised where the checkpoint is taken."""

    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))
    _ahead: tuple[Path, Future[Network]] | None = None

    def start(self, path: Path) -> None:
        """Begin to read a checkpoint, which takes the place of another one that was not taken."""
        if self._ahead is None or self._ahead[0] != path:
            self.drop()
            self._ahead = (path, self._pool.submit(load_network, path))

    def take(self, path: Path) -> Network:
        """Return a checkpoint: the one ahead, for which it waits, or another one, which is read here and now."""
        if self._ahead is None or self._ahead[0] != path:
            return load_network(path)
        (_, reading), self._ahead = self._ahead, None
        return reading.result()

    def drop(self) -> None:
        """Give back the checkpoint ahead, once it is read."""
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    def close(self) -> None:
        """Begin nothing more; what is being read is not waited for."""
        self.drop()
        self._pool.shutdown(wait=False, cancel_futures=True)
