"""How many folds a CPU trains at once, and by how many threads each. Entry points: `choose_jobs`, `choose_threads`.

A second thread brings a small network little, and a second fold at the same time brings nearly all of a second core. A
small network has one thread however many folds run at once, so that its weights do not depend on their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

from cassava_kit.errors import UserError
from cassava_kit.inference.machine import cpu_count, free_memory
from cassava_kit.training.config import RunConfig
from cassava_kit.training.cost import BACKWARD, count_operations, kept_bytes
from cassava_kit.training.devices import Devices, uses_gpu
from cassava_kit.training.rows import TrainOptions

# Operations of a step, forward and backward, up to which a network is small: some tenths of a second of one core.
SMALL_STEP = 1e10
STEP = 1.25  # of what a step keeps: measured 1.23 for MobileNetV2 and 1.1 for DINOv2's top blocks
PROCESS_BYTES = 900 * 2**20  # of a process with torch, Lightning and the data, without the network


def choose_jobs(needs: Iterable[int], n_folds: int, devices: Devices, asked: int | None = None) -> int:
    """Return how many folds are trained at once: on a CPU a fold a core, fewer where memory is short; on a GPU one.

    `needs` are the bytes that a fold's process takes, of each run (`fold_bytes`); they are asked for on a CPU alone.

    Raises:
        UserError: More than one is asked for, and the run has a GPU or several processes of its own.
    """
    if uses_gpu(devices) or devices.processes > 1:
        if asked is not None and asked > 1:
            raise UserError(
                f"--jobs {asked} trains folds side by side on a CPU's cores; on GPUs, and with --devices, folds are "
                "trained one after the other: leave it out"
            )
        return 1
    if asked is not None:
        return min(asked, n_folds)
    return max(1, min(cpu_count(), n_folds, free_memory() // max(needs)))


def choose_threads(config: RunConfig, jobs: int) -> int:
    """Return the threads of each of `jobs` folds: one for a small network, its share of the cores for a large one."""
    return 1 if is_small(config.model, config.image_size, config.model_args, config.batch_size) else cpu_share(jobs)


def fold_threads(config: RunConfig, options: TrainOptions) -> AbstractContextManager[None]:
    """Return the context in which a fold is trained: the options' threads, or those of one fold alone.

    On GPUs, and where a run has several processes, torch's own number stays.
    """
    if uses_gpu(options.devices) or options.devices.processes > 1:
        return nullcontext()
    return use_threads(options.threads or choose_threads(config, 1))


def cpu_share(jobs: int) -> int:
    """Return the cores for each of `jobs` processes, at least one."""
    return max(1, cpu_count() // jobs)


def is_small(model: str, size: int, model_args: dict[str, object], batch_size: int) -> bool:
    """Return whether a training step is so short that a second thread hardly pays."""
    return step_operations(model, size, json.dumps(model_args, sort_keys=True), batch_size) <= SMALL_STEP


@cache
def step_operations(model: str, size: int, model_args: str, batch_size: int) -> int:
    """Return the additions and multiplications of a training step; `model_args` as JSON."""
    return count_operations(model, size, json.loads(model_args)).every * (1 + BACKWARD) * batch_size


def fold_bytes(config: RunConfig) -> int:
    """Return about how much memory the process of one fold takes: itself, weights with Adam's state, and a step.

    A step is what it keeps for the pass backward, in single precision, and gradients of what it computes at the time.
    """
    counted = count_operations(config.model, config.image_size, config.model_args, config.head)
    copies = 4 + (config.ema is not None) + bool(config.swa_epochs)  # values, gradients, two moments
    return PROCESS_BYTES + 4 * copies * counted.weights + int(STEP * kept_bytes(config) * config.batch_size)


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """Let torch compute by this many threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
