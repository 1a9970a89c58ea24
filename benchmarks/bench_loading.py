"""Measure loading for training: the usual notebook's loader against the kit's, from files and from the pixel cache.

All loaders return batches of the same augmentations, in one process and one thread. The notebook's loader normalises
each picture as a float array; the kit's returns uint8 batches, which the training step normalises on the model's
device. The line "and normalised here" adds that step on this CPU; "for kornia on a device" is the loader's part of
augment_on=device, whole pictures from the cache. Rounds of all loaders are interleaved; figures are medians over
rounds, of the rates and of the ratios to the notebook's loader in the same round. The cache holds whole photographs,
`size` high and 4/3 of that wide. On shared cores `--clock cpu` counts processor seconds.

    python benchmarks/bench_loading.py [--images FOLDER] [--sizes 224 384] [--rounds 7] [--clock cpu]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import torch
from albumentations.pytorch import ToTensorV2
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from cassava_kit.data.cache import open_cache
from cassava_kit.data.dataset import ImageDataset, collate
from cassava_kit.data.images import read_image
from cassava_kit.data.sample.make import ensure_sample
from cassava_kit.data.table import list_images
from cassava_kit.data.transforms import normalize, train_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 16
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


class NotebookDataset(Dataset):
    """What the competition's public notebooks do: imread, BGR to RGB, albumentations with Normalize and ToTensorV2."""

    def __init__(self, paths: list[Path], transform: A.Compose) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"], 0


def notebook_transform(name: str, size: int) -> A.Compose:
    """The same augmentations as the kit's `light` and `strong`, in the library's own transforms."""
    geometry = [
        A.RandomResizedCrop(size=(size, size), scale=(0.4, 1.0)),
        A.Transpose(p=0.5),
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
    ]
    colour = [
        A.Affine(
            translate_percent=(-0.0625, 0.0625),
            scale=(0.9, 1.1),
            rotate=(-45, 45),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.5,
        ),
        A.HueSaturationValue(20, 30, 20, p=0.5),
        A.RandomBrightnessContrast(0.2, 0.2, p=0.5),
    ]
    holes = A.CoarseDropout(
        num_holes_range=(1, 8), hole_height_range=(0.05, 0.12), hole_width_range=(0.05, 0.12), p=0.5
    )
    end = [A.Normalize(MEAN, STD), *([holes] if name == "strong" else []), ToTensorV2()]
    return A.Compose([*geometry, *(colour if name == "strong" else []), *end])


def loaders(name: str, paths: list[Path], size: int, folder: Path) -> dict[str, Callable[[], Any]]:
    """One epoch by each way of loading, as functions without arguments."""
    cache = open_cache(folder, paths, (size, size * 4 // 3), progress=False)
    labels = [0] * len(paths)
    transform = train_transform(name, (size, size))
    notebook = NotebookDataset(paths, notebook_transform(name, size))
    decoding = ImageDataset(paths, labels, read_image, transform=transform)
    cached = ImageDataset(paths, labels, cache.load, transform=transform)
    plain = ImageDataset(paths, labels, cache.load)

    def kit(dataset: ImageDataset, finish: Callable[[torch.Tensor], Any] = lambda batch: None) -> None:
        for batch, _, _ in DataLoader(dataset, BATCH, collate_fn=collate):
            finish(batch)

    def usual() -> None:
        for _ in DataLoader(notebook, BATCH):
            pass

    return {
        "notebook": usual,
        "kit, decoding": lambda: kit(decoding),
        "kit, pixel cache": lambda: kit(cached),
        "  for kornia on a device": lambda: kit(plain),
        "  and normalised here": lambda: kit(cached, lambda batch: normalize(batch, MEAN, STD)),
    }


def measure(functions: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of each function in each round; every round runs them all, one after another."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            started = clock()
            function()
            if turn:  # the first round warms up
                seconds[name].append(clock() - started)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of photographs, best 800x600; default: the drawn sample")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 384], help="sides of the training picture")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--augmentations", nargs="+", choices=("light", "strong"), default=["light", "strong"])
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = arguments.images or ensure_sample() / "test_images"
    paths = [images / name for name in list_images(images)]
    table = Table(
        "pixels",
        "augmentation",
        "loader",
        "images/s",
        "x notebook",
        title=f"{len(paths)} photographs, {arguments.clock} seconds",
    )
    for size in arguments.sizes:
        for name in arguments.augmentations:
            with tempfile.TemporaryDirectory() as folder:
                ways = loaders(name, paths, size, Path(folder))
                found = measure(ways, arguments.rounds, CLOCKS[arguments.clock])
            for loader, seconds in found.items():
                speed = len(paths) / statistics.median(seconds)
                ratio = statistics.median(a / b for a, b in zip(found["notebook"], seconds, strict=True))
                table.add_row(str(size), name, loader, f"{speed:.0f}", f"{ratio:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
