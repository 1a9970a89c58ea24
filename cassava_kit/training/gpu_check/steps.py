"""Part 2 of a GPU check: training images a second through the Trainer against a bare loop, `check_steps`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cassava_kit.competition import CASSAVA
from cassava_kit.data.images import load_image, read_image
from cassava_kit.inference.device_queue import fit_to_memory, make_queue
from cassava_kit.inference.machine import cpu_count
from cassava_kit.models.network import args_for_size, create_model, image_statistics
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices
from cassava_kit.training.gpu_check.findings import Bound, StepSpeed
from cassava_kit.training.gpu_check.setting import Part, Setting
from cassava_kit.training.loaders import Batches, training_set
from cassava_kit.training.module import Classifier
from cassava_kit.training.trainer import make_trainer, quiet_lightning

WARM_UP_STEPS = 3
LONG_SET = 100_000  # of a training set that no timed loop reaches the end of
TRAINER = Bound(name="ratio", at_least=0.9)
LOADER = Bound(name="loader_ratio", at_least=0.9)
StepTimes = tuple[dict[str, float | str], list[StepSpeed]]


def check_steps(setting: Setting, part: Part) -> None:
    """Time each network's step by hand, in the Trainer, and in the Trainer with loader and augmentation.

    `ratio`: the Trainer over the bare loop, both on data in memory. `loader_ratio`: the Trainer with the loader over
    the slower of the bare loop and the loader alone. A batch that does not fit into memory is halved.
    """
    single = True
    for name, config in part.each(
        [(f"{config.recipe} at {config.image_size}", config) for config in setting.sizes.trained]
    ):
        queue = make_queue(setting.device)

        def measure(size: int, config: RunConfig = config, single: bool = single) -> StepTimes:
            return time_steps(replace(config, batch_size=size), setting, single=single)

        (values, speeds), batch = fit_to_memory(measure, config.batch_size, queue)
        part.add(name, {**values, "batch": float(batch)}, setting.speed_bounds(TRAINER, LOADER))
        part.speeds += speeds
        single = False


def time_steps(config: RunConfig, setting: Setting, *, single: bool) -> StepTimes:
    """Return images a second by way, ratios and peak memory, and the speeds that hours are counted by.

    With `single` the bare loop is timed in single precision too.
    """
    device, seconds = setting.device, setting.sizes.seconds
    on_gpu = device.type == "cuda"
    bare = bare_rate(config, seconds, device)
    speeds = [step_speed(config, bare)]
    slow: dict[str, float | str] = {}
    if single:
        full = replace(config, precision="32-true")
        rate = bare_rate(full, seconds, device)
        speeds.append(step_speed(full, rate))
        slow["single_precision"] = rate
    workers = cpu_count() if on_gpu else 0
    memory = DataLoader([memory_batch(config, device)] * LONG_SET, batch_size=None)
    trainer = trainer_rate(config, memory, seconds, device)
    loader = Batches(*photo_rows(config, setting), workers=workers).train_dataloader()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    loaded = trainer_rate(config, loader, seconds, device, warm_up=WARM_UP_STEPS + 2 * workers)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else 0.0
    alone = loader_rate(loader, seconds, WARM_UP_STEPS + 2 * workers)
    size = config.image_size + 16
    augmented = replace(config, augment_on="device", train_pixels=(size, size * 4 // 3))
    device_loader = Batches(*photo_rows(augmented, setting), workers=workers).train_dataloader()
    on_device = trainer_rate(augmented, device_loader, seconds, device, warm_up=WARM_UP_STEPS + 2 * workers)
    values: dict[str, float | str] = {"bare": bare, "trainer": trainer, "ratio": trainer / bare, **slow}
    values |= {"loader_alone": alone, "with_loader": loaded, "loader_ratio": loaded / min(bare, alone)}
    return values | {"augmented_on_device": on_device, "memory_gb": peak}, speeds


def step_speed(config: RunConfig, rate: float) -> StepSpeed:
    """Return a measured rate with the network that it is of."""
    args = args_for_size(config.model, config.image_size, config.model_args)
    return StepSpeed(
        model=config.model, model_args=args, image_size=config.image_size,
        precision="32-true" if config.precision == "32-true" else "16-mixed", images_per_second=rate,
    )  # fmt: skip


def memory_batch(config: RunConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch of random pixels on a device, as the loader gives it: images, labels, indices."""
    n, size = config.batch_size, config.image_size
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, device=device)
    return images.contiguous(memory_format=torch.channels_last), torch.arange(n, device=device) % 5, torch.arange(n)


def bare_rate(config: RunConfig, seconds: float, device: torch.device) -> float:
    """Return images a second of training steps written by hand on one batch in the device's memory."""
    args = args_for_size(config.model, config.image_size, config.model_args)
    model = create_model(config.model, CASSAVA.n_classes, model_args=args).to(device, memory_format=torch.channels_last)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in image_statistics(model))
    images, labels, _ = memory_batch(config, device)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-4)
    half = config.precision == "16-mixed" and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.float16, enabled=half):
            logits = model((images.float() / 255 - mean) / std)
            loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or 1e9)
        scaler.step(optimizer)
        scaler.update()

    for _ in range(WARM_UP_STEPS):
        step()
    return config.batch_size * repeat(step, seconds, device)


def repeat(call: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Return calls a second, repeated for about so many seconds; the device has finished them all."""
    wait(device)
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < seconds:
        call()
        calls += 1
        if calls % 8 == 0:  # a GPU takes calls much faster than it computes them
            wait(device)
    wait(device)
    return calls / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Wait until a GPU has computed all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class StopWatch(L.Callback):
    """Times training steps after the first `warm_up`, and ends the training after so many seconds."""

    def __init__(self, warm_up: int, seconds: float, device: torch.device) -> None:
        self.warm_up, self.seconds, self.device = warm_up, seconds, device
        self.steps, self.images, self.started, self.rate = 0, 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps < self.warm_up:
            return
        if self.steps == self.warm_up:
            wait(self.device)
            self.started = time.perf_counter()
            return
        self.images += len(rest[1][0])
        if time.perf_counter() - self.started > self.seconds:
            wait(self.device)
            self.rate = self.images / (time.perf_counter() - self.started)
            trainer.should_stop = True


def trainer_rate(
    config: RunConfig, batches: Iterable[Any], seconds: float, device: torch.device, *, warm_up: int = WARM_UP_STEPS
) -> float:
    """Return images a second of the kit's module in the kit's Trainer."""
    watch = StopWatch(warm_up, seconds, device)
    module = Classifier(config, CASSAVA.classes, steps_per_epoch=LONG_SET)
    devices = Devices(accelerator="gpu" if device.type == "cuda" else "cpu")
    with quiet_lightning():
        trainer = make_trainer(config, [watch], devices=devices)
        trainer.fit(module, train_dataloaders=batches)
    return watch.rate


def photo_rows(config: RunConfig, setting: Setting) -> tuple[RunConfig, Any, Any]:
    """Return what `Batches` takes: the configuration, and the photographs as a long training set, twice."""
    paths = setting.photos
    rows = [paths[row % len(paths)] for row in range(LONG_SET)]
    labels = pd.Series(np.arange(LONG_SET) % CASSAVA.n_classes)
    size = config.train_pixels
    load = read_image if size is None else lambda path: load_image(path, size)
    dataset = training_set(config, rows, labels, load)
    return config, dataset, dataset


def loader_rate(loader: Iterable[Any], seconds: float, warm_up: int) -> float:
    """Return images a second of a loader that nothing waits for."""
    started, images = 0.0, 0
    for number, batch in enumerate(loader):
        if number < warm_up:
            started = time.perf_counter()
            continue
        images += len(batch[0])
        if time.perf_counter() - started > seconds:
            break
    return images / (time.perf_counter() - started)
