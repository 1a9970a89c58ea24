"""Every engine that is installed gives eager torch's answer, for every view."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_members import write_checkpoint
from tiny_runs import full_ensemble, submit

from cassava_kit.inference import choices
from cassava_kit.inference.choices import lacking
from cassava_kit.inference.engine import build_engine
from cassava_kit.inference.forward import load_forward
from cassava_kit.inference.tta import make_views

CPU = torch.device("cpu")
ENGINES = ["onnx", "openvino", pytest.param("compiled", marks=pytest.mark.slow)]


def skip_without(engine: str) -> None:
    remedy = lacking(engine)
    if remedy is not None:
        pytest.skip(f"{engine} is optional: {remedy}")


@pytest.mark.parametrize("model", ["test_efficientnet", "test_vit"])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_answer_for_every_view(tmp_path: Path, engine: str, model: str) -> None:
    skip_without(engine)
    path = write_checkpoint(tmp_path / "a-fold0.safetensors", model)
    plain, fast = load_forward(path, CPU), load_forward(path, CPU)
    calls: list[int] = []
    built = build_engine(engine, fast.model, (4, 3, 32, 32))
    fast.engine, fast.engine_batch = lambda images: (calls.append(len(images)), built(images))[1], 4
    batch = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    views = make_views("d4+zoom")
    for view in views:
        assert np.abs((fast.start(batch, view) - plain.start(batch, view)).numpy()).max() < 2e-5
    assert calls == [4] * len(views)
    half = batch[:3]
    assert torch.allclose(fast.start(half, views[0]), plain.start(half, views[0]), atol=1e-6)
    assert len(calls) == len(views)


def test_openvino_without_the_package_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without("openvino")
    forward = load_forward(write_checkpoint(tmp_path / "a-fold0.safetensors"), CPU)
    monkeypatch.setattr("cassava_kit.inference.engine.find_spec", lambda name: None)
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(
            build_engine("openvino", forward.model, (2, 3, 32, 32))(images), forward.model(images), atol=1e-4
        )


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_a_run_in_an_engine_has_the_same_labels(images: Path, weights: Path, tmp_path: Path, engine: str) -> None:
    skip_without(engine)
    labels, report = submit(images, weights, tmp_path / "s.csv", engine=engine)
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    assert {member["engine"] for member in report.members_used} == {engine}
    assert {trial["verdict"] for trial in report.timings["engines"]} == {"agrees"}
    assert len(report.timings["engines"]) == 4


def test_what_is_lacking_says_how_to_mend_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None if name.startswith("o") else object())
    monkeypatch.setattr(choices.shutil, "which", lambda name: None)
    assert lacking("onnx") == "pip install onnxruntime onnx"
    assert lacking("openvino") == "pip install openvino"
    assert lacking("compiled") == "install a C++ compiler (g++)"
    monkeypatch.setattr(choices, "find_spec", lambda name: object())
    monkeypatch.setattr(choices.shutil, "which", lambda name: "/bin/true" if name == "clang++" else None)
    assert lacking("onnx") is lacking("compiled") is None
