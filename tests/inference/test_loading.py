"""Checkpoints read once for all devices and one ahead; the precision that a first batch settles."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_members import write_checkpoint
from tiny_runs import full_ensemble, submit
from torch import nn

from cassava_kit.inference import forward, loading, precision
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.loading import Network, Prefetch, load_network
from cassava_kit.inference.precision import settle_precision
from cassava_kit.models.checkpoint import load_model, read_info
from cassava_kit.models.precision import judge_half

CPU = torch.device("cpu")
TRIED = ("fp16", "fp16-autocast", "bf16", "fp32")


def test_a_copy_on_a_device_is_the_network_and_shares_the_weights(tmp_path: Path) -> None:
    network = load_network(write_checkpoint(tmp_path / "a-fold0.safetensors"))
    one, other = network.on_device(CPU), network.on_device(CPU)
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(one(x), network.model(x)) and torch.equal(other(x), one(x))
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    one.half()
    assert {p.dtype for p in other.parameters()} == {torch.float32}  # each in a precision of its own


def test_the_next_checkpoint_is_read_beside_the_run_and_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_checkpoint(tmp_path / f"a-fold{k}.safetensors") for k in range(3)]
    read: list[tuple[str, bool]] = []
    held, real = threading.Event(), loading.load_model

    def load(path: Path) -> object:
        aside = threading.current_thread() is not threading.main_thread()
        if aside:
            held.wait(60)
        read.append((path.name, aside))
        return real(path)

    monkeypatch.setattr(loading, "load_model", load)
    ahead = Prefetch()
    ahead.start(paths[1])
    assert ahead.take(paths[0]).path == paths[0]  # while the other one is being read
    held.set()
    ahead.start(paths[1])  # it is under way
    assert ahead.take(paths[1]).path == paths[1]
    assert read == [("a-fold0.safetensors", False), ("a-fold1.safetensors", True)]
    held.clear()
    ahead.start(paths[1])
    ahead.start(paths[2])  # another plan: the first is given back
    held.set()
    assert ahead.take(paths[2]).path == paths[2] and ahead._ahead is None
    ahead.close()


def test_an_error_in_the_background_is_raised_where_the_checkpoint_is_taken(tmp_path: Path) -> None:
    broken = tmp_path / "b-fold0.safetensors"
    broken.write_bytes(write_checkpoint(tmp_path / "a-fold0.safetensors").read_bytes()[:-9])
    ahead = Prefetch()
    ahead.start(broken)
    good = ahead.take(tmp_path / "a-fold0.safetensors")
    assert isinstance(good, Network)
    with pytest.raises(ValueError, match=r"b-fold0\.safetensors is not a whole"):
        ahead.take(broken)
    ahead.close()


def test_a_run_reads_ahead_and_a_damaged_checkpoint_costs_itself_alone(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = full_ensemble(images, weights).argmax(1).tolist()
    aside: list[str] = []
    real = loading.load_model

    def load(path: Path) -> object:
        if threading.current_thread() is not threading.main_thread():
            aside.append(path.name)
        if path.name == "res-fold1.safetensors":
            raise RuntimeError("damaged on the way")
        return real(path)

    monkeypatch.setattr(loading, "load_model", load)
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert report.left_out == {"res-fold1.safetensors": "RuntimeError: damaged on the way"}
    assert "res-fold1.safetensors" in aside and report.error is None
    monkeypatch.setattr(loading, "load_model", real)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == expected and not report.left_out
    assert set(report.precisions.values()) == {"fp32"} and len(report.precisions) == 4


class Means(nn.Module):
    """Logits from the channels' means; `wrong` in the number that float16 makes of them."""

    def __init__(self, wrong: str = "") -> None:
        super().__init__()
        self.wrong = wrong
        self.scale = nn.Parameter(torch.full((3,), 4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3)) * self.scale
        if self.wrong == "lost bits":
            x = ((x * torch.ones(3, dtype=x.dtype)) + 4096) - 4096 if x.dtype == torch.float16 else x
        if self.wrong == "clamped":
            x = x * 0 + 1 if x.dtype == torch.float16 else x
        if self.wrong == "no kernel" and x.dtype == torch.float16:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return x


def images_of(n: int = 6) -> torch.Tensor:
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("wrong", ["", "lost bits", "clamped", "no kernel"])
def test_the_first_batch_settles_the_precision(wrong: str) -> None:
    model = Means(wrong)
    settled = settle_precision(model, images_of(), TRIED)
    assert settled.precision == ("fp16-autocast" if wrong else "fp16")
    assert (settled.reason is None) == (not wrong)
    assert settled.model.scale.dtype == (torch.float32 if wrong else torch.float16)
    assert model.scale.dtype == torch.float32
    assert settle_precision(model, images_of(), ("fp32",)).precision == "fp32"


def test_what_is_wrong_in_every_half_precision_runs_in_single() -> None:
    class Rounded(Means):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (
                super().forward(x)
                if not torch.is_autocast_enabled("cpu") and x.dtype != torch.float16
                else x.sum() * x[:, :, 0, 0]
            )

    settled = settle_precision(Rounded(), images_of(), TRIED)
    assert settled.precision == "fp32" and settled.model.scale.dtype == torch.float32
    assert [part.split(":")[0] for part in settled.reason.split("; ")] == list(TRIED[:-1])


def test_a_run_on_a_half_precision_device_finds_the_wrong_member_and_plans_it_anew(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The CPU stands in for the device: float16 computes there too, and one fold's network is wrong in it alone."""
    expected = full_ensemble(images, weights)
    real_logits, spoiled = forward.logits_in, []
    real_place = Forward.__post_init__

    def mark(self: Forward) -> None:
        real_place(self)
        if self.info.name == "res-fold1":
            self.model.spoilt = True

    def logits(model: nn.Module, x: torch.Tensor, precision: str) -> torch.Tensor:
        found = real_logits(model, x, precision)
        if getattr(model, "spoilt", False) and precision == "fp16":
            spoiled.append(len(x))
            return found.roll(1, dims=1)  # finite, and wrong
        return found

    monkeypatch.setattr(Forward, "__post_init__", mark)
    monkeypatch.setattr(forward, "logits_in", logits)
    monkeypatch.setattr("cassava_kit.inference.precision.logits_in", logits)
    monkeypatch.setattr(forward, "precisions_to_try", lambda *_: ("fp16", "fp32"))
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="off", batch_size=4)
    assert report.error is None and not report.left_out
    assert len(spoiled) == 1  # seen on the first batch, and never voted with
    said = {name: text.split(" ")[0] for name, text in report.precisions.items()}
    assert said == {
        "res-fold0.safetensors": "fp16", "res-fold1.safetensors": "fp32", "eff-fold0.safetensors": "fp16",
        "vit-fold0.safetensors": "fp16",
    }  # fmt: skip
    assert "fp16: probabilities differ" in report.precisions["res-fold1.safetensors"]
    captured = capsys.readouterr()
    assert "res-fold1.safetensors runs in fp32 on cpu: fp16: probabilities differ" in captured.err
    assert "res-fold1.safetensors is planned with" in captured.out
    seconds = {unit["unit"]: unit["seconds_per_image"] for unit in report.plan["units"]}
    views = [name.split(" ")[1] for name in seconds if name.startswith("res-fold1")]
    ratios = [seconds[f"res-fold1.safetensors {v}"] / seconds[f"res-fold0.safetensors {v}"] for v in views]
    assert np.ptp(ratios) < 1e-6 * ratios[0] and ratios[0] != 1  # one factor, from its own speed
    assert np.abs(report.probabilities - expected).max() < 5e-2


def test_a_header_says_what_a_gpu_makes_of_float16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for the GPU once it is one by its name; by itself it claims nothing."""
    path = write_checkpoint(tmp_path / "a-fold0.safetensors")
    before = path.read_bytes()
    precision.add_verdict(path)
    assert path.read_bytes() == before and read_info(path).fp16 is None
    seen: list[tuple[int, ...]] = []

    def judge(model: nn.Module, images: torch.Tensor) -> tuple[str, dict[str, object]]:
        seen.append(tuple(images.shape))
        return judge_half(model, images)

    monkeypatch.setattr(precision, "judge_half", judge)
    monkeypatch.setattr(precision, "usable_devices", lambda _: (SimpleNamespace(type="cuda"),))
    monkeypatch.setattr(Network, "on_device", lambda self, _: self.model)
    precision.add_verdict(path)
    assert read_info(path).fp16 == "safe" and seen == [(16, 3, 32, 32)]
    assert load_model(path)[0] is not None
    precision.add_verdict(path)  # what is known is kept
    assert len(seen) == 1
