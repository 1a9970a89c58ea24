"""The verb gpu-check: `gpu_check_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cassava_kit.errors import UserError


def gpu_check_command(
    out: Annotated[Path, typer.Option(help="Folder for gpu.json.")] = Path("build/gpu-check"),
    minutes: Annotated[float, typer.Option(help="What it may take; parts that do not fit are skipped by name.")] = 7.0,
    device: Annotated[
        str, typer.Option(metavar="cuda|cpu", help="cpu rehearses it on small networks, without a GPU.")
    ] = "cuda",
) -> int:
    """Check a GPU in minutes: numbers in half precision, speed of training and submission, two processes.

    Random weights and drawn pictures, no download. It leaves gpu.json, which `recipes --hours` and `plan` take by
    --gpu. Exit code 1: a part failed, or a bound was missed.
    """
    if not 0 < minutes < float("inf"):
        raise UserError(f"--minutes must be more than 0, got {minutes:g}")
    from cassava_kit.training.gpu_check.check import gpu_devices, run_check
    from cassava_kit.training.gpu_check.findings import GPU_FILE, format_report

    report = run_check(gpu_devices(device), out, minutes=minutes)
    print(f"{format_report(report)}\n{out / GPU_FILE}\n{report.verdict}")
    return report.exit_code
