"""Part 5 of a GPU check: the two rates by which hours are counted, fitted to part 2's steps, `check_hours`."""

from __future__ import annotations

from cassava_kit.competition import CASSAVA
from cassava_kit.errors import UserError
from cassava_kit.training.cost import BACKWARD, T4, pass_seconds, precision_slowdown, train_hours
from cassava_kit.training.gpu_check.findings import GpuReport
from cassava_kit.training.gpu_check.setting import Part
from cassava_kit.training.gpu_check.t4 import as_t4, measured_gpu
from cassava_kit.training.recipes import recipe

SHOWN = ("resnet50", "efficientnet_b4")


def check_hours(report: GpuReport, part: Part) -> None:
    """Fit the rates, tell how well they explain each step, and the hours of two recipes before and after.

    Raises:
        RuntimeError: No training step was measured.
    """
    if not report.speeds:
        raise RuntimeError("no training step was measured, and hours are counted from these")
    gpu = measured_gpu(report)
    rates: dict[str, float | str] = {"tflops": gpu.dense / 1e12, "depthwise_goutputs": gpu.depthwise / 1e9}
    part.add("fitted rates", rates | {"single_precision_slowdown": gpu.single_precision})
    for speed in report.speeds:
        seconds = pass_seconds(speed.model, speed.image_size, speed.model_args, gpu=gpu)
        seconds *= precision_slowdown(speed.precision, gpu) * (1 + BACKWARD)
        told = {"counted_over_measured": seconds * speed.images_per_second}
        part.add(f"{speed.model.split('.')[0]} at {speed.image_size}, {speed.precision}", told)
    try:
        scaled = as_t4(gpu, report.device)
    except UserError as error:
        part.add("hours on two T4s", {"not scaled": str(error).split(";")[0]})
        return
    for name in SHOWN:
        counted = train_hours(recipe(name), CASSAVA.training_images, 5)
        measured = train_hours(recipe(name), CASSAVA.training_images, 5, gpu=scaled)
        part.add(f"hours of {name} on two T4s", {"assumed": counted, "by_this_check": measured})
    part.add("one T4", {"tflops": scaled.dense / 1e12, "assumed_tflops": T4.dense / 1e12})
