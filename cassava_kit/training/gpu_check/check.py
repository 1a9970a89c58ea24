"""Check a GPU in minutes and leave `gpu.json`: `run_check`, part after part, each within its share of the time."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from cassava_kit.errors import UserError
from cassava_kit.inference.machine import cpu_count, free_memory, package_versions, usable_devices
from cassava_kit.training.devices import device_name
from cassava_kit.training.gpu_check.findings import GPU_FILE, GpuReport, PartResult, write_gpu_report
from cassava_kit.training.gpu_check.hours import check_hours
from cassava_kit.training.gpu_check.numbers import check_numbers
from cassava_kit.training.gpu_check.setting import LEAST_PART_SECONDS, Part, Setting, Sizes, full_sizes, small_sizes
from cassava_kit.training.gpu_check.steps import check_steps
from cassava_kit.training.gpu_check.submission_run import check_submission_run
from cassava_kit.training.gpu_check.two_processes import check_two_processes

Checks = dict[str, tuple[float, Callable[[Setting, Part], None]]]
# Parts in order of worth, each with its share of the time; what one leaves goes to those after it.
CHECK_PARTS: Checks = {
    "numbers": (0.2, check_numbers),
    "training": (0.35, check_steps),
    "submission": (0.3, check_submission_run),
    "two processes": (0.15, check_two_processes),
}
HOURS = "hours"


def gpu_devices(wanted: str) -> tuple[torch.device, ...]:
    """Return the devices to check: every GPU (`cuda`), or the CPU in its place (`cpu`).

    Raises:
        UserError: There is no GPU that computes, and no CPU was asked for.
    """
    if wanted not in ("cuda", "cpu"):
        raise UserError(f"--device must be cuda or cpu, got {wanted!r}")
    if wanted == "cpu":
        return (torch.device("cpu"),)
    devices = usable_devices()
    if devices[0].type == "cpu":
        raise UserError(
            "no GPU that this torch can use; run `python submit.py push --kernel gpu-check` for Kaggle's T4s, or "
            "rehearse here with --device cpu"
        )
    return devices


def run_check(devices: tuple[torch.device, ...], out: Path, *, minutes: float, sizes: Sizes | None = None) -> GpuReport:
    """Run all parts within the minutes and return the report; `out/gpu.json` is written anew after each part.

    A part that raises is recorded as failed, one that there is no time for as skipped, and the others go on.
    """
    started = time.monotonic()
    stand_in = devices[0].type == "cpu"
    report = GpuReport(
        device=device_name(devices[0]),
        n_devices=len(devices),
        stand_in=stand_in,
        memory_gb=round(device_memory(devices[0]) / 1e9, 1),
        cores=cpu_count(),
        versions=package_versions() | {"cuda": str(torch.version.cuda)},
        minutes=minutes,
        seconds=0.0,
    )
    path = out / GPU_FILE
    write_gpu_report(path, report)
    with TemporaryDirectory(prefix="gpu-check-") as folder:
        setting = Setting(devices, sizes or (small_sizes() if stand_in else full_sizes()), Path(folder))
        todo: Checks = {**CHECK_PARTS, HOURS: (0.0, lambda setting, part: check_hours(report, part))}
        names = list(todo)
        for name in names:
            share, check = todo[name]
            rest = sum(todo[later][0] for later in names[names.index(name) :])
            left = 60 * minutes - (time.monotonic() - started)
            result = run_part(name, check, setting, left * share / rest if share else max(left, 2 * LEAST_PART_SECONDS))
            print(f"{name}: {result.status} in {result.seconds:.0f} s{f' ({result.reason})' if result.reason else ''}")
            done = {"parts": (*report.parts, result), "seconds": round(time.monotonic() - started, 1)}
            report = report.model_copy(update={**done, "finished": name == names[-1]})
            write_gpu_report(path, report)
    return report


def run_part(name: str, check: Callable[[Setting, Part], None], setting: Setting, seconds: float) -> PartResult:
    """Run one part for about so many seconds and return what it found, up to an error."""
    if seconds < LEAST_PART_SECONDS:
        return PartResult(name=name, status="skipped", seconds=0.0, reason=f"{max(0, seconds):.0f} s were left")
    started = time.monotonic()
    part, failure = Part(started + seconds), ""
    try:
        check(setting, part)
    except Exception as error:
        traceback.print_exc()
        failure = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    # Outside the handler, whose traceback holds tensors.
    gc.collect()
    if not setting.stand_in:
        torch.cuda.empty_cache()
    return part.result(name, time.monotonic() - started, failure=failure)


def device_memory(device: torch.device) -> int:
    """Return a GPU's memory in bytes, or the free memory of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return free_memory()
