"""OpenVINO for models on the CPU, where it is installed and pays: the same answer, faster than eager torch."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from cassava_kit.inference.choices import ENGINES, check_choice
from cassava_kit.inference.machine import cpu_count

# Converting a network takes seconds; it pays from about this many images through one checkpoint.
WORTH_CONVERTING = 2000
TOLERANCE = 1e-3

Engine = Callable[[torch.Tensor], torch.Tensor]


def choose_engine(wanted: str, device: torch.device, n_passes: int) -> str:
    """`torch` or `openvino`: what was asked for, or for `auto` OpenVINO if installed and there is work enough.

    OpenVINO serves the CPU; on a GPU torch runs. `n_passes` is the number of images times views of each checkpoint.
    """
    check_choice("engine", wanted, ENGINES)
    if device.type != "cpu" or wanted == "torch":
        return "torch"
    pays = n_passes >= WORTH_CONVERTING and find_spec("openvino") is not None
    return "openvino" if wanted == "openvino" or pays else "torch"


def openvino_engine(model: nn.Module, size: tuple[int, int], batch_size: int) -> Engine | None:
    """The model as an OpenVINO network for float batches (batch_size, 3, height, width); None if it answers otherwise.

    Single precision; the answer to a probe must be within a thousandth of the largest logit of torch's.
    """
    openvino = import_openvino()
    shape = (batch_size, 3, *size)
    probe = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing warns of every shape a network looks at; here shapes are fixed
            network = openvino.convert_model(model, example_input=probe, input=[openvino.PartialShape(shape)])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_NUM_THREADS"] = str(cpu_count())
        compiled = openvino.Core().compile_model(network, "CPU", settings)
    except Exception:  # a network that OpenVINO does not take runs in torch
        return None

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

    with torch.inference_mode():
        expected = model(probe)
    scale = float(expected.abs().max())
    return run if torch.allclose(run(probe), expected, rtol=0, atol=TOLERANCE * scale) else None


def import_openvino() -> Any:
    """OpenVINO without its telemetry package, which would report every import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
