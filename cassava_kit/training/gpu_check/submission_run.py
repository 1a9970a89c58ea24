"""Part 3 of a GPU check: the submission run against device and decoder alone, in time, in little memory.

Entry point: `check_submission_run`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cassava_kit.competition import CASSAVA
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.fuse import fuse_conv_bn
from cassava_kit.inference.machine import cpu_count
from cassava_kit.inference.options import RunOptions
from cassava_kit.inference.report import RunReport
from cassava_kit.inference.run import run_submission
from cassava_kit.inference.submission import check_answers
from cassava_kit.inference.tta import make_views
from cassava_kit.models.checkpoint import CheckpointInfo, load_model, save_checkpoint
from cassava_kit.models.network import args_for_size, image_statistics
from cassava_kit.models.precision import compare_precisions
from cassava_kit.training.config import RunConfig
from cassava_kit.training.gpu_check.findings import Bound
from cassava_kit.training.gpu_check.numbers import N_CLASSES, first_batch
from cassava_kit.training.gpu_check.setting import Part, Setting
from cassava_kit.training.gpu_check.steps import WARM_UP_STEPS, repeat

VIEWS = "flips"
BARE_BATCH = 64
OF_SLOWER = Bound(name="of_slower", at_least=0.9)
PLANNED = Bound(name="plan_over_truth", at_least=0.9, at_most=1.1)
WHOLE = Bound(name="work_done", at_least=1.0)
VALID = Bound(name="valid_file", at_least=1.0)
IN_TIME = Bound(name="over_limit", at_most=1.0)
ALIKE = Bound(name="agrees", at_least=1.0)
RAN_OUT = Bound(name="out_of_memory", at_least=1.0)
# Of the memory that a member takes beside its weights, what the balloon leaves; and for the libraries' own.
LEFT_SHARE, LEFT_BYTES = 0.35, 128 << 20
PIECE_BYTES = 512 << 20
# Of the time of the whole run, what the run with a deadline is given; and at least.
LIMIT_SHARE, LEAST_LIMIT = 0.4, 6.0
# Of the part's time, what the whole run may take; fewer images are predicted where all would take longer.
WHOLE_SHARE, LEAST_IMAGES = 0.35, 64
STAND_IN_BATCH = 4  # images that a CPU takes at once before it plays out of memory


def check_submission_run(setting: Setting, part: Part) -> None:
    """Run three members through four views over the photographs, once with all the time, once with less, once in need.

    Seconds of the run are those of its work: loading of checkpoints is told apart.
    """
    members = setting.folder / "members"
    paths = write_members(setting, members)
    device = sum(len(make_views(VIEWS)) / bare_forward_rate(path, setting) for path in paths)
    decoder = decoder_rate(setting.photos)
    n = int(max(LEAST_IMAGES, min(len(setting.photos), WHOLE_SHARE * part.left / (device + 1 / decoder))))
    names = [path.name for path in setting.photos[:n]]
    for gpu in setting.devices if not setting.stand_in else ():
        torch.cuda.reset_peak_memory_stats(gpu)
    whole = predict_photos(setting, members, "whole", names)
    work = whole.timings["work"]
    slower = min(1 / device, decoder)
    values: dict[str, float | str] = {"images_a_second": n / work, "device_alone": 1 / device, "decoder_alone": decoder}
    values |= {"of_slower": n / work / slower, "work_done": whole.early_stop["work_done"]}
    values["loading_seconds"] = whole.timings["loading"]
    part.add(f"{len(paths)} members, {VIEWS}, {n} images", values, (WHOLE, *setting.speed_bounds(OF_SLOWER)))
    plan = whole.plan["total_seconds"]
    told: dict[str, float | str] = {"planned_seconds": plan, "seconds": work, "plan_over_truth": plan / work}
    part.add("plan", told, setting.speed_bounds(PLANNED))
    for name, check in part.each([("deadline", check_deadline), ("out of memory", check_balloon)]):
        values, bounds = check(setting, members, whole)
        part.add(name, values, bounds)


def write_members(setting: Setting, folder: Path) -> list[Path]:
    """Write a checkpoint of random weights for each member, and their ensemble; return the files."""
    folder.mkdir(parents=True)
    paths = []
    for number, config in enumerate(setting.sizes.members):
        paths.append(write_member(config, folder / f"member{number}.safetensors", setting.device))
    members = tuple(EnsembleMember(name=path.stem, weight=1 / len(paths), checkpoints=(path.name,)) for path in paths)
    write_ensemble(folder / ENSEMBLE_FILE, Ensemble(members=members, views=VIEWS, prior=(1 / N_CLASSES,) * N_CLASSES))
    return paths


def write_member(config: RunConfig, path: Path, device: torch.device) -> Path:
    """Write a checkpoint of a network with random weights and usual statistics."""
    model, _ = first_batch(config, 8, device)
    mean, std = image_statistics(model)
    info = CheckpointInfo(
        model=config.model,
        model_args=args_for_size(config.model, config.image_size, config.model_args),
        head=config.head,
        n_classes=N_CLASSES,
        input_size=(config.image_size, config.image_size),
        mean=mean,
        std=std,
        recipe=path.stem,
        prior=(1 / N_CLASSES,) * N_CLASSES,
    )
    save_checkpoint(path, model.state_dict(), info)
    return path


@torch.inference_mode()
def bare_forward_rate(path: Path, setting: Setting) -> float:
    """Return images a second of all devices, each repeating one normalised batch in its memory."""
    model, info = load_model(path)
    fuse_conv_bn(model, info.input_size)
    dtype = torch.float32 if setting.stand_in else torch.float16
    model = model.to(setting.device, dtype, memory_format=torch.channels_last)
    n = 16 if setting.stand_in else BARE_BATCH
    images = torch.randn(n, 3, *info.input_size, device=setting.device).to(dtype, memory_format=torch.channels_last)
    for _ in range(WARM_UP_STEPS):
        model(images)
    return n * len(setting.devices) * repeat(lambda: model(images), setting.sizes.seconds / 2, setting.device)


def decoder_rate(paths: Sequence[Path]) -> float:
    """Return images a second of OpenCV's decoder alone on all cores."""

    def decode(path: Path) -> int:
        return int(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).size)

    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(decode, paths[: 4 * cpu_count()]))
        started = time.perf_counter()
        list(pool.map(decode, paths))
    return len(paths) / (time.perf_counter() - started)


def predict_photos(
    setting: Setting, members: Path, name: str, names: Sequence[str], *, limit: float | None = None
) -> RunReport:
    """Run the submission over the photographs of these names and return its report.

    Raises:
        RuntimeError: It stopped early, or a member was left out.
    """
    images, devices = setting.photos[0].parent, [str(device) for device in setting.devices]
    with redirect_stdout(StringIO()):  # its plans and lines a unit, three times; warnings are shown
        report = run_submission(
            images,
            members,
            submission_file(setting, name),
            time_limit=limit,
            started=time.time(),
            options=RunOptions(early_stop="off", device=devices, progress=False),
            competition=CASSAVA,
            names=names,
        )
    if report.error or (report.left_out and limit is None):  # a deadline may leave members out
        raise RuntimeError(f"the submission run {name}: {report.error or report.left_out}")
    return report


def submission_file(setting: Setting, name: str) -> Path:
    """Return where a run writes."""
    return setting.folder / name / "submission.csv"


def check_deadline(setting: Setting, members: Path, whole: RunReport) -> tuple[dict[str, float | str], list[Bound]]:
    """Run again in a part of the time: the file must be there in time, whole, and not the prior's."""
    limit = max(LEAST_LIMIT, LIMIT_SHARE * whole.timings["total"])
    report = predict_photos(setting, members, "deadline", whole.names, limit=limit)
    summary = check_answers(submission_file(setting, "deadline"), whole.names, CASSAVA)
    # How far a CPU that is shared comes in so short a time is not judged.
    valid = summary.n_images == len(whole.names) and (setting.stand_in or not report.prior_alone)
    seconds = report.timings["total"]
    values: dict[str, float | str] = {"limit_seconds": limit, "seconds": seconds, "over_limit": seconds / limit}
    values |= {"valid_file": float(valid), "work_done": report.early_stop["work_done"]}
    return values, [VALID, *setting.speed_bounds(IN_TIME)]


def check_balloon(setting: Setting, members: Path, whole: RunReport) -> tuple[dict[str, float | str], list[Bound]]:
    """Run again with so little memory that no whole batch fits: every vote must still be counted, and be the same."""
    weights = sum(path.stat().st_size for path in members.glob("*.safetensors"))
    peaks = [torch.cuda.max_memory_allocated(one) for one in setting.devices if one.type == "cuda"]
    spare = [weights + int(LEFT_SHARE * max(0, peak - weights)) + LEFT_BYTES for peak in peaks]
    with scarce_memory(setting.devices, spare) as count:
        report = predict_photos(setting, members, "scarce", whole.names)
        happened = count()
    assert report.probabilities is not None and whole.probabilities is not None
    logits, reference = (
        torch.from_numpy(np.log(each.clip(1e-12))) for each in (report.probabilities, whole.probabilities)
    )
    found = compare_precisions(logits, reference)
    values: dict[str, float | str] = {"out_of_memory": float(happened), "work_done": report.early_stop["work_done"]}
    values |= {"equal_labels": found.equal_labels, "difference": found.probability, "agrees": float(found.agrees)}
    return values, [RAN_OUT, WHOLE, ALIKE]


@contextmanager
def scarce_memory(devices: Sequence[torch.device], spare: Sequence[int]) -> Iterator[Any]:
    """Leave so many bytes free on each GPU in the block; yield a function: how often memory has run out since.

    A CPU plays it: every network refuses batches of more than `STAND_IN_BATCH` images.
    """
    if devices[0].type == "cpu":
        refused = [0]

        def refuse(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            images = inputs[0] if inputs else None
            if isinstance(images, torch.Tensor) and images.ndim == 4 and len(images) > STAND_IN_BATCH:
                refused[0] += 1
                raise torch.OutOfMemoryError("CUDA out of memory (played on a CPU)")

        handle = torch.nn.modules.module.register_module_forward_pre_hook(refuse)
        try:
            yield lambda: refused[0]
        finally:
            handle.remove()
        return
    balloons = []
    torch.cuda.empty_cache()
    for device, wanted in zip(devices, spare, strict=True):
        # In pieces: so much in one may not be free.
        while (most := torch.cuda.mem_get_info(device)[0] - wanted) > 0:
            balloons.append(torch.empty(min(most, PIECE_BYTES), dtype=torch.uint8, device=device))

    def times() -> int:
        return sum(int(torch.cuda.memory_stats(device)["num_ooms"]) for device in devices)

    before = times()
    try:
        yield lambda: times() - before
    finally:
        balloons.clear()
        torch.cuda.empty_cache()
