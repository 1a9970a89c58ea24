"""An engine is taken where it is faster, answers alike and pays; in any other case eager torch stays."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_members import write_checkpoint
from torch import nn

from cassava_kit.inference import speedup
from cassava_kit.inference.clock import Clock
from cassava_kit.inference.forward import Forward, load_forward
from cassava_kit.inference.speedup import BUILD_SECONDS, Engines, kind_of

CPU = torch.device("cpu")
MANY = 10**7
BATCH = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Slow(nn.Module):
    """A model that takes its time."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return self.model(images)


def forward_of(tmp_path: Path, name: str = "a-fold0", **changes: object) -> Forward:
    forward = load_forward(write_checkpoint(tmp_path / f"{name}.safetensors", **changes), CPU)
    forward.model = Slow(forward.model)
    return forward


def play(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[str, Slow], object], *, installed: tuple[str, ...]
) -> list[str]:
    """Stand-ins for the libraries; the names of the engines that are built."""
    built: list[str] = []
    monkeypatch.setattr(speedup, "lacking", lambda name: None if name in installed else "pip install it")
    monkeypatch.setattr(speedup, "build_engine", lambda name, model, shape: (built.append(name), build(name, model))[1])
    return built


def honest(name: str, model: Slow) -> Callable[[torch.Tensor], torch.Tensor]:
    """As fast as can be, but `openvino` a little slower."""
    return lambda images: (time.sleep(0.005 if name == "openvino" else 0), model.model(images))[1]


def shifted(by: float) -> Callable[[str, Slow], object]:
    return lambda name, model: lambda images: model.model(images) + by * torch.arange(5)


def test_the_fastest_installed_engine_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = play(monkeypatch, honest, installed=("onnx", "openvino"))
    engines, forward = Engines("auto", MANY), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    assert built == ["onnx", "openvino"] and forward.engine_name == "onnx"
    assert forward.engine is not None and forward.engine_batch == 2
    assert [trial.verdict for trial in engines.trials] == ["agrees", "agrees"]
    assert engines.trials[0].seconds_per_image < engines.trials[1].seconds_per_image < 0.01
    play(monkeypatch, honest, installed=("openvino",))
    engines, forward = Engines("auto", MANY), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    assert forward.engine_name == "openvino"


def test_sister_folds_take_it_without_another_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = play(monkeypatch, honest, installed=("onnx", "openvino"))
    engines = Engines("auto", MANY)
    forwards = [forward_of(tmp_path, f"a-fold{k}", fold=k) for k in range(3)]
    for forward in forwards:
        engines.speed_up(forward, lambda: BATCH)
    assert built == ["onnx", "openvino", "onnx", "onnx"]
    assert [forward.engine_name for forward in forwards] == ["onnx"] * 3
    other = forward_of(tmp_path, "b-fold0", size=(48, 48))
    assert kind_of(other.info) != kind_of(forwards[0].info)


@pytest.mark.parametrize(("by", "taken"), [(1e-6, "onnx"), (1e-2, "eager"), (float("nan"), "eager")])
def test_an_engine_that_answers_otherwise_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: float, taken: str
) -> None:
    play(monkeypatch, shifted(by), installed=("onnx",))
    engines, forward = Engines("auto", MANY), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    assert forward.engine_name == taken and (forward.engine is None) == (taken == "eager")
    assert ("otherwise" in engines.trials[0].verdict) == (taken == "eager")


@pytest.mark.parametrize("wanted", ["auto", "onnx"])
def test_an_engine_that_fails_leaves_eager_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    def fail(name: str, model: Slow) -> object:
        raise RuntimeError("no kernel for this\nand more")

    play(monkeypatch, fail, installed=("onnx",))
    engines, forward = Engines(wanted, MANY), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    assert forward.engine is None and forward.engine_name == "eager"
    assert engines.trials[0].verdict == "failed: RuntimeError: no kernel for this"
    assert ("no kernel" in capsys.readouterr().err) == (wanted == "onnx")


def test_a_slower_engine_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower(name: str, model: Slow) -> object:
        return lambda images: (time.sleep(0.05), model.model(images))[1]

    built = play(monkeypatch, slower, installed=("onnx",))
    engines, forward = Engines("auto", MANY), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    engines.speed_up(forward_of(tmp_path, "a-fold1"), lambda: BATCH)
    assert forward.engine is None and built == ["onnx"]


@pytest.mark.parametrize("reason", ["few images", "little time", "not installed"])
def test_nothing_is_built_where_it_cannot_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    built = play(monkeypatch, honest, installed=() if reason == "not installed" else ("onnx", "openvino"))
    passes = 100 if reason == "few images" else MANY
    clock = Clock(5.0, time.time()) if reason == "little time" else Clock()
    engines, forward = Engines("auto", passes, clock), forward_of(tmp_path)
    engines.speed_up(forward, lambda: BATCH)
    assert built == [] and forward.engine is None and engines.trials == []


def test_what_one_search_paid_sisters_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def laborious(name: str, model: Slow) -> object:
        time.sleep(0.3)
        return honest(name, model)

    monkeypatch.setitem(BUILD_SECONDS, "onnx", 0.0)
    built = play(monkeypatch, laborious, installed=("onnx",))
    engines = Engines("auto", 20)  # 20 images at 10 ms each: .2 s could be saved, .3 s are needed
    first, second = forward_of(tmp_path), forward_of(tmp_path, "a-fold1")
    for forward in (first, second):
        engines.speed_up(forward, lambda: BATCH)
    assert first.engine_name == "onnx"  # it is built, so it is used
    assert second.engine_name == "eager" and built == ["onnx"]


def test_gpus_and_eager_runs_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = play(monkeypatch, honest, installed=("onnx",))
    forward = forward_of(tmp_path)
    Engines("eager", MANY).speed_up(forward, lambda: BATCH)
    forward.device = torch.device("cuda", 0)
    Engines("onnx", MANY).speed_up(forward, lambda: BATCH)
    assert built == [] and forward.engine is None
    with pytest.raises(ValueError, match="auto, eager, compiled, onnx, openvino, got 'tvm'"):
        Engines("tvm")
