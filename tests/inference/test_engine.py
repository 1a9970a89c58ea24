"""OpenVINO gives torch's answer or does not take part."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_members import write_checkpoint

from cassava_kit.inference import engine as engine_module
from cassava_kit.inference.engine import WORTH_CONVERTING, choose_engine
from cassava_kit.inference.forward import load_forward
from cassava_kit.inference.tta import make_views

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("model", ["test_efficientnet"])
def test_the_same_answer_for_every_view(tmp_path: Path, model: str) -> None:
    pytest.importorskip("openvino", reason="the optional package openvino is not installed")
    path = write_checkpoint(tmp_path / "a-fold0.safetensors", model)
    plain, fast = load_forward(path, CPU), load_forward(path, CPU, engine="openvino", batch_size=4)
    assert fast.engine is not None
    batch = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    for view in make_views("d4+zoom"):
        assert np.abs((fast.start(batch, view) - plain.start(batch, view)).numpy()).max() < 1e-5
    half = batch[:3]
    assert torch.allclose(fast.start(half, make_views("none")[0]), plain.start(half, make_views("none")[0]), atol=1e-5)


def test_an_engine_that_answers_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Liar:
        """A stand-in for the library whose networks answer with zeros."""

        PartialShape = tuple

        def convert_model(self, *_: object, **__: object) -> None:
            return None

        def Core(self) -> "Liar":  # noqa: N802 (the library's name)
            return self

        def compile_model(self, *_: object) -> object:
            return lambda images: [np.zeros((len(images), 5), np.float32)]

    monkeypatch.setattr(engine_module, "import_openvino", Liar)
    path = write_checkpoint(tmp_path / "a-fold0.safetensors")
    assert load_forward(path, CPU, engine="openvino", batch_size=4).engine is None


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda name: object())
    assert choose_engine("auto", CPU, WORTH_CONVERTING) == "openvino"
    assert choose_engine("auto", CPU, WORTH_CONVERTING - 1) == "torch"
    assert choose_engine("auto", GPU, 10**6) == "torch"
    assert choose_engine("torch", CPU, 10**6) == "torch"
    assert choose_engine("openvino", GPU, 10**6) == "torch"
    assert choose_engine("openvino", CPU, 1) == "openvino"
    monkeypatch.setattr(engine_module, "find_spec", lambda name: None)
    assert choose_engine("auto", CPU, 10**6) == "torch"
    with pytest.raises(ValueError, match="auto, torch, openvino"):
        choose_engine("tvm", CPU, 1)
