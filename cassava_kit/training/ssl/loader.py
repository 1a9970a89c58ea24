"""Batches of unlabelled images, `PretrainImages`: the same for the same seed, epoch and image, resumed or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cassava_kit.data.images import ImageError, load_image, read_image
from cassava_kit.errors import UserError
from cassava_kit.settings import SEED_PRIME
from cassava_kit.training.loaders import EpochSampler
from cassava_kit.training.ssl.config import PretrainConfig
from cassava_kit.training.ssl.file_views import file_transform


class FileViews(Dataset[list[Tensor]]):
    """Views of image files; in a broken file's place come those of the next whole one, with a warning."""

    def __init__(self, paths: Sequence[Path], transform: Any, *, seed: int) -> None:
        self.paths, self.transform, self.seed = list(paths), transform, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw other views from now on; the sampler calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[Tensor]:
        from PIL import Image

        image = Image.fromarray(first_whole(self.paths, index, read_image))
        seed = self.seed * SEED_PRIME + self.epoch * len(self.paths) + index
        state = np.random.get_state()
        with torch.random.fork_rng(devices=[]):
            # Seeded by image and epoch, in torch and in numpy (lightly uses both): no worker or resume changes a view.
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            views: list[Tensor] = self.transform(image)
        np.random.set_state(state)
        return views


class StoredPixels(Dataset[Tensor]):
    """Decoded images of one size in a memory-mapped file (N, 3, H, W) uint8, read a batch at a time."""

    def __init__(self, store: Path) -> None:
        self.pixels = np.load(store, mmap_mode="r")

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: views of these pixels are drawn later, on the device."""

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return torch.from_numpy(self.pixels[np.asarray(indices)])


def make_store(paths: Sequence[Path], size: tuple[int, int], store: Path) -> None:
    """Decode images to (height, width) into `store` (.npy), row by row, so that memory stays flat."""
    from cassava_kit.data.progress import track
    from cassava_kit.files import atomic_path

    with atomic_path(store) as temporary:
        pixels = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(paths), 3, *size))
        for row in track(range(len(paths)), "Decoding"):
            pixels[row] = first_whole(paths, row, lambda path: load_image(path, size)).transpose(2, 0, 1)
        pixels.flush()


def first_whole(paths: Sequence[Path], index: int, read: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Return the image at `index`, or the next that can be read, with a warning for each that cannot."""
    for at in (*range(index, len(paths)), *range(index)):
        try:
            return read(paths[at])
        except ImageError as error:
            warnings.warn(f"a broken image is replaced by the next: {error}", stacklevel=2)
    raise UserError(f"none of the {len(paths)} images can be read")


class PretrainImages(L.LightningDataModule):
    """A run's images; several processes share one pixel store, which the first one makes."""

    def __init__(self, config: PretrainConfig, paths: Sequence[Path], store: Path) -> None:
        super().__init__()
        self.config, self.paths, self.store = config, list(paths), store

    def prepare_data(self) -> None:
        """Decode into the store, where the configuration wants one; on one process, the others wait."""
        if self.config.store_size and not self.store.is_file():
            make_store(self.paths, self.config.store_size, self.store)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of decoded images, or of views from files."""
        if self.config.store_size:
            return make_loader(StoredPixels(self.store), self.config)
        return make_loader(FileViews(self.paths, file_transform(self.config), seed=self.config.seed), self.config)


def make_loader(dataset: FileViews | StoredPixels, config: PretrainConfig) -> DataLoader[Any]:
    """Return batches in the order of seed and epoch; images that fill no batch are left out of that epoch."""
    stored = isinstance(dataset, StoredPixels)
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=EpochSampler(dataset, config.seed),
        drop_last=True,
        num_workers=0 if stored else config.num_workers,
        collate_fn=_as_is if stored else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def _as_is(batch: Tensor) -> Tensor:
    return batch
