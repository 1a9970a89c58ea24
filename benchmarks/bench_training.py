"""What the Trainer costs a step, against a bare PyTorch loop of the same model, batch and data; and the time of folds.

Both sides train the same timm model in channels-last memory from the same uint8 batches in memory: normalise, forward,
loss, backward, clip, AdamW step with a cosine schedule. The kit's side is `Classifier` under Lightning's Trainer with
metrics, the resumable state, TensorBoard's log and the progress bar on. Rounds are interleaved; figures are medians of
the rounds' mean step. Folds are made for a table as long as the competition's, with its class shares.

    python benchmarks/bench_training.py [--rounds 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F
from torch.utils.data import DataLoader

from cassava_kit.competition import CASSAVA
from cassava_kit.data.progress import Screen
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.transforms import normalize
from cassava_kit.models.network import create_model, image_statistics
from cassava_kit.settings import replace
from cassava_kit.training.callbacks import Bar, Metrics, Resume
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import Devices
from cassava_kit.training.fit import make_logger
from cassava_kit.training.module import Classifier
from cassava_kit.training.rows import TrainOptions
from cassava_kit.training.small_recipes import small_resnet
from cassava_kit.training.trainer import make_trainer

SMALL = replace(small_resnet(), schedule="cosine", epochs=1)
LARGE = RunConfig(recipe="large", model="resnet18", image_size=160, batch_size=16, epochs=1)


class Clock(L.Callback):
    """Seconds of the training steps of one epoch, without what comes before and after."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Take the time after each step; the last one stands."""
        self.seconds = time.perf_counter() - self.started


def in_memory(config: RunConfig, steps: int) -> DataLoader:
    """Batches of random pictures and labels."""
    generator = torch.Generator().manual_seed(0)
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    batches = [
        (
            torch.randint(256, shape, generator=generator, dtype=torch.uint8).contiguous(
                memory_format=torch.channels_last
            ),
            torch.randint(CASSAVA.n_classes, (config.batch_size,), generator=generator),
            torch.arange(config.batch_size),
        )
        for _ in range(steps)
    ]
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def bare(config: RunConfig, batches: DataLoader) -> float:
    """Seconds a step of a plain loop."""
    torch.manual_seed(0)
    model = create_model(config.model, CASSAVA.n_classes, model_args=config.model_args)
    model = model.to(memory_format=torch.channels_last).train()
    mean, std = image_statistics(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    started = time.perf_counter()
    for images, targets, _ in batches:
        optimizer.zero_grad()
        pictures = normalize(images, mean, std).contiguous(memory_format=torch.channels_last)
        F.cross_entropy(model(pictures), targets, label_smoothing=config.label_smoothing).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return (time.perf_counter() - started) / len(batches)


def kit(config: RunConfig, batches: DataLoader, folder: Path) -> float:
    """Seconds a step of the kit's trainer, everything on."""
    module = Classifier(config, CASSAVA.classes, len(batches))
    clock = Clock()
    with Screen(Console(file=io.StringIO(), force_terminal=True)) as screen:
        metrics = Metrics(folder, CASSAVA.classes, lambda _: None)
        bar = Bar(screen, metrics, label="bench", column="val_accuracy")
        logger = make_logger(folder, TrainOptions(tensorboard=True))
        trainer = make_trainer(config, [metrics, Resume(folder), bar, clock], devices=Devices(), logger=logger)
        trainer.fit(module, batches, in_memory(config, 1))
    return clock.seconds / len(batches)


def steps(config: RunConfig, n: int, rounds: int) -> tuple[float, float]:
    """Median milliseconds a step, bare and the kit's, of interleaved rounds after one to warm up."""
    batches = in_memory(config, n)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            pair = bare(config, batches), kit(config, batches, Path(folder))
        if turn:
            for values, value in zip(seconds, pair, strict=True):
                values.append(1000 * value)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def folds(rounds: int) -> float:
    """Median seconds to split 21,397 rows into five stratified folds."""
    rng = np.random.default_rng(0)
    labels = rng.choice(CASSAVA.n_classes, 21397, p=np.array(CASSAVA.class_shares) / sum(CASSAVA.class_shares))
    table = pd.DataFrame({"image_id": [f"{k:010}.jpg" for k in rng.permutation(21397)], "label": labels})
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        split_folds(table, n_splits=5, seed=42)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    table = Table("model", "batch", "bare loop, ms", "kit, ms", "kit / bare", "more, ms", title="A training step")
    for config in (SMALL, LARGE):
        plain, ours = steps(config, arguments.steps, arguments.rounds)
        size = f"{config.batch_size} x {config.image_size} px"
        table.add_row(config.recipe, size, f"{plain:.1f}", f"{ours:.1f}", f"{ours / plain:.3f}", f"{ours - plain:.1f}")
    console = Console()
    console.print(table)
    console.print(f"folds for 21,397 rows: {folds(arguments.rounds):.2f} s")


if __name__ == "__main__":
    main()
