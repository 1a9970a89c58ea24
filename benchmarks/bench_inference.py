"""The submission run against the usual notebook, timm's loop, the decoder, its own plan, the clock and the memory.

Members are small timm networks with random weights and heads fitted to the photographs' labels, so that they agree
about as trained members do. Ways that are compared take turns in every round; figures are medians over rounds. Nothing
else should be running.

    python benchmarks/bench_inference.py [--images FOLDER] [--files 600] [--rounds 3] [--only notebook limits ...]
    python benchmarks/bench_inference.py --only budget --oof runs/*/oof.csv --folds folds/kfold5.csv
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

from cassava_kit.checkpoint import CheckpointInfo, load_model, save_checkpoint
from cassava_kit.data.images import load_image
from cassava_kit.data.table import list_images
from cassava_kit.data.transforms import normalize
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.forward import load_forward
from cassava_kit.inference.machine import cpu_count
from cassava_kit.inference.pixels import Format, PixelStore
from cassava_kit.inference.planner import Plan, arranged, choose_rows
from cassava_kit.inference.predict import predict_images
from cassava_kit.inference.report import RunOptions, RunReport
from cassava_kit.inference.run import run_submission
from cassava_kit.inference.tta import make_views
from cassava_kit.inference.votes import StopRule, Votes, simulate_stop

MEMBERS = ("mobilenetv3_large_100", "resnet18", "efficientnet_b0")
SIZE = (224, 224)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRIOR = (0.05, 0.10, 0.11, 0.62, 0.12)
BATCH = 16
CONFIDENCE = 0.85


def main() -> None:
    """Prepare images and members, then run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of 800x600 photographs, with labels.csv if there is one")
    parser.add_argument("--files", type=int, default=600, help="the photographs are repeated to this many files")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), help="timm names")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--oof", nargs="*", type=Path, default=[], help="members' out-of-fold files (part budget)")
    parser.add_argument("--folds", type=Path, help="their fold file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        photographs = arguments.images or default_photographs(arguments.folder)
        arguments.source = photographs
        arguments.paths = repeated(photographs, arguments.files, arguments.folder / "images")
        arguments.weights = make_members(arguments.members, photographs, arguments.folder / "weights")
        print(
            f"{arguments.files} files from {photographs}, {cpu_count()} cores, {', '.join(arguments.members)} at {SIZE}"
        )
        for part in arguments.only:
            print(f"\n[{part}]", flush=True)
            PARTS[part](arguments)


def default_photographs(folder: Path) -> Path:
    """The real photographs if they are at hand, else drawn ones of the same size."""
    root = Path(os.environ.get("CASSAVA_KIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if (root / "originals").is_dir():
        return root / "originals"
    drawn = folder / "drawn"
    drawn.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        field = cv2.resize(rng.integers(0, 256, (60, 80, 3), np.uint8), (800, 600), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(drawn / f"{i}.jpg"), field)
    return drawn


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
def make_members(models: list[str], photographs: Path, folder: Path) -> Path:
    """Checkpoints with random backbones and ridge-regressed heads, and their ensemble file with the four flips."""
    folder.mkdir()
    names = list_images(photographs)
    labels = torch.eye(5)[labels_of(photographs, names)]
    pixels = torch.stack([torch.from_numpy(load_image(photographs / name, SIZE)) for name in names])
    for i, name in enumerate(models):
        torch.manual_seed(i)
        model = timm.create_model(name, num_classes=5).eval()
        inputs: list[torch.Tensor] = []
        head = model.get_classifier()
        handle = head.register_forward_hook(lambda module, args, output, inputs=inputs: inputs.append(args[0]))
        for batch in pixels.split(BATCH):
            model(normalize(batch.permute(0, 3, 1, 2), MEAN, STD))
        handle.remove()
        features = torch.cat(inputs).double()
        centre, spread = features.mean(0), features.std(0) + 1e-9
        z = (features - centre) / spread
        w = torch.linalg.solve(z.T @ z + 0.3 * len(z) * torch.eye(z.shape[1]), z.T @ (labels - labels.mean(0)).double())
        logits = z @ w + labels.mean(0)
        scale = next(s for s in np.geomspace(1, 1000, 200) if (logits * s).softmax(1).amax(1).mean() >= CONFIDENCE)
        head.weight.copy_((scale * w / spread[:, None]).T)
        head.bias.copy_(scale * (labels.mean(0) - centre / spread @ w))
        facts: dict[str, Any] = {"model": name, "n_classes": 5, "input_size": SIZE, "mean": MEAN, "std": STD}
        info = CheckpointInfo(**facts, recipe=name, fold=0, prior=PRIOR)
        save_checkpoint(folder / f"{name}-fold0.safetensors", model.state_dict(), info)
    members = tuple(
        EnsembleMember(name=name, weight=1 / len(models), checkpoints=(f"{name}-fold0.safetensors",)) for name in models
    )
    write_ensemble(folder / ENSEMBLE_FILE, Ensemble(members=members, views="flips", prior=PRIOR))
    return folder


class NotebookDataset(Dataset):
    """imread, BGR to RGB, Resize, Normalize, ToTensorV2: what the public notebooks do."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = A.Compose([A.Resize(*SIZE), A.Normalize(MEAN, STD), ToTensorV2()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = cv2.cvtColor(cv2.imread(str(self.paths[index])), cv2.COLOR_BGR2RGB)
        return self.transform(image=image)["image"]


def notebook_loader(paths: list[Path]) -> DataLoader:
    return DataLoader(NotebookDataset(paths), batch_size=32, num_workers=cpu_count())


@torch.no_grad()
def notebook(paths: list[Path], weights: Path) -> np.ndarray:
    """For every member, for every view: load all images, predict; the mean of probabilities (N, K)."""
    total = np.zeros((len(paths), 5))
    for file in sorted(weights.glob("*.safetensors")):
        model, _ = load_model(file)
        for view in make_views("flips"):
            total += np.concatenate([model(view(x)).softmax(1).numpy() for x in notebook_loader(paths)])
    return total / 12


def notebook_data(paths: list[Path], n_passes: int) -> None:
    for _ in range(n_passes):
        for _ in notebook_loader(paths):
            pass


def kit_data(paths: list[Path], n_passes: int) -> None:
    wanted = Format(SIZE)
    with PixelStore(paths, [wanted]) as store:
        for _ in range(n_passes):
            for _ in store.batches(np.arange(len(paths)), wanted, BATCH):
                pass


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the run's own lines."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def submit(arguments: argparse.Namespace, early_stop: str, **limits: float) -> RunReport:
    """One submission run on the CPU."""
    options = RunOptions(early_stop=early_stop, device="cpu", batch_size=BATCH, progress=False, engine=arguments.engine)
    out = arguments.folder / early_stop / "submission.csv"
    with quiet():
        return run_submission(arguments.paths[0].parent, arguments.weights, out, options=options, **limits)


def labels_in(arguments: argparse.Namespace, early_stop: str) -> list[str]:
    return (arguments.folder / early_stop / "submission.csv").read_text().splitlines()


def interleaved(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; every round runs all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(medians: dict[str, float], n_images: int) -> None:
    """Images per second, and the ratio to the first line."""
    first = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"{name:44} {n_images / seconds:8.1f} images/s  {first / seconds:6.2f} x", flush=True)


def against_notebook(arguments: argparse.Namespace) -> None:
    """3 members x 4 views; the kit's times include loading, measuring and planning."""
    paths, weights = arguments.paths, arguments.weights
    table(
        interleaved(
            {
                "notebook": lambda: notebook(paths, weights),
                "kit, every view of every member": lambda: submit(arguments, "off"),
                "kit, certified stopping": lambda: submit(arguments, "certified"),
            },
            arguments.rounds,
        ),
        len(paths),
    )
    print(
        f"labels with certified stopping identical: {labels_in(arguments, 'off') == labels_in(arguments, 'certified')}"
    )
    table(
        interleaved(
            {"notebook, data alone": lambda: notebook_data(paths, 12), "kit, data alone": lambda: kit_data(paths, 12)},
            1,
        ),
        len(paths),
    )
    checked = paths[:64]
    files = sorted(weights.glob("*.safetensors"))
    found, _ = predict_images(files, checked, views="flips", device="cpu", progress=False)
    worst = np.abs(found - plain_loop(files, checked)).max()
    print(f"largest difference from the plain loop over the same pixels: {worst:.1e}")


@torch.no_grad()
def plain_loop(files: list[Path], paths: list[Path]) -> np.ndarray:
    """Probabilities (M, N, K) image by image, view by view, in eager torch."""
    answers = []
    for file in files:
        model, info = load_model(file)
        x = torch.stack([torch.from_numpy(load_image(path, SIZE)).permute(2, 0, 1) for path in paths])
        x = normalize(x, info.mean, info.std)
        answers.append(torch.stack([model(view(x)).softmax(1) for view in make_views("flips")]).mean(0).numpy())
    return np.stack(answers)


def against_timm(arguments: argparse.Namespace) -> None:
    """One CNN, one view: timm's evaluation transform in a DataLoader and eager torch, against `predict_images`."""
    file = arguments.weights / f"{arguments.members[0]}-fold0.safetensors"

    class Files(Dataset):
        transform = timm.data.create_transform(input_size=(3, *SIZE), mean=MEAN, std=STD, crop_pct=1.0)

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

    table(interleaved({"timm": by_timm, "kit": by_kit}, arguments.rounds), len(arguments.paths))


def against_limits(arguments: argparse.Namespace) -> None:
    """The pass over the pixels against the decoder alone, and the whole against the bare model."""
    paths, rows = arguments.paths, np.arange(len(arguments.paths))

    def decode_alone() -> None:
        def one(path: Path) -> None:
            cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR_RGB)

        with ThreadPoolExecutor(cpu_count()) as pool:
            list(pool.map(one, paths))

    def read(pixels: str) -> Callable[[], None]:
        def once() -> None:
            wanted = Format(SIZE, pixels)
            with PixelStore(paths, [wanted], keep=False) as store:
                for _ in store.batches(rows, wanted, BATCH):
                    pass

        return once

    ways = {"decoder alone": decode_alone, "kit, exact pixels": read("exact"), "kit, half-size decoding": read("fast")}
    table(interleaved(ways, arguments.rounds), len(paths))
    file = make_members(["resnet50"], arguments.source, arguments.folder / "large") / "resnet50-fold0.safetensors"
    few = paths[: min(len(paths), 160)]
    forward = load_forward(file, torch.device("cpu"))
    batch, plain = torch.randint(0, 256, (BATCH, *SIZE, 3), dtype=torch.uint8), make_views("none")[0]

    def bare() -> None:
        for _ in range(len(few) // BATCH):
            forward.start(batch, plain)

    def whole() -> None:
        predict_images([file], few[: len(few) // BATCH * BATCH], batch_size=BATCH, device="cpu", progress=False)

    table(interleaved({"bare resnet50": bare, "kit with resnet50": whole}, arguments.rounds), len(few))


def of_budget(arguments: argparse.Namespace) -> None:
    """Labels at a share of the full cost, on real out-of-fold members: the kit's own choice of rows, replayed."""
    if len(arguments.oof) < 2 or arguments.folds is None:
        print("skipped: give --oof FILE FILE ... and --folds FILE of trained members")
        return
    from cassava_kit.folds import read_folds
    from cassava_kit.oof import gather
    from cassava_kit.predictions import read_predictions

    names = [path.parent.name for path in arguments.oof]
    evidence = gather([read_predictions(path) for path in arguments.oof], read_folds(arguments.folds), names)
    p, n_members = evidence.pred_probs, len(names)
    weights, costs = np.full(n_members, 1 / n_members), np.full(n_members, 0.01)
    full, _ = simulate_stop(p, weights, np.arange(n_members), StopRule("off"))
    for share in (0.1, 0.2, 0.5, 1.0):
        labels = replay(p, weights, costs, share)
        kept = 100 * np.mean(labels == full)
        print(f"{100 * share:3.0f} % of the cost of {n_members} members: {kept:.2f} % of the labels")


def replay(p: np.ndarray, weights: np.ndarray, costs: np.ndarray, share: float) -> np.ndarray:
    """Labels (N,) when only `share` of the full cost may be spent; p (M, N, K)."""
    from types import SimpleNamespace

    n_images = p.shape[1]
    units: Any = [
        SimpleNamespace(part=SimpleNamespace(name=str(u)), view=SimpleNamespace(name="plain"), worth=w, weight=w)
        for u, w in enumerate(weights)
    ]
    left = share * n_images * float(costs.sum())
    plan = arranged(Plan(tuple(units), costs, n_images, left=left))
    votes = Votes(n_images, weights, np.full(p.shape[2], 1 / p.shape[2]))
    worked = True
    while worked:
        worked = False
        for u in plan.order:
            rows = choose_rows(votes, plan, u, left=left, rule=StopRule())[: int(left / costs[u] + 1e-9)]
            if len(rows):
                votes.add(u, rows, p[u, rows])
                left -= len(rows) * costs[u]
                worked = True
    return votes.labels()


def of_planner(arguments: argparse.Namespace) -> None:
    """The plan's seconds against the seconds that the work took, and twenty random limits."""
    errors, whole = [], 0.0
    for _ in range(arguments.rounds):
        report = submit(arguments, "off")
        planned, took = report.plan["total_seconds"], report.timings["work"]
        errors.append(planned / took - 1)
        whole = report.timings["total"]
        print(f"planned {planned:.1f} s, took {took:.1f} s: {100 * errors[-1]:+.1f} %", flush=True)
    print(f"median error {100 * statistics.median(map(abs, errors)):.1f} %")
    rng = np.random.default_rng(0)
    late = []
    for _ in range(20):
        start, limit = time.time(), float(rng.uniform(0.1, 0.8)) * min(whole, 60.0)
        report = submit(arguments, "off", time_limit=limit, started=start)
        late.append(time.time() - start - limit)
        print(
            f"limit {limit:5.1f} s: {late[-1]:+.2f} s, {100 * report.early_stop['work_done']:.0f} % of the work",
            flush=True,
        )
    print(f"latest {max(late):+.2f} s; in 20 trials {sum(x > 0 for x in late)} ended after the limit")


def of_memory(arguments: argparse.Namespace) -> None:
    """Peak memory of whole runs over 1,000 and 15,000 files, each in a process of its own, with a budget of 64 MB."""
    code = (
        "import resource, sys\n"
        "from cassava_kit.inference.pixels import Budget\n"
        "from cassava_kit.inference.report import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "options = RunOptions(views='none', device='cpu', batch_size=16, budget=Budget(64 << 20), progress=False)\n"
        "run_submission(*sys.argv[1:4], options=options)\n"
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    weights = make_members(["test_resnet", "test_efficientnet"], arguments.source, arguments.folder / "tiny")
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
    "budget": of_budget,
    "planner": of_planner,
    "memory": of_memory,
}


if __name__ == "__main__":
    main()
