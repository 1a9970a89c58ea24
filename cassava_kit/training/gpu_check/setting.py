"""What a GPU check measures, and how much: `Setting`, `full_sizes`, `small_sizes`; `Part` collects what it finds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cassava_kit.competition import CASSAVA
from cassava_kit.settings import replace
from cassava_kit.training.config import RunConfig
from cassava_kit.training.gpu_check.findings import Bound, MeasuredRow, PartResult, StepSpeed
from cassava_kit.training.recipes import recipe, recipe_names

if TYPE_CHECKING:
    import torch

    from cassava_kit.data.table import TrainTable

_Item = TypeVar("_Item")
# A part, or a network in it, is not begun with fewer seconds left than this.
LEAST_PART_SECONDS = 3.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured: networks of part 1, steps of part 2, members and images of part 3, steps of part 4.

    `seconds` are those of one timed loop. `photo` is (height, width) of the generated files. `joined` is trained by two
    processes, and by one on batches of twice its size.
    """

    numbers: tuple[RunConfig, ...]
    first_batch: int
    trained: tuple[RunConfig, ...]
    seconds: float
    members: tuple[RunConfig, ...]
    n_images: int
    photo: tuple[int, int]
    joined: RunConfig
    simclr: str = "small_simclr"


def step_of(name: str, image_size: int) -> RunConfig:
    """Return a recipe's network and augmentation for timed steps in mixed precision, without what a bare loop lacks."""
    plain = {"cutmix": 0.0, "plain_epochs": 0, "warmup_epochs": 0, "accumulate": 1, "ema": None}
    return replace(recipe(name), **plain, image_size=image_size, precision="16-mixed")


def full_sizes() -> Sizes:
    """Return what a GPU is checked by."""
    timed = (("resnet50", 224), ("efficientnet_b4", 512), ("vit_base", 224), ("convnext_small", 384))
    trained = tuple(step_of(name, size) for name, size in timed)
    return Sizes(
        numbers=tuple(recipe(name) for name in recipe_names()),
        first_batch=16,
        trained=trained,
        seconds=3.0,
        members=trained[:3],
        n_images=2000,
        photo=(600, 800),
        joined=joined_run("small_resnet"),
    )


def small_sizes() -> Sizes:
    """Return what a CPU that stands in is checked by: the same steps on networks of seconds."""
    small = step_of("small_resnet", 64), step_of("small_vit", 56)
    return Sizes(
        numbers=(*small, replace(recipe("resnet18"), image_size=64)),
        first_batch=8,
        trained=small,
        seconds=0.5,
        members=(*small, step_of("small_resnet", 96)),
        n_images=120,
        photo=(120, 160),
        joined=joined_run("small_vit"),  # without BatchNorm, whose statistics CPU processes do not share
    )


def joined_run(name: str) -> RunConfig:
    """Return three epochs of a small recipe by SGD: two processes take its steps as one does, to rounding.

    Adam would turn a rounding error in a gradient near zero into a whole step. The rate is high, so that a gradient
    that is not shared moves weights by much more than rounding does.
    """
    return replace(recipe(name), epochs=3, batch_size=8, augmentation="none", optimizer="sgd", lr=0.1)


@dataclass(frozen=True)
class Setting:
    """Devices, sizes and a folder for what is drawn and written meanwhile."""

    devices: tuple[torch.device, ...]
    sizes: Sizes
    folder: Path

    @property
    def device(self) -> torch.device:
        """The device of every part that takes one."""
        return self.devices[0]

    @property
    def stand_in(self) -> bool:
        """Whether a CPU stands in for a GPU: its speeds are told and not judged."""
        return self.device.type == "cpu"

    @cached_property
    def table(self) -> TrainTable:
        """A small drawn competition."""
        from cassava_kit.data.sample.make import make_sample
        from cassava_kit.data.table import read_competition

        return read_competition(make_sample(self.folder / "drawn", n_train=50, n_test=1), CASSAVA)

    @cached_property
    def photos(self) -> list[Path]:
        """JPEGs of the size of photographs: the drawn pictures enlarged, each as often as the number of files asks."""
        import cv2

        from cassava_kit.data.images import read_image

        folder, (height, width) = self.folder / "photos", self.sizes.photo
        folder.mkdir(parents=True)
        contents = []
        for path in sorted(self.table.image_dir.glob("*.jpg")):
            image = cv2.resize(read_image(path), (width, height), interpolation=cv2.INTER_LINEAR)
            contents.append(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        files = [folder / f"{number:05}.jpg" for number in range(self.sizes.n_images)]
        for number, file in enumerate(files):
            file.write_bytes(contents[number % len(contents)])
        return files

    def speed_bounds(self, *bounds: Bound) -> tuple[Bound, ...]:
        """Return bounds on speeds, none where a CPU stands in."""
        return () if self.stand_in else bounds


@dataclass
class Part:
    """A part under way: the moment it should end by (`time.monotonic`), and what it has found so far."""

    ends: float
    rows: list[MeasuredRow] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    speeds: list[StepSpeed] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def add(self, what: str, values: Mapping[str, float | str], bounds: Sequence[Bound] = ()) -> None:
        """Note what was measured."""
        self.rows.append(MeasuredRow(what=what, values=dict(values), bounds=tuple(bounds)))

    def each(self, items: Sequence[tuple[str, _Item]]) -> Iterator[tuple[str, _Item]]:
        """Yield named items while the longest one so far would still end in time; the others are left out by name."""
        longest = LEAST_PART_SECONDS
        for place, (name, item) in enumerate(items):
            if self.left < longest:
                self.left_out += [name for name, _ in items[place:]]
                return
            started = time.monotonic()
            yield name, item
            longest = max(longest, time.monotonic() - started)

    def result(self, name: str, seconds: float, *, failure: str = "") -> PartResult:
        """Return the part as the file has it: failed, with missed bounds, or passed."""
        missed = [text for row in self.rows for text in row.missed]
        return PartResult(
            name=name,
            status="failed" if failure else "missed" if missed else "passed",
            seconds=round(seconds, 1),
            reason=failure or "; ".join(missed),
            rows=tuple(self.rows),
            left_out=tuple(self.left_out),
            speeds=tuple(self.speeds),
        )
