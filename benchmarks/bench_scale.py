"""The kit at the competition's full size: seconds and peak memory of each step at growing numbers of images.

Photographs of the competition's size and bytes are made of the real ones once (photographs.py): about 4.3 GB and five
minutes of two cores for the full size. Each step is one process, as a user starts it. Seconds are wall time and CPU
time; memory is the sum of the resident sizes of the process and its children, read ten times a second, and at least the
peak of any one of them (Linux). Steps run in a user's order: `eda` and `review` find the fingerprints of the step
`groups` in the cache. The files are mostly in the system's file cache.

A step is called linear where an image costs at the largest size at most 1.2 times what it costs at the size nearest to
5,000; the cost of each further image is shown too, which excludes start-up. Results are kept in the cache folder, and
the table is made of all that are kept, so that sizes and steps can be run one by one.

    python benchmarks/bench_scale.py [--sizes 1000 5000 15000 21397] [--steps folds groups eda ...] [--out TABLE.md]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import pandas as pd
from photographs import N_TEST, competition_folder
from usage import measure_usage

from cassava_kit.data.folds import read_folds
from cassava_kit.files import cache_dir, read_json, write_json, write_text

SIZES = (1000, 5000, 15_000, 21_397)
BASE, TOLERANCE = 5000, 1.2
CACHE_SIZE = (192, 256)  # height, width of the pixel cache
MEMBERS, FOLDS = ("small_resnet", "small_vit"), 2
RESULTS = "results.json"


@dataclass(frozen=True)
class Workplace:
    """Paths of one size's steps: the competition folder, and the folder of their own files."""

    data: Path
    work: Path
    real: Path
    n_train: int
    n_test: int
    time_limit: float

    @property
    def folds(self) -> Path:
        return self.work / "folds.csv"

    @property
    def clean(self) -> Path:
        return self.work / "clean.csv"


@dataclass(frozen=True)
class Step:
    """A command by its arguments after `python`, what it writes, and the steps before it that it needs."""

    command: Callable[[Workplace], list[str]]
    writes: tuple[str, ...]
    needs: tuple[str, ...] = ()
    prepare: Callable[[Workplace], object] | None = None
    images: Callable[[Workplace], int] = lambda place: place.n_train
    note: Callable[[Workplace], str] = lambda place: ""


def kit(*arguments: object) -> list[str]:
    return ["-m", "cassava_kit", *map(str, arguments)]


def write_oof(place: Workplace) -> None:
    """The real out-of-fold table's rows of this size as a foreign file: no header, a fold column of our split."""
    rows = pd.read_csv(place.real / "tables" / "oof_rank14.csv", dtype={"image_id": str})
    probabilities = rows.filter(regex=r"^c\d$")
    probabilities = probabilities.div(probabilities.sum(axis=1), axis=0).rename(columns=lambda name: f"p{name[1:]}")
    folds = read_folds(place.folds).frame[["image_id", "fold"]]
    rows.join(probabilities)[["image_id", *probabilities.columns]].merge(folds).to_csv(
        place.work / "rank14.csv", index=False
    )


def write_members(place: Workplace) -> None:
    """An ensemble of two small recipes, two folds each, with random weights: no vote is ever settled early by them."""
    import torch

    from cassava_kit.competition import CASSAVA
    from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
    from cassava_kit.models.checkpoint import CheckpointInfo, save_checkpoint
    from cassava_kit.models.network import create_model, image_statistics
    from cassava_kit.training.recipes import recipe

    folder = place.work / "weights"
    members = []
    for name in MEMBERS:
        config = recipe(name)
        files = [f"{name}-fold{fold}.safetensors" for fold in range(FOLDS)]
        for fold, file in enumerate(files):
            torch.manual_seed(fold)
            model = create_model(config.model, CASSAVA.n_classes, model_args=config.model_args)
            mean, std = image_statistics(model)
            info = CheckpointInfo(
                model=config.model,
                model_args=config.model_args,
                n_classes=CASSAVA.n_classes,
                input_size=(config.image_size, config.image_size),
                mean=mean,
                std=std,
                recipe=name,
                fold=fold,
                prior=CASSAVA.class_shares,
            )
            save_checkpoint(folder / file, model.state_dict(), info)
        members.append(EnsembleMember(name=name, weight=1 / len(MEMBERS), checkpoints=tuple(files)))
    write_ensemble(folder / ENSEMBLE_FILE, Ensemble(members=tuple(members), prior=CASSAVA.class_shares))


def votes_counted(place: Workplace) -> str:
    """How much of the submission run's work was done: less than all where the time limit cut it."""
    report = read_json(place.work / "submission" / "run.json")
    return f"{report['early_stop']['work_done']:.0%} of the votes counted"


def pixel_cache(place: Workplace) -> list[str]:
    """What `train --cache` does first, and nothing else."""
    program = (
        "import sys; from pathlib import Path; from cassava_kit.data.cache import open_cache; "
        "from cassava_kit.data.table import read_competition; table = read_competition(sys.argv[1]); "
        "paths = [table.image_dir / name for name in table.frame['image_id']]; "
        f"open_cache(Path(sys.argv[2]), paths, {CACHE_SIZE})"
    )
    return ["-c", program, str(place.data), str(place.work / "pixels")]


STEPS = {
    "folds": Step(
        lambda p: kit("folds", "--data", p.data, "--no-groups", "--out", p.folds), ("folds.csv", "folds.json")
    ),
    "groups": Step(
        lambda p: kit("folds", "--data", p.data, "--out", p.work / "groups.csv"),
        ("groups.csv", "groups.json", "cache"),
    ),
    "eda": Step(
        lambda p: kit("eda", "--data", p.data, "--out", p.work / "eda" / "eda.html"), ("eda",), needs=("groups",)
    ),
    "pixels": Step(pixel_cache, ("pixels",)),
    "clean": Step(
        lambda p: kit("clean", "--oof", p.work / "rank14.csv", "--folds", p.folds, "--out", p.clean),
        ("clean.csv", "clean.json"),
        needs=("folds",),
        prepare=write_oof,
    ),
    "review": Step(
        lambda p: kit("review", p.clean, "--data", p.data, "--out", p.work / "review.html"),
        ("review.html",),
        needs=("clean", "groups"),
    ),
    "submission": Step(
        lambda p: kit(
            *("submission", "--ensemble", p.work / "weights", "--images", p.data / "test_images"),
            *("--out", p.work / "submission" / "submission.csv", "--time-limit", p.time_limit, "--device", "cpu"),
        ),
        ("submission",),
        prepare=write_members,
        images=lambda place: place.n_test,
        note=votes_counted,
    ),
}


def main() -> None:
    """Make the photographs, run the steps asked for at every size, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="training images; as many test images")
    parser.add_argument("--steps", nargs="*", choices=list(STEPS), default=list(STEPS), help="none: photographs alone")
    parser.add_argument("--cache", type=Path, default=cache_dir() / "scale", help="folder for photographs and results")
    parser.add_argument("--real", type=Path, default=real_data(), help="folder with originals/ and tables/")
    parser.add_argument("--time-limit", type=float, default=3600, help="seconds that a submission run may take")
    parser.add_argument("--out", type=Path, help="markdown file to write the table to")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    wanted = with_needs(arguments.steps)
    for n in sorted(arguments.sizes):
        n_test = min(n, N_TEST)
        data = competition_folder(arguments.cache, arguments.real, n, n_test=n_test)
        place = Workplace(data, arguments.cache / "work" / str(n), arguments.real, n, n_test, arguments.time_limit)
        for name in wanted:
            record = run_step(STEPS[name], place)
            keep(arguments.cache / RESULTS, name, record)
            print(f"{name} at {record['images']:,}: {line_of(record)}", flush=True)
    results = arguments.cache / RESULTS
    if results.is_file():
        text = table(read_json(results))
        print("\n" + text)
        if arguments.out:
            write_text(arguments.out, text)


def real_data() -> Path:
    """Where the real photographs and tables lie, if they do."""
    return Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


def with_needs(steps: Sequence[str]) -> list[str]:
    """The steps and all that they need, in the order of `STEPS`."""
    wanted, todo = set(), list(steps)
    while todo:
        name = todo.pop()
        wanted.add(name)
        todo += [need for need in STEPS[name].needs if need not in wanted]
    return [name for name in STEPS if name in wanted]


def run_step(step: Step, place: Workplace) -> dict[str, Any]:
    """Run a step from nothing and measure it; RuntimeError with its last lines where it fails."""
    place.work.mkdir(parents=True, exist_ok=True)
    for name in step.writes:
        remove(place.work / name)
    if step.prepare is not None:
        step.prepare(place)
    log = place.work / "log.txt"
    environment = {**os.environ, "CASSAVA_KIT_CACHE": str(place.work / "cache")}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    use = measure_usage([sys.executable, *step.command(place)], log, environment)
    written = sum(size_of(place.work / name) for name in step.writes)
    return {
        "images": step.images(place),
        "seconds": round(use.seconds, 2),
        "cpu_seconds": round(use.cpu_seconds, 2),
        "peak_mb": round(use.peak_bytes / 1e6, 1),
        "written_mb": round(written / 1e6, 2),
        "note": step.note(place),
    }


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    files = [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files)


def keep(file: Path, step: str, record: dict[str, Any]) -> None:
    """Note a step's figures, in the place of earlier ones at this size."""
    results = read_json(file) if file.is_file() else {}
    results.setdefault(step, {})[str(record["images"])] = record
    write_json(file, results)


def line_of(record: dict[str, Any]) -> str:
    return (
        f"{record['seconds']:.1f} s (processor {record['cpu_seconds']:.1f} s), {record['peak_mb']:,.0f} MB at most, "
        f"{record['written_mb']:,.1f} MB written{', ' if record['note'] else ''}{record['note']}"
    )


def table(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The kept results as a markdown table, seconds and megabytes by step and size, and what they say of growth."""
    sizes = sorted({record["images"] for records in results.values() for record in records.values()})
    rows = [f"| step | {' | '.join(f'{n:,} images' for n in sizes)} |", "|---" + "|---:" * len(sizes) + "|"]
    verdicts = []
    for step in filter(results.__contains__, STEPS):
        records = {record["images"]: record for record in results[step].values()}
        rows.append(f"| `{step}` | {' | '.join(cell(records.get(n)) for n in sizes)} |")
        verdicts.append(f"- `{step}`: {growth([records[n] for n in sorted(records)])}")
    return "\n".join([*rows, "", *verdicts, ""])


def cell(record: dict[str, Any] | None) -> str:
    return f"{record['seconds']:.1f} s, {record['peak_mb']:,.0f} MB" if record else ""


def each_ms(record: dict[str, Any]) -> float:
    return float(1000 * record["seconds"] / record["images"])


def growth(records: Sequence[dict[str, Any]]) -> str:
    """Whether a step's cost grows linearly, by its records in order of size."""
    if len(records) < 2:
        return "one size alone"
    large = records[-1]
    base = min(records[:-1], key=lambda record: abs(record["images"] - BASE))
    more = large["images"] - base["images"]
    ratio = each_ms(large) / each_ms(base)
    further = 1000 * (large["seconds"] - base["seconds"]) / more
    memory = 1000 * (large["peak_mb"] - base["peak_mb"]) / more
    verdict = "linear" if ratio <= TOLERANCE else "NOT LINEAR"
    note = f"; {large['note']}" if large["note"] else ""
    return (
        f"{verdict}: an image costs at {large['images']:,} {ratio:.2f} times what it costs at {base['images']:,}; each "
        f"further one takes {further:.1f} ms and {memory:.0f} kB of memory{note}"
    )


if __name__ == "__main__":
    main()
