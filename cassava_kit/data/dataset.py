"""Images and labels as a torch data set in which a damaged file becomes a gray picture. Entry point: `ImageDataset`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from cassava_kit.data.images import ImageError

PLACEHOLDER = 128
Load = Callable[[Path], np.ndarray]


class ImageDataset(torch.utils.data.Dataset):
    """Items (picture (3, H, W) uint8, label, index) by row; each picture is loaded when it is asked for.

    `load` returns an image's pixels by path: `images.load_image` with a size, `images.read_image`, or a pixel cache's
    `load`. `transform(pixels, seed=...)` augments them; its seed is drawn from (`seed`, epoch, index), so a picture is
    the same in any worker, in any order, and in a resumed run. Call `set_epoch` before each epoch.

    An image that cannot be decoded becomes a gray picture and is marked in `failed`. The epoch and these marks are in
    shared memory, which persistent workers see as well.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | np.ndarray,
        load: Load,
        *,
        transform: Callable[..., np.ndarray] | None = None,
        seed: int = 0,
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(f"expected one label for every image, got {len(paths)} images and {len(labels)} labels")
        self.paths = [Path(path) for path in paths]
        self.labels = np.asarray(labels, dtype=np.int64)
        self.load, self.transform, self.seed = load, transform, seed
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._failed = torch.zeros(len(self.paths), dtype=torch.bool).share_memory_()
        self._gray: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        image = self._pixels(index)
        if self.transform is not None:
            image = self.transform(image, seed=item_seed(self.seed, self.epoch, index))
        # A read-only picture is a view into a cache, which torch must not share.
        picture = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)
        return picture, int(self.labels[index]), index

    @property
    def epoch(self) -> int:
        """The epoch from which the augmentation's seeds are drawn."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, so that its pictures differ from the last one's."""
        self._epoch.fill_(epoch)

    @property
    def failed(self) -> set[int]:
        """Rows whose image could not be decoded so far, in this process and its workers."""
        return set(torch.nonzero(self._failed).flatten().tolist())

    def _pixels(self, index: int) -> np.ndarray:
        try:
            return self.load(self.paths[index])
        except ImageError:
            self._failed[index] = True
            if self._gray is None:
                self._gray = np.full_like(self._first_whole(), PLACEHOLDER)
            return self._gray.copy()

    def _first_whole(self) -> np.ndarray:
        """Return the first image that can be decoded, for its shape."""
        for path in self.paths:
            try:
                return self.load(path)
            except ImageError:
                continue
        raise ImageError(f"none of the {len(self.paths)} images can be decoded (first: {self.paths[0]})")


def item_seed(seed: int, epoch: int, index: int) -> int:
    """Return a 32-bit seed for a row in an epoch, independent of those of other rows and epochs."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1)[0])


def collate(items: list[tuple[torch.Tensor, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a batch, pictures in channels-last memory: several times faster than a copy into another layout."""
    pictures, labels, indices = zip(*items, strict=True)
    batch = torch.stack([picture.permute(1, 2, 0) for picture in pictures]).permute(0, 3, 1, 2)
    return batch, torch.tensor(labels), torch.tensor(indices)
