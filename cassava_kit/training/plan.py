"""Which recipes and folds to train in a week's GPU hours: `plan_week`, by a rule of families.

The rule: a round takes one recipe of each family, those with the fewest hours first, and within a family its cheapest;
no family gives a second recipe before every family that fits has given its first. So the hours buy as many families as
they can, because members of different families err on different images. What is then left begins the next recipe.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import CONFIG_FILE, DONE_FILE, METRICS_FILE, read_csv, read_json, read_object
from cassava_kit.training.config import RunConfig
from cassava_kit.training.cost import T4, Gpu, epoch_seconds, fold_hours, loader_seconds
from cassava_kit.training.recipes import recipe

SESSION_HOURS = 11.5  # of Kaggle's twelve; the rest is for the start and the output
GPUS = 2
# A family: an architecture and what its weights were first trained on. Members of one err alike.
MODEL_FAMILIES = {
    "efficientnet_b4": "convolutions of 2017 to 2020",
    "resnext50": "convolutions of 2017 to 2020",
    "convnext_small": "ConvNeXt",
    "convnext_base": "ConvNeXt",
    "tiny_vit": "convolutions below attention",
    "deit_base": "ViT on ImageNet's labels",
    "vit_base_clip": "ViT on pictures and captions",
    "eva02_small": "ViT on masked pictures",
    "dinov2_small": "ViT without labels",
    "dinov2_base": "ViT without labels",
}


@dataclass(frozen=True)
class WeekCandidate:
    """A recipe with the folds that it still lacks. `limit` says what its time is: the network's or the loader's."""

    name: str
    family: str
    hours_a_fold: float
    folds: tuple[int, ...]
    limit: str
    started: bool = False

    def hours(self, n_folds: int | None = None) -> float:
        """Return hours of the GPUs for its first folds (default: all that it lacks), one fold a GPU at a time."""
        return math.ceil((len(self.folds) if n_folds is None else n_folds) / GPUS) * self.hours_a_fold


@dataclass(frozen=True)
class Push:
    """One session: folds of a recipe, its hours, and whether the recipe is whole after it."""

    name: str
    family: str
    folds: tuple[int, ...]
    hours: float
    limit: str
    whole: bool


@dataclass(frozen=True)
class Speeds:
    """Measured seconds of an epoch over those counted: by timm model, and the median of these for all others."""

    by_model: Mapping[str, float]

    @property
    def typical(self) -> float:
        """Return the median over models; 1 where nothing has been measured."""
        return median(self.by_model.values()) if self.by_model else 1.0

    def of(self, config: RunConfig) -> float:
        """Return by how much a recipe's counted hours are multiplied."""
        return self.by_model.get(config.model, self.typical)


@dataclass(frozen=True)
class WeekPlan:
    """Sessions in their order, recipes that do not fit, and the speeds that corrected the hours."""

    pushes: tuple[Push, ...]
    left_out: tuple[str, ...]
    speeds: Speeds

    @property
    def hours(self) -> float:
        """Return the hours of all sessions."""
        return sum(push.hours for push in self.pushes)


def plan_week(
    hours: float, names: Sequence[str], n_images: int, n_splits: int, *, runs: Path | None = None, gpu: Gpu = T4
) -> WeekPlan:
    """Return the sessions to push, in their order, so that the hours buy the most families (see the module's rule).

    `names` are recipes (where empty: `MODEL_FAMILIES`). `runs` is a folder of runs: folds finished there are not
    planned again, and speeds measured there on this GPU correct the counted hours. `gpu` has the speed of one of the
    two GPUs (`gpu_check.t4.read_t4`: measured).

    Raises:
        UserError: There is no such recipe, a name is given twice, or there are no hours.
    """
    if not 0 < hours < math.inf:
        raise UserError(f"--hours must be a number above 0, got {hours:g}")
    chosen = list(names) or list(MODEL_FAMILIES)
    if len(set(chosen)) < len(chosen):
        raise UserError(f"each recipe once, got {', '.join(chosen)}")
    speeds = Speeds({} if runs is None else measured_speeds(runs, gpu))
    candidates = []
    for name in chosen:
        config = recipe(name)
        done = set() if runs is None else finished_folds(runs, name)
        each = fold_hours(config, n_images, n_splits, gpu=gpu) * speeds.of(config)
        limit = "loader" if waits_for_loader(config, n_images, n_splits, gpu) else "network"
        folds = tuple(fold for fold in range(n_splits) if fold not in done)
        candidates.append(WeekCandidate(name, family_of(config), each, folds, limit, bool(done)))
    pushes, left_out = fill(by_rule(candidates), hours)
    return WeekPlan(tuple(pushes), tuple(left_out), speeds)


def family_of(config: RunConfig) -> str:
    """Return a recipe's family; for one that is not in `MODEL_FAMILIES`, timm's module of its architecture."""
    if config.recipe in MODEL_FAMILIES:
        return MODEL_FAMILIES[config.recipe]
    import timm

    return timm.models.model_entrypoint(config.model.split(".")[0]).__module__.rpartition(".")[2]


def waits_for_loader(config: RunConfig, n_images: int, n_splits: int, gpu: Gpu) -> bool:
    """Return whether an epoch lasts as long as decoding and augmenting its images."""
    n_validation = n_images / n_splits
    rows = n_images - n_validation, n_validation
    return loader_seconds(config, *rows) / gpu.cores >= epoch_seconds(config, *rows, gpu=gpu)


def by_rule(candidates: Sequence[WeekCandidate]) -> list[WeekCandidate]:
    """Return candidates in the order in which they are taken.

    What has been begun comes first. A family whose members are finished has had its turn as often as it has members.
    """
    turns: dict[str, int] = {}
    for each in candidates:
        turns[each.family] = turns.get(each.family, 0) + (not each.folds)
    ordered = []
    for each in sorted((each for each in candidates if each.folds), key=lambda each: (not each.started, each.hours())):
        ordered.append((0 if each.started else 1, turns[each.family], each.hours(), each))
        turns[each.family] += 1
    return [each for *_, each in sorted(ordered, key=lambda row: row[:3])]


def fill(candidates: Sequence[WeekCandidate], hours: float) -> tuple[list[Push], list[str]]:
    """Return the sessions that fit into the hours, and the names of what is left out.

    Whole recipes first; then the first that did not fit is begun with as many folds as the rest allows.
    """
    pushes: list[Push] = []
    left_out: list[WeekCandidate] = []
    for each in candidates:
        if each.hours() > hours:
            left_out.append(each)
            continue
        pushes += sessions(each, each.folds)
        hours -= each.hours()
    for each in left_out:
        n = GPUS * int(hours / each.hours_a_fold)
        if n:
            pushes += sessions(each, each.folds[:n])
            left_out.remove(each)
            break
    return pushes, [each.name for each in left_out]


def sessions(each: WeekCandidate, folds: tuple[int, ...]) -> list[Push]:
    """Return the folds as sessions of at most `SESSION_HOURS`; a fold that is longer goes on in a second run of its."""
    n = GPUS * max(1, int(SESSION_HOURS / each.hours_a_fold))
    parts = [folds[k : k + n] for k in range(0, len(folds), n)]
    last = len(parts) - 1
    return [
        Push(each.name, each.family, part, each.hours(len(part)), each.limit, k == last and folds == each.folds)
        for k, part in enumerate(parts)
    ]


def finished_folds(runs: Path, name: str) -> set[int]:
    """Return the folds of a recipe, as it is in the catalogue, that are finished in a folder of runs."""
    numbers = (path.parent.name.removeprefix("fold") for path in runs.glob(f"{name}/fold*/{DONE_FILE}"))
    return {int(number) for number in numbers if number.isdecimal()}


def measured_speeds(runs: Path, gpu: Gpu) -> dict[str, float]:
    """Return measured seconds of an epoch over those counted, by timm model, from finished runs on such a GPU.

    Of a run: the median epoch in `metrics.csv`; its `run.json` has the device and the number of training rows.
    """
    found: dict[str, list[float]] = {}
    for path in sorted(runs.glob(f"*/fold*/{DONE_FILE}")):
        done = read_object(path)
        if gpu.name not in str(done.get("device", "")) or "training_rows" not in done:
            continue
        config, seconds = _read_epochs(path.parent)
        if config is None or not seconds:
            continue
        counted = epoch_seconds(config, done["training_rows"], done["oof_rows"], gpu=gpu)
        processes = int(done.get("given", {}).get("processes", 1))
        found.setdefault(config.model, []).append(median(seconds) * processes / counted)
    return {model: median(ratios) for model, ratios in found.items()}


def _read_epochs(run_dir: Path) -> tuple[RunConfig | None, list[float]]:
    """Return a run's configuration, None where it is of no recipe, and the seconds of its epochs."""
    from pandas.api.types import is_numeric_dtype

    values: Any = read_json(run_dir / CONFIG_FILE)
    file = run_dir / METRICS_FILE
    if not isinstance(values, dict) or "epochs" not in values or not file.is_file():
        return None, []
    epochs = read_csv(file)
    if "seconds" not in epochs or not is_numeric_dtype(epochs["seconds"]):
        raise UserError(
            f"{file} must have a column of numbers, seconds; train the run again, or leave it out of --runs"
        )
    return RunConfig.from_values(values), epochs["seconds"].tolist()
