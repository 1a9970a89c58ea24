"""Unlabelled images -> batches for the views, the same for the same seed, epoch and image, resumed or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cassava_kit.data.images import ImageError, load_image, read_image
from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.file_views import file_transform


class EpochSampler(Sampler[int]):
    """Keys epoch x n + index of this process's share of the images, in an order drawn from the seed and the epoch."""

    def __init__(self, n: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.n, self.seed, self.rank, self.world_size = n, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.n // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * SEED_PRIME + self.epoch)
        order = torch.randperm(self.n, generator=generator)[: len(self) * self.world_size]
        return iter((self.epoch * self.n + order[self.rank :: self.world_size]).tolist())


class FileDataset(Dataset[list[Tensor]]):
    """Views of image files; a file that is broken is stood in for by the next whole one, with a warning."""

    def __init__(self, paths: Sequence[Path], transform: Any, *, seed: int) -> None:
        self.paths, self.transform, self.seed = list(paths), transform, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int) -> list[Tensor]:
        from PIL import Image

        image = Image.fromarray(first_whole(self.paths, key % len(self.paths), read_image))
        state = np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            # Seeded by image and epoch, in torch and in numpy (lightly uses both): no worker or resume changes a view.
            torch.manual_seed(self.seed * SEED_PRIME + key)
            np.random.seed((self.seed * SEED_PRIME + key) % 2**32)
            views: list[Tensor] = self.transform(image)
        np.random.set_state(state)
        return views


class StoreDataset(Dataset[Tensor]):
    """Decoded images of one size in a memory-mapped file (N, 3, H, W) uint8, read a batch at a time."""

    def __init__(self, store: Path) -> None:
        self.pixels = np.load(store, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: int) -> Tensor:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[int]) -> Tensor:
        return torch.from_numpy(self.pixels[np.asarray(keys) % len(self.pixels)])


def make_store(paths: Sequence[Path], size: tuple[int, int], store: Path) -> None:
    """Decode images to (height, width) into `store` (.npy), row by row, so that memory stays flat."""
    from tqdm import tqdm

    from cassava_kit.files import atomic_path

    with atomic_path(store) as temporary:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(paths), 3, *size))
        for row in tqdm(range(len(paths)), desc="decoding", unit="image", delay=1, leave=False, disable=None):
            pixels[row] = first_whole(paths, row, lambda path: load_image(path, size)).transpose(2, 0, 1)
        pixels.flush()


def first_whole(paths: Sequence[Path], index: int, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """The image at `index`, or the next that can be read, with a warning for each that cannot."""
    for at in (*range(index, len(paths)), *range(index)):
        try:
            return read(paths[at])
        except ImageError as error:
            warnings.warn(f"a broken image is replaced by the next: {error}", stacklevel=2)
    raise ValueError(f"none of the {len(paths)} images can be read")


def readable(paths: Sequence[Path]) -> list[Path]:
    """The paths that look like whole images, in their order; ValueError where none does."""
    from cassava_kit.data.images import quick_check

    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(f"no image file {missing[0]} ({len(missing)} of {len(paths)} are missing)")
    whole = [Path(path) for path in paths if quick_check(path) is None]
    if not whole:
        raise ValueError(f"none of the {len(paths)} files is a whole image; give a folder of JPEGs or PNGs")
    return whole


class Images(pl.LightningDataModule):
    """The run's images; several processes share one pixel store, which the first one makes."""

    def __init__(self, config: PretrainConfig, paths: Sequence[Path], store: Path) -> None:
        super().__init__()
        self.config, self.paths, self.store = config, list(paths), store

    def prepare_data(self) -> None:
        """Decode into the store, where the configuration wants one; on one process, the others wait."""
        if self.config.store_size and not self.store.is_file():
            make_store(self.paths, self.config.store_size, self.store)

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of decoded images, or of views from files."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        dataset: Dataset[Any]
        if self.config.store_size:
            dataset = StoreDataset(self.store)
        else:
            dataset = FileDataset(self.paths, file_transform(self.config), seed=self.config.seed)
        sampler = EpochSampler(len(self.paths), seed=self.config.seed, rank=rank, world_size=world_size)
        return make_loader(dataset, sampler, self.config)


def make_loader(dataset: Dataset[Any], sampler: EpochSampler, config: PretrainConfig) -> DataLoader[Any]:
    """Batches in the sampler's order; the images of an epoch that fill no batch wait for another epoch."""
    stored = isinstance(dataset, StoreDataset)
    workers = 0 if stored else config.num_workers
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=_as_is if stored else None,
        pin_memory=torch.cuda.is_available(),
    )


def _as_is(batch: Tensor) -> Tensor:
    return batch
