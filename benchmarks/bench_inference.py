"""The submission run against the usual notebook, timm's loop, the decoder, its own plan, the clock and the memory.

Members are small timm networks with random weights and heads fitted to the photographs' labels, so that they agree
about as trained members do. Ways that are compared take turns in every round; figures are medians over rounds. All of
it takes about ten minutes on two cores on which nothing else runs. On shared cores `--clock cpu` counts the processor
seconds of the process and its children: work saved shows, waiting does not.

    python benchmarks/bench_inference.py [--images FOLDER] [--files 600] [--rounds 3] [--part notebook limits ...]
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
import timm
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset

from cassava_kit.data.images import load_image
from cassava_kit.data.table import list_images
from cassava_kit.data.transforms import normalize
from cassava_kit.files import read_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.kept_pixels import Budget
from cassava_kit.inference.machine import cpu_count
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.pixels import PixelStore
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.report import RunReport
from cassava_kit.inference.run import run_submission
from cassava_kit.inference.runner import Runner
from cassava_kit.inference.submission import check_answers
from cassava_kit.inference.tta import make_views
from cassava_kit.models.checkpoint import CheckpointInfo, load_model, save_checkpoint

MEMBERS = ("mobilenetv3_large_100", "resnet18", "efficientnet_b0")
SIZE = 160
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRIOR = (0.05, 0.10, 0.11, 0.62, 0.12)
BATCH = 16
CONFIDENCE = 0.85
PLANNED_FILES = 200


def main() -> None:
    """Prepare images and members, then run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of 800x600 photographs, with labels.csv if there is one")
    parser.add_argument("--files", type=int, default=600, help="the photographs are repeated to this many files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), help="timm names")
    parser.add_argument("--size", type=int, default=SIZE, help="side of the members' input")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--trials", type=int, default=20, help="random time limits (part planner)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        photographs = arguments.images or default_photographs(arguments.folder)
        arguments.source = photographs
        arguments.paths = repeated(photographs, arguments.files, arguments.folder / "images")
        arguments.size = (arguments.size, arguments.size)
        arguments.seconds = CLOCKS[arguments.clock]
        arguments.weights = make_members(arguments.members, photographs, arguments.folder / "weights", arguments.size)
        print(
            f"{arguments.files} files from {photographs.name}, {cpu_count()} cores, {torch.get_num_threads()} threads, "
            f"{arguments.clock} seconds; {', '.join(arguments.members)} at {arguments.size[0]} px"
        )
        for part in arguments.part:
            print(f"\n[{part}]", flush=True)
            start = time.perf_counter()
            PARTS[part](arguments)
            print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def default_photographs(folder: Path) -> Path:
    """The real photographs if they are at hand, else drawn ones of the same size."""
    if (real_data() / "originals").is_dir():
        return real_data() / "originals"
    drawn = folder / "drawn"
    drawn.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        field = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (800, 600), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(drawn / f"{i}.jpg"), field)
    return drawn


def real_data() -> Path:
    """Where the real photographs and tables lie, if they do."""
    return Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


def repeated(photographs: Path, n_files: int, folder: Path) -> list[Path]:
    """Links to the photographs, over and over, under `n_files` names."""
    folder.mkdir()
    names = list_images(photographs)
    for i in range(n_files):
        (folder / f"{i:05d}.jpg").symlink_to((photographs / names[i % len(names)]).resolve())
    return sorted(folder.iterdir())


def labels_of(photographs: Path, names: list[str]) -> np.ndarray:
    """The photographs' labels, or drawn ones."""
    table = photographs / "labels.csv"
    if not table.is_file():
        return np.random.default_rng(0).choice(5, len(names), p=PRIOR)
    with table.open(newline="") as file:
        by_name = {row["image_id"]: int(row["label"]) for row in csv.DictReader(file)}
    return np.array([by_name[name] for name in names])


@torch.no_grad()
def make_members(models: list[str], photographs: Path, folder: Path, size: tuple[int, int]) -> Path:
    """Checkpoints with random backbones and ridge-regressed heads, and their ensemble file with the four flips.

    The heads see all four flips, as members that were trained with augmentation did, and are as sure of them on the
    whole as `CONFIDENCE` says.
    """
    folder.mkdir()
    names = list_images(photographs)
    views = make_views("flips")
    labels = torch.eye(5)[labels_of(photographs, names)].repeat(len(views), 1)
    pixels = torch.stack([torch.from_numpy(load_image(photographs / name, size)) for name in names])
    for i, name in enumerate(models):
        torch.manual_seed(i)
        model = timm.create_model(name, num_classes=5).eval()
        inputs: list[torch.Tensor] = []
        head = model.get_classifier()
        handle = head.register_forward_hook(lambda module, args, output, inputs=inputs: inputs.append(args[0]))
        for view in views:
            for batch in pixels.split(BATCH):
                model(view(normalize(batch.permute(0, 3, 1, 2), MEAN, STD)))
        handle.remove()
        features = torch.cat(inputs).double()
        centre, spread = features.mean(0), features.std(0) + 1e-9
        z = (features - centre) / spread
        w = torch.linalg.solve(z.T @ z + 0.3 * len(z) * torch.eye(z.shape[1]), z.T @ (labels - labels.mean(0)).double())
        logits = z @ w + labels.mean(0)
        scale = next(s for s in np.geomspace(1, 1000, 200) if (logits * s).softmax(1).amax(1).mean() >= CONFIDENCE)
        head.weight.copy_((scale * w / spread[:, None]).T)
        head.bias.copy_(scale * (labels.mean(0) - centre / spread @ w))
        facts: dict[str, Any] = {"model": name, "n_classes": 5, "input_size": size, "mean": MEAN, "std": STD}
        info = CheckpointInfo(**facts, recipe=name, fold=0, prior=PRIOR)
        save_checkpoint(folder / f"{name}-fold0.safetensors", model.state_dict(), info)
    members = tuple(
        EnsembleMember(name=name, weight=1 / len(models), checkpoints=(f"{name}-fold0.safetensors",)) for name in models
    )
    write_ensemble(folder / ENSEMBLE_FILE, Ensemble(members=members, views="flips", prior=PRIOR))
    return folder


class NotebookDataset(Dataset):
    """imread, BGR to RGB, Resize, Normalize, ToTensorV2: what the public notebooks do."""

    def __init__(self, paths: list[Path], size: tuple[int, int]) -> None:
        self.paths = paths
        self.transform = A.Compose([A.Resize(*size), A.Normalize(MEAN, STD), ToTensorV2()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"]


def notebook_loader(paths: list[Path], size: tuple[int, int]) -> DataLoader:
    return DataLoader(NotebookDataset(paths, size), batch_size=32, num_workers=cpu_count())


@torch.no_grad()
def notebook(paths: list[Path], weights: Path) -> np.ndarray:
    """For every member, for every view: load all images, predict; the mean of probabilities (N, K)."""
    total = np.zeros((len(paths), 5))
    for file in sorted(weights.glob("*.safetensors")):
        model, info = load_model(file)
        for view in make_views("flips"):
            loader = notebook_loader(paths, info.input_size)
            total += np.concatenate([model(view(x)).softmax(1).numpy() for x in loader])
    return total / total.sum(axis=1, keepdims=True)


def notebook_data(paths: list[Path], n_passes: int, size: tuple[int, int]) -> None:
    for _ in range(n_passes):
        for _ in notebook_loader(paths, size):
            pass


def kit_data(paths: list[Path], n_passes: int, size: tuple[int, int]) -> None:
    with PixelStore(paths, [size]) as store:
        for _ in range(n_passes):
            for _ in store.batches(np.arange(len(paths)), size, BATCH):
                pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the run's own lines."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def submit(arguments: argparse.Namespace, early_stop: str, **limits: float) -> RunReport:
    """One submission run on the CPU."""
    options = RunOptions(early_stop=early_stop, device="cpu", batch_size=BATCH, progress=False)
    out = arguments.folder / early_stop / "submission.csv"
    with quiet():
        return run_submission(arguments.paths[0].parent, arguments.weights, out, options=options, **limits)


def labels_in(arguments: argparse.Namespace, early_stop: str) -> list[str]:
    return (arguments.folder / early_stop / "submission.csv").read_text().splitlines()


def cpu_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    return sum(os.times()[:4])


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": cpu_seconds}


@dataclass(frozen=True)
class Way:
    """One way to do the work, and on how many images."""

    name: str
    run: Callable[[], Any]
    n_images: int


def interleaved(ways: list[Way], arguments: argparse.Namespace) -> None:
    """Print the median images per second of each way; every round runs all of them in turn. Ratios are to the first."""
    rates: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(arguments.rounds):
        for way in ways:
            start = arguments.seconds()
            way.run()
            rates[way.name].append(way.n_images / max(arguments.seconds() - start, 1e-9))
    first = rates[ways[0].name]
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, first, strict=True))
        print(f"{name:44} {statistics.median(found):8.1f} images/s  {ratio:6.2f} x", flush=True)


def against_notebook(arguments: argparse.Namespace) -> None:
    """Members x 4 views; the kit's times include loading, measuring and planning.

    The notebook's time is proportional to the images (no plan), so that a third of them is enough for it.
    """
    paths, weights, n = arguments.paths, arguments.weights, len(arguments.paths)
    third = paths[: max(1, n // 3)]
    interleaved(
        [
            Way("notebook", lambda: notebook(third, weights), len(third)),
            Way("kit, every view of every member", lambda: submit(arguments, "off"), n),
            Way("kit, certified stopping", lambda: submit(arguments, "certified"), n),
        ],
        arguments,
    )
    report = read_json(arguments.folder / "off" / "run.json")
    seconds = {key: report["timings"][key] for key in ("loading", "work", "total")}
    print("seconds of the full run:", {key: round(value, 1) for key, value in seconds.items()})
    same = labels_in(arguments, "off") == labels_in(arguments, "certified")
    done = read_json(arguments.folder / "certified" / "run.json")["early_stop"]["work_done"]
    print(f"labels with certified stopping identical: {same}; {100 * done:.0f} % of the votes were needed")
    files = sorted(weights.glob("*.safetensors"))
    passes = len(files) * 4
    interleaved(
        [
            Way("notebook, data alone", lambda: notebook_data(third, passes, arguments.size), len(third)),
            Way("kit, data alone", lambda: kit_data(paths, passes, arguments.size), n),
        ],
        arguments,
    )
    checked = paths[:48]
    found, _ = predict_images(files, checked, views="flips", device="cpu", batch_size=BATCH, progress=False)
    worst = np.abs(found - plain_loop(files, checked)).max()
    print(f"largest difference of a probability from the plain loop over the same pixels: {worst:.1e}")


@torch.no_grad()
def plain_loop(files: list[Path], paths: list[Path]) -> np.ndarray:
    """Probabilities (M, N, K) view by view, in eager torch, over `load_image`'s pixels."""
    answers = []
    for file in files:
        model, info = load_model(file)
        x = torch.stack([torch.from_numpy(load_image(path, info.input_size)).permute(2, 0, 1) for path in paths])
        x = normalize(x, info.mean, info.std)
        answers.append(torch.stack([model(view(x)).softmax(1) for view in make_views("flips")]).mean(0).numpy())
    return np.stack(answers)


def against_timm(arguments: argparse.Namespace) -> None:
    """One CNN, one view: timm's evaluation transform in a DataLoader and eager torch, against `predict_images`."""
    file = arguments.weights / f"{arguments.members[0]}-fold0.safetensors"

    class Files(Dataset):
        transform = timm.data.create_transform(input_size=(3, *arguments.size), mean=MEAN, std=STD, crop_pct=1.0)

        def __len__(self) -> int:
            return len(arguments.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            from PIL import Image

            with Image.open(arguments.paths[index]) as image:
                return self.transform(image.convert("RGB"))

    def by_timm() -> None:
        model, _ = load_model(file)
        with torch.inference_mode():
            for x in DataLoader(Files(), batch_size=32, num_workers=cpu_count()):
                model(x).softmax(1)

    def by_kit() -> None:
        predict_images([file], arguments.paths, device="cpu", progress=False)

    n = len(arguments.paths)
    interleaved([Way("timm", by_timm, n), Way("kit", by_kit, n)], arguments)


def against_limits(arguments: argparse.Namespace) -> None:
    """The pass over the pixels against the fastest exact decoder alone, and the whole against the bare model."""
    paths, rows, n = arguments.paths, np.arange(len(arguments.paths)), len(arguments.paths)

    def decode_alone() -> None:
        def one(path: Path) -> None:
            cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)

        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(one, paths))

    def read() -> None:
        with PixelStore(paths, [arguments.size], keep=False) as store:
            for _ in store.batches(rows, arguments.size, BATCH):
                pass

    interleaved([Way("decoder alone", decode_alone, n), Way("kit, pixels alone", read, n)], arguments)
    folder = make_members(["resnet50"], arguments.source, arguments.folder / "large", (224, 224))
    against_bare(arguments, folder / "resnet50-fold0.safetensors")


def against_bare(arguments: argparse.Namespace, file: Path) -> None:
    """The runner over images that are already read, against the same model over one batch in memory."""
    paths = arguments.paths[: min(len(arguments.paths), 160) // BATCH * BATCH]
    size, plain, rows = (224, 224), make_views("none")[0], np.arange(len(paths))
    with PixelStore(paths, [size], budget=Budget(1 << 30)) as store:
        runner = Runner(store, [torch.device("cpu")], BATCH)
        (forward,) = runner.load(file)
        batch = next(store.batches(rows, size, BATCH)).pixels
        with torch.inference_mode():
            images = normalize(batch.permute(0, 3, 1, 2), MEAN, STD).contiguous(memory_format=torch.channels_last)

            def bare() -> None:
                for _ in range(len(paths) // BATCH):
                    forward._logits(images)

            def whole() -> None:
                runner.predict(file, [plain], rows, lambda view, seen, probabilities: None)

            whole()
            ways = [Way("bare resnet50", bare, len(paths)), Way("kit, images in memory", whole, len(paths))]
            interleaved(ways, arguments)


def of_planner(arguments: argparse.Namespace) -> None:
    """The plan's seconds against the seconds that the work took, and random limits."""
    few = argparse.Namespace(**vars(arguments) | {"paths": arguments.paths[:PLANNED_FILES]})
    folder = arguments.folder / "planned"
    folder.mkdir()
    for path in few.paths:
        (folder / path.name).symlink_to(path.resolve())
    few.paths = sorted(folder.iterdir())
    errors, whole = [], 0.0
    for _ in range(arguments.rounds):
        start = time.time()
        report = submit(few, "off", started=start)
        planned, took = report.plan["total_seconds"], report.timings["work"]
        errors.append(planned / took - 1)
        whole = report.timings["total"]
        print(f"planned {planned:.1f} s, took {took:.1f} s: {100 * errors[-1]:+.1f} %", flush=True)
    print(f"median error {100 * statistics.median(map(abs, errors)):.1f} %")
    rng = np.random.default_rng(0)
    late, kept = [], 0
    for _ in range(arguments.trials):
        start, limit = time.time(), float(rng.uniform(0.2, 0.8)) * whole
        report = submit(few, "off", time_limit=limit, started=start)
        late.append(time.time() - start - limit)
        kept += late[-1] <= max(5.0, 0.02 * limit)
        check_answers(few.folder / "off" / "submission.csv", folder)
        done = 100 * report.early_stop["work_done"]
        print(f"limit {limit:5.1f} s: {late[-1]:+.2f} s, {done:.0f} % of the work", flush=True)
    if late:
        print(f"kept in {kept} of {len(late)} trials; latest {max(late):+.2f} s against the limit")


def of_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of whole runs over 1,000 and 15,000 files, each in a separate process, with a budget of 64 MB."""
    code = (
        "import resource, sys\n"
        "from cassava_kit.inference.kept_pixels import Budget\n"
        "from cassava_kit.inference.options import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "options = RunOptions(views='none', device='cpu', batch_size=16, budget=Budget(64 << 20), progress=False)\n"
        "run_submission(*sys.argv[1:4], options=options)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    weights = make_members(["test_resnet", "test_efficientnet"], arguments.source, arguments.folder / "tiny", (64, 64))
    peaks = {}
    for n_files in (1000, 15000):
        folder = repeated(arguments.source, n_files, arguments.folder / str(n_files))[0].parent
        command = [sys.executable, "-c", code, str(folder), str(weights), str(arguments.folder / "out" / "s.csv")]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peaks[n_files] = int(done.stdout.split()[-1]) / 1024
        print(f"{n_files:6d} files: peak {peaks[n_files]:.0f} MB", flush=True)
    print(f"growth {peaks[15000] - peaks[1000]:+.0f} MB")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "notebook": against_notebook,
    "timm": against_timm,
    "limits": against_limits,
    "planner": of_planner,
    "memory": of_memory,
}


if __name__ == "__main__":
    main()
