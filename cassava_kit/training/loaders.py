"""Data loaders of a run: `Batches`, and the samplers that order rows and deal them to processes."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from functools import partial
from pathlib import Path
from typing import Protocol

import lightning as L
import pandas as pd
import torch
from torch.utils.data import DataLoader, Sampler

from cassava_kit.data.cache import open_cache
from cassava_kit.data.dataset import ImageDataset, Load, collate
from cassava_kit.data.images import load_image, read_image
from cassava_kit.data.transforms import train_transform
from cassava_kit.errors import UserError
from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.config import RunConfig
from cassava_kit.training.devices import process_rank


class Batches(L.LightningDataModule):
    """Loaders of shuffled, augmented training rows and plain, ordered validation rows; each process has its share."""

    def __init__(
        self,
        config: RunConfig,
        training: ImageDataset,
        validation: ImageDataset,
        *,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.training, self.validation, self.workers = config, training, validation, workers

    def train_dataloader(self) -> DataLoader:
        """Return training batches of (uint8 images, labels, indices)."""
        return self._loader(self.training, EpochSampler(self.training, self.config.seed), train=True)

    def val_dataloader(self) -> DataLoader:
        """Return batches of all validation rows; processes other than the first may repeat some."""
        return self._loader(self.validation, ShareSampler(self.validation), train=False)

    def steps_per_epoch(self, processes: int) -> int:
        """Return optimiser steps in an epoch; Lightning also steps after an unfinished accumulation at its end."""
        rows, size = len(self.training) // processes, self.config.batch_size
        batches = rows // size if rows > size else 1
        return -(-batches // self.config.accumulate)

    def _loader(self, dataset: ImageDataset, sampler: Sampler, *, train: bool) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.config.batch_size,
            sampler=sampler,
            drop_last=train and len(sampler) > self.config.batch_size,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # Its own: from torch's, an iterator draws a number, after the epoch's seed or, in a resumed run, before it.
            generator=torch.Generator(),
        )


class EpochDataset(Sized, Protocol):
    """A data set that augments by the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Augment as in this epoch from now on."""


class EpochSampler(Sampler[int]):
    """A shuffle that depends on the seed and the epoch alone, so that a resumed run sees the same batches.

    Each process takes every n-th row: their batches together are the one batch that a single process would see.
    """

    def __init__(self, dataset: EpochDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch; the data set's augmentation follows."""
        self.epoch = epoch
        self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * SEED_PRIME + self.epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        rank, world = process_rank()
        return iter(order[rank::world][: len(self)])

    def __len__(self) -> int:
        return len(self.dataset) // process_rank()[1]


class ShareSampler(Sampler[int]):
    """Sampler of every n-th row in order, equally many for each process; the last may repeat the first rows."""

    def __init__(self, rows: Sized) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[int]:
        rank, world = process_rank()
        return (position % len(self.rows) for position in range(rank, len(self) * world, world))

    def __len__(self) -> int:
        return -(-len(self.rows) // process_rank()[1])


def training_set(config: RunConfig, paths: list[Path], labels: pd.Series, load: Load) -> ImageDataset:
    """Return the training images, augmented unless the device does it."""
    size = (config.image_size, config.image_size)
    transform = train_transform(config.augmentation, size) if config.augment_on == "cpu" else None
    return ImageDataset(paths, labels.to_numpy(), load, transform=transform, seed=config.seed)


def validation_set(paths: list[Path], labels: pd.Series, load: Load) -> ImageDataset:
    """Return the validation images, prepared as in a submission."""
    return ImageDataset(paths, labels.to_numpy(), load)


def fill_cache(config: RunConfig, paths: list[Path], cache: Path) -> None:
    """Decode all images into the cache, with a progress bar, unless they are there."""
    if config.train_pixels is None:
        raise UserError(
            "a pixel cache holds all images at one size: say which, e.g. with --set train_pixels=[384,512]; "
            f"recipe {config.recipe} trains on images as they are"
        )
    for size in (config.train_pixels, (config.image_size, config.image_size)):
        open_cache(cache, paths, size)


def pixels(paths: list[Path], size: tuple[int, int] | None, cache: Path | None) -> Load:
    """Return a function that loads an image's pixels at `size` (None: its own), from the cache if there is one.

    One cache of all the table's images, `paths`, serves every fold; the pixels are the same with and without it.
    """
    if size is None:
        return read_image
    if cache is None:
        return partial(load_image, size=size)
    return open_cache(cache, paths, size, progress=False).load
