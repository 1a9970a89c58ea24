"""Other engines for a model on the CPU: ONNX Runtime, OpenVINO and torch.compile, each only if it is installed."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

Engine = Callable[[torch.Tensor], torch.Tensor]

OPSET = 17


def build_engine(name: str, model: nn.Module, shape: tuple[int, int, int, int]) -> Engine:
    """A model (eval mode, on the CPU) as an engine for float batches of one shape (B, 3, H, W); returns its logits.

    Whatever the library raises on a network that it does not take goes through to the caller.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing warns of every shape that a network looks at; here they are fixed
        return {"onnx": _onnx, "openvino": _openvino, "compiled": _compiled}[name](model, shape)


def _compiled(model: nn.Module, shape: tuple[int, int, int, int]) -> Engine:
    compiled = torch.compile(model, dynamic=False)

    def run(images: torch.Tensor) -> torch.Tensor:
        return compiled(images.contiguous(memory_format=torch.channels_last))

    with torch.inference_mode():
        run(torch.zeros(shape))
    return run


def _onnx(model: nn.Module, shape: tuple[int, int, int, int]) -> Engine:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would spin while images are decoded and normalised: measured 7.3 ms an image with, 4.9 without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(export_onnx(model, shape), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])

    return run


def _openvino(model: nn.Module, shape: tuple[int, int, int, int]) -> Engine:
    openvino = import_openvino()
    core = openvino.Core()
    if find_spec("onnx") is not None:  # half a second; OpenVINO's own tracing takes three to five
        network = core.read_model(export_onnx(model, shape))
        network.reshape(list(shape))
    else:
        one = torch.zeros(1, *shape[1:])
        network = openvino.convert_model(model, example_input=one, input=[openvino.PartialShape(shape)])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    compiled = core.compile_model(network, "CPU", settings)

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(compiled(images.contiguous().numpy())[0].copy())

    return run


def export_onnx(model: nn.Module, shape: tuple[int, int, int, int]) -> bytes:
    """The network as ONNX for batches of any size, traced with one image (a whole batch takes ten times as long)."""
    file = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"]}
    axes = {"images": {0: "batch"}, "logits": {0: "batch"}}
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        one = (torch.zeros(1, *shape[1:]),)
        torch.onnx.export(model, one, file, dynamo=False, opset_version=OPSET, dynamic_axes=axes, **names)
    finally:
        log.setLevel(level)
    return file.getvalue()


def import_openvino() -> Any:
    """OpenVINO without its telemetry package, which would report every import to its makers."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
