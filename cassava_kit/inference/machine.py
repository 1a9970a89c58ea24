"""What the machine offers: devices that compute (`usable_devices`), cores, and free memory and disk."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cassava_kit.errors import UserError

REPORTED_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
    "safetensors",
    "ttach",
)

GROUP = Path("/sys/fs/cgroup")


def usable_devices(wanted: str | Sequence[str] = "auto") -> tuple[torch.device, ...]:
    """Return the devices to run on: `auto` gives every GPU that computes, else the CPU; or name them (`cpu`, `cuda:0`).

    A GPU may be visible and yet too old or too new for this torch: each one multiplies two matrices first.

    Raises:
        UserError: a device that was named does not compute.
    """
    if wanted != "auto":
        named = [torch.device(name) for name in ([wanted] if isinstance(wanted, str) else wanted)]
        for device in named:
            if device.type == "cuda" and not _computes(device):
                count = torch.cuda.device_count()
                raise UserError(f"device {device} does not compute, torch sees {count} GPUs; take auto or cpu")
        return tuple(named)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.device("cuda", i) for i in range(count) if _computes(torch.device("cuda", i))]
    return tuple(found) or (torch.device("cpu"),)


def _computes(device: torch.device) -> bool:
    try:
        # Half precision and a product, as a network needs them: a build without kernels for this GPU fails here.
        half = torch.ones(8, 8, device=device, dtype=torch.float16)
        return bool((half @ half)[0, 0].item() == 8)
    except Exception:  # a missing driver is an AssertionError in a build without CUDA
        return False


def cpu_count() -> int:
    """Return the number of cores this process may use: PYTHON_CPU_COUNT where it is set, as Python 3.13 reads it."""
    given = os.environ.get("PYTHON_CPU_COUNT", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return the bytes of memory that are free: the least of what the system and the control group leave."""
    bounds = [_system_memory(), _group_memory(GROUP, "max", "current", cache="inactive_file")]
    older = _group_memory(GROUP / "memory", "limit_in_bytes", "usage_in_bytes", cache="total_inactive_file")
    bounds.append(older)
    return max(0, min(bound for bound in bounds if bound is not None))


def _system_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 4 << 30


def _group_memory(folder: Path, limit: str, usage: str, *, cache: str) -> int | None:
    """The bytes a control group leaves; the cache of files, which it counts as used, counts as free here."""
    try:
        most, used = (int((folder / f"memory.{name}").read_text()) for name in (limit, usage))
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        forgettable = next((int(size) for name, size in pairs if name == cache), 0)
    except (OSError, ValueError):  # no control group, or the limit is the word "max"
        return None
    return most - used + forgettable


def free_device_memory(device: torch.device) -> int:
    """Return the bytes free where a device keeps its tensors."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def free_disk(folder: Path) -> int:
    """Return the bytes free on the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def describe_device(device: torch.device) -> str:
    """Return a device's name for the report."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device} ({cpu_count()} cores)"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a prediction."""
    from cassava_kit.files import KIT_VERSION

    found = {"python": platform.python_version(), "cassava_kit": KIT_VERSION}
    for name in REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def is_on_disk(folder: Path) -> bool:
    """Return whether a folder's files take disk and not memory (`/tmp` is a tmpfs on some machines)."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return True
    inside = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(inside, default=(0, ""))[1] not in ("tmpfs", "ramfs")
