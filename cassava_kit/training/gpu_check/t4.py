"""Measured training speeds as the speed of one of Kaggle's T4s: `read_t4`, by the rule below.

The rule: two rates are fitted to the measured steps, operations a second and outputs of depthwise convolutions a second
(`cost.Gpu`). Of a T4 they are taken as they are. Of another card the first is multiplied by the ratio of published half
precision peaks (T4 over that card), the second by the ratio of published memory bandwidths, which depthwise
convolutions wait for. A card that is not in `PUBLISHED` is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cassava_kit.errors import UserError
from cassava_kit.training.cost import BACKWARD, T4, Gpu, count_operations
from cassava_kit.training.gpu_check.findings import GpuReport, StepSpeed, read_gpu_report

# Part of the driver's name -> dense half precision with single accumulation in TFLOP/s, memory in GB/s, from the
# makers' data sheets. The first that fits counts.
PUBLISHED = {
    "T4": (65.0, 320.0),
    "P100": (18.7, 732.0),
    "V100-PCIE": (112.0, 900.0),
    "V100": (125.0, 900.0),
    "A100 80GB": (312.0, 1935.0),
    "A100-SXM4-80GB": (312.0, 2039.0),
    "A100": (312.0, 1555.0),
    "H100 PCIe": (756.0, 2000.0),
    "H100 NVL": (835.0, 3900.0),
    "H100": (989.0, 3350.0),
    "H200": (989.0, 4800.0),
    "L40S": (362.0, 864.0),
    "L40": (181.0, 864.0),
    "L4": (121.0, 300.0),
    "RTX 3090": (71.0, 936.0),
    "RTX 4090": (165.2, 1008.0),
}


def read_t4(path: str | Path) -> tuple[Gpu, str]:
    """Return the speed of one T4 by a file of `gpu-check` (see the module's rule), and in words where it comes from.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It cannot be read, a CPU stood in for the GPU, no step was measured, or the card is not known.
    """
    report = read_gpu_report(path)
    if report.stand_in:
        raise UserError(f"{path} was measured on a CPU in place of a GPU; give one of a GPU, or leave --gpu out")
    if not any(speed.precision == "16-mixed" for speed in report.speeds):
        raise UserError(f"{path} has no training speed: run gpu-check again, with more --minutes")
    return as_t4(measured_gpu(report), report.device), basis(report)


def measured_gpu(report: GpuReport) -> Gpu:
    """Return the speed of one of the GPUs that were measured; `cores` are those beside each of Kaggle's."""
    half = [speed for speed in report.speeds if speed.precision == "16-mixed"]
    dense, depthwise = fit_rates(half)
    slowdowns = [
        fast.images_per_second / slow.images_per_second
        for slow in report.speeds
        for fast in half
        if slow.precision == "32-true" and (slow.model, slow.image_size) == (fast.model, fast.image_size)
    ]
    return Gpu(
        report.device, dense, depthwise, float(np.mean(slowdowns)) if slowdowns else T4.single_precision, T4.cores
    )


def fit_rates(speeds: Sequence[StepSpeed]) -> tuple[float, float]:
    """Return operations and depthwise outputs a second that fit the measured steps best.

    Least squares of the relative error of a step's time, neither rate negative (Lawson and Hanson's NNLS). Where no
    measured network has depthwise convolutions, their rate keeps the T4's ratio to the other.
    """
    from scipy.optimize import nnls

    rows = []
    for speed in speeds:
        found = count_operations(speed.model, speed.image_size, speed.model_args)
        passes = (1 + BACKWARD) * speed.images_per_second
        rows.append(((found.every - found.depthwise) * passes, found.outputs * passes))
    scales = np.array([T4.dense, T4.depthwise])
    weights, _ = nnls(np.array(rows) / scales, np.ones(len(rows)))
    share = max(weights[0], 1e-6)  # a network has operations: their rate is finite
    dense = T4.dense / share
    if not any(outputs for _, outputs in rows):
        return float(dense), float(dense * T4.depthwise / T4.dense)
    return float(dense), float(T4.depthwise / max(weights[1], 1e-6))


def as_t4(gpu: Gpu, device: str) -> Gpu:
    """Return the speed of a T4 by that of a card that the driver calls `device`.

    Raises:
        UserError: The card's published speed is not in `PUBLISHED`.
    """
    name = next((name for name in PUBLISHED if re.search(rf"\b{name}\b", device)), None)
    if name is None:
        raise UserError(
            f"no published speed is known of {device!r}, so that its measured one cannot be scaled to a T4; known: "
            f"{', '.join(PUBLISHED)}. Run `python submit.py push --kernel gpu-check` on Kaggle's T4s and give its file"
        )
    if name == T4.name:
        return replace(gpu, name=T4.name)
    (peak, memory), (t4_peak, t4_memory) = PUBLISHED[name], PUBLISHED[T4.name]
    # How much slower single precision is differs between cards, and is not scaled.
    return replace(T4, dense=gpu.dense * t4_peak / peak, depthwise=gpu.depthwise * t4_memory / memory)


def basis(report: GpuReport) -> str:
    """Return in words where hours by this file come from, for a table's heading."""
    if T4.name in report.device:
        return f"speeds measured on {report.device}"
    return f"speeds measured on {report.device}, scaled to a T4 by published peaks and memory bandwidths"
