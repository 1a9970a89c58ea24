"""Devices of a run and Lightning's strategies over them: `Devices`, `make_strategy`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from cassava_kit.errors import UserError
from cassava_kit.training.config import RunConfig

STRATEGIES = ("auto", "ddp", "ddp_sharded", "fsdp")


@dataclass(frozen=True)
class Devices:
    """Devices on each machine, machines, the strategy, and the kind of device (`auto`: GPUs where there are any).

    `ddp` copies the model to every process and averages gradients; `ddp_sharded` does so with the optimiser's state
    spread over the processes (ZeRO-1, Rajbhandari et al. 2020); `fsdp` spreads parameters and gradients as well
    (FSDP2). With more than one machine, each runs the same command with MASTER_ADDR, MASTER_PORT and NODE_RANK set, on
    a common file system. `backend` is what the processes talk by (None: NCCL between GPUs, gloo between CPUs); two
    processes on one GPU need gloo.
    """

    devices: int = 1
    strategy: str = "auto"
    num_nodes: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    backend: Literal["gloo", "nccl"] | None = None

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy must be one of {', '.join(STRATEGIES)}, got {self.strategy!r}")
        if self.devices < 1 or self.num_nodes < 1:
            raise UserError(f"devices and num_nodes must be at least 1, got {self.devices} and {self.num_nodes}")
        if self.processes == 1 and self.strategy in ("ddp_sharded", "fsdp"):
            raise UserError(f"strategy {self.strategy} shards over processes: give --devices 2 or more")

    @property
    def processes(self) -> int:
        """Number of processes, one a device."""
        return self.devices * self.num_nodes


def check_devices(devices: Devices, config: RunConfig) -> None:
    """Refuse more GPUs than the machine has, and settings that a strategy does not support (UserError)."""
    found = torch.cuda.device_count()
    if found and devices.devices > found:
        raise UserError(f"--devices {devices.devices}: this machine has {found} GPUs")
    if devices.processes == 1:
        return
    refused = ("ema", "swa_epochs", "unfreeze_every") if devices.strategy == "fsdp" else ("unfreeze_every",)
    clash = [name for name in refused if getattr(config, name)]
    if clash:
        raise UserError(f"{clash[0]} does not go with strategy {devices.strategy}; use one device")


def uses_gpu(devices: Devices) -> bool:
    """Return whether a run on these devices computes on GPUs."""
    return devices.accelerator == "gpu" or (devices.accelerator == "auto" and torch.cuda.is_available())


def make_strategy(devices: Devices) -> Any:
    """Return Lightning's strategy: gloo between CPU processes, NCCL between GPUs, unless `backend` says otherwise."""
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    if devices.processes == 1:
        return "auto"
    if devices.strategy == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=devices.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return DDPStrategy(process_group_backend=devices.backend)


def is_main() -> bool:
    """Return whether this process writes files and prints."""
    from lightning.pytorch.utilities import rank_zero_only

    return bool(rank_zero_only.rank == 0)


def device_name(device: torch.device) -> str:
    """Return what the driver calls a GPU, e.g. `Tesla T4`, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def process_rank() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without a process group."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def zero_optimizer(
    groups: list[dict[str, Any]], kind: type[torch.optim.Optimizer], arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    """Return torch's ZeRO-1 optimiser: each process keeps the optimiser state for its share of the parameters."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, optimizer_class=kind, **arguments)


def shard(model: nn.Module, mesh: Any, blocks: Iterable[nn.Module]) -> None:
    """Spread the parameters of the blocks, then of the rest, over the processes of the mesh (FSDP2)."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def full_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's full weights, gathered from all processes where they are spread; every process calls it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not any(hasattr(value, "full_tensor") for value in model.state_dict().values()):
        return dict(model.state_dict())
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
