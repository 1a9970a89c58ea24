"""The submission run: right labels, and a valid file whatever happens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_members import write_checkpoint, write_image
from tiny_runs import full_ensemble, run_python, submit

from cassava_kit.inference import ensemble_run
from cassava_kit.inference import run as run_module
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble, write_ensemble
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.kept_pixels import Budget
from cassava_kit.inference.machine import cpu_count
from cassava_kit.inference.options import RunOptions
from cassava_kit.models.checkpoint import read_info, save_checkpoint
from cassava_kit.models.weights import load_tensors


@pytest.mark.parametrize("early_stop", ["off", "certified"])
@pytest.mark.parametrize("budget", [None, Budget(0, 0)], ids=["kept", "decoded again"])
def test_the_labels_are_the_full_ensembles(
    images: Path, weights: Path, tmp_path: Path, early_stop: str, budget: Budget | None
) -> None:
    expected = full_ensemble(images, weights).argmax(1)
    assert len(set(expected)) > 2
    labels, report = submit(images, weights, tmp_path / "out" / "s.csv", early_stop=early_stop, budget=budget)
    assert labels.tolist() == expected.tolist()
    assert not report.prior_alone and report.finished and report.error is None and not report.left_out
    assert (report.early_stop["work_done"] < 1) == (early_stop == "certified")


def test_run_json_says_what_happened_and_nothing_of_the_environment(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-secret-of-mine")
    (weights / "vit-fold0.safetensors").unlink()
    (images / "000.jpg").write_bytes(b"GIF89a")
    submit(images, weights, tmp_path / "s.csv")
    text = (tmp_path / "run.json").read_text()
    assert "a-secret-of-mine" not in text
    report = json.loads(text)
    assert report["n_images"] == 21 and list(report["images_failed"]) == ["000.jpg"]
    assert report["left_out"] == {"vit-fold0.safetensors": "the file is missing"}
    assert {m["file"] for m in report["members_used"]} == {
        f"{n}.safetensors" for n in ("res-fold0", "res-fold1", "eff-fold0")
    }
    assert sum(m["weight"] for m in report["members_used"]) == pytest.approx(1)
    assert report["versions"]["torch"] and report["devices"] == [f"cpu ({cpu_count()} cores)"]
    assert report["plan"]["total_seconds"] > 0 and report["timings"]["units"]
    assert report["timings"]["images_decoded"] == 20
    assert sum(report["class_counts"]) == 21


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"early_stop": "never"}, "certified, off"),
        ({"views": "all"}, r"none, hflip, flips, d4, d4\+zoom"),
        ({"memory": -1.0}, "at least 0 gigabytes"),
        ({"batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_at_once(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunOptions(**wrong)


def break_all(weights: Path) -> None:
    for path in weights.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])


def test_without_any_member_the_prior_stands_alone_and_loudly(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_all(weights)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert set(labels) == {3} and report.prior_alone and len(report.left_out) == 4
    assert "NO MEMBER VOTED" in capsys.readouterr().err


def without(weights: Path, lost: str) -> np.ndarray:
    """What the ensemble says when a member is left out of its file, weights made to sum to 1 again."""
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    kept = [member for member in ensemble.members if member.name != lost]
    total = sum(member.weight for member in kept)
    members = tuple(member.model_copy(update={"weight": member.weight / total}) for member in kept)
    return ensemble.model_copy(update={"members": members})


@pytest.mark.parametrize("fault", ["strict load", "forward"])
def test_a_member_that_fails_late_is_left_out(
    images: Path, weights: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights / "eff-fold0.safetensors"
    if fault == "strict load":
        tensors = load_tensors(path)
        tensors.pop(next(name for name in tensors if name.endswith("weight")))
        save_checkpoint(path, tensors, read_info(path))
    else:
        real = Forward.start

        def start(self: Forward, pixels: object, view: object) -> object:
            if self.info.recipe == "eff":
                raise RuntimeError("a kernel died")
            return real(self, pixels, view)

        monkeypatch.setattr(Forward, "start", start)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    monkeypatch.undo()
    assert list(report.left_out) == ["eff-fold0.safetensors"]
    write_ensemble(weights / ENSEMBLE_FILE, without(weights, "eff"))
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


def test_a_checkpoint_that_fails_while_it_is_measured_does_not_make_its_sisters_free(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Forward.start, []

    def start(self: Forward, pixels: object, view: object) -> object:
        if self.info.name == "res-fold0":
            calls.append(1)
            if len(calls) > 5:  # one batch warms up, three are timed, the next is another view
                raise RuntimeError("a kernel died")
        return real(self, pixels, view)

    monkeypatch.setattr(Forward, "start", start)
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert list(report.left_out) == ["res-fold0.safetensors"]
    used = {member["file"] for member in report.members_used}
    names = ("res-fold0", "res-fold1", "eff-fold0", "vit-fold0")  # the first's votes before it failed are counted
    assert used == {f"{name}.safetensors" for name in names}
    costs = [unit["seconds_per_image"] for unit in report.plan["units"] if unit["unit"].startswith("res-fold1")]
    assert len(costs) == 4 and min(costs) > 0


def test_a_checkpoint_that_failed_is_not_tried_again(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Forward.start, []

    def start(self: Forward, pixels: object, view: object) -> object:
        if self.info.name == "res-fold1":  # it is not measured, its sister is: it fails in the middle of the work
            calls.append(1)
            raise RuntimeError("a kernel died")
        return real(self, pixels, view)

    monkeypatch.setattr(Forward, "start", start)
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert calls == [1] and list(report.left_out) == ["res-fold1.safetensors"]


def test_a_picture_that_cannot_be_read_keeps_the_priors_class_where_every_checkpoint_fails(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(21, 40):
        write_image(images / f"{i:03d}.jpg", i)
    (images / "025.jpg").write_bytes(b"")
    real, dark = Forward.start, []

    def start(self: Forward, pixels: torch.Tensor, view: object) -> object:
        dark.append(bool(dark and dark[-1]) or not pixels.flatten(1).any(1).all())
        if sum(dark) > 2:  # its batch has voted
            raise RuntimeError("a kernel died")
        return real(self, pixels, view)

    monkeypatch.setattr(Forward, "start", start)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert len(report.left_out) == 4 and not report.prior_alone
    assert labels["025.jpg"] == 3 and list(report.images_failed) == ["025.jpg"]


def test_a_disk_that_is_full_for_a_while_costs_no_checkpoint(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = run_module.write_answers, []

    def write(*arguments: object) -> None:
        calls.append(1)
        if 2 < len(calls) < 9:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(run_module, "write_answers", write)
    monkeypatch.setattr(ensemble_run, "WRITE_EVERY_SECONDS", 0.0)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    assert not report.left_out and report.error is None and not report.prior_alone
    assert "the last one stands for now: [Errno 28]" in capsys.readouterr().err


def test_importing_the_run_takes_no_model_library() -> None:
    heavy = ["torch", "timm", "pandas", "cv2"]
    code = f"import sys, cassava_kit.inference.run; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(["-c", code]).strip() == "[]"


def test_a_strange_checkpoint_beside_the_others_does_not_take_part(images: Path, weights: Path, tmp_path: Path) -> None:
    write_checkpoint(weights / "other-fold0.safetensors")
    labels, _ = submit(images, weights, tmp_path / "s.csv")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
