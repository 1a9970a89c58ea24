"""What a submission run may be asked for, by name; needs nothing heavy, so that a wrong name is refused at once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec

VIEW_PRESETS = ("none", "flips", "d4", "d4+zoom")
TTACH_ALIASES = ("flip_transform", "hflip_transform", "vlip_transform", "d4_transform")
VIEWS = (*VIEW_PRESETS, *TTACH_ALIASES)
EARLY_STOP = ("certified", "calibrated", "off")
ENGINES = ("auto", "eager", "compiled", "onnx", "openvino")
PIXELS = ("exact", "fast")
# What an engine needs beside torch; torch.compile needs a C++ compiler instead. ONNX Runtime reads what `onnx` writes.
PACKAGES = {"onnx": ("onnxruntime", "onnx"), "openvino": ("openvino",), "compiled": ()}
COMPILERS = ("g++", "clang++", "c++")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; ValueError with the list otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_device(device: str | Sequence[str]) -> None:
    """ValueError unless it is `auto`, `cpu`, `cuda` or a numbered GPU, or a list of the last three."""
    named = [device] if isinstance(device, str) else device
    if device != "auto" and not (named and all(re.fullmatch(r"cpu|cuda(:\d+)?", name) for name in named)):
        raise ValueError(f"device must be auto, cpu, cuda or a GPU such as cuda:0, got {device!r}")


def lacking(engine: str) -> str | None:
    """What an engine needs and is not installed, as a thing to install; None if it can be tried."""
    packages = [package for package in PACKAGES[engine] if find_spec(package) is None]
    if packages:
        return f"pip install {' '.join(packages)}"
    compilers = (os.environ.get("CXX") or COMPILERS[0], *COMPILERS)
    if engine == "compiled" and not any(map(shutil.which, compilers)):
        return "install a C++ compiler (g++)"
    return None
