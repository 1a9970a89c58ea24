"""The submission run: right labels, and a valid file whatever happens."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_members import write_checkpoint, write_image
from tiny_runs import full_ensemble, run_python, submit

from cassava_kit.checkpoint import load_tensors, read_info, save_checkpoint
from cassava_kit.inference import choices, session
from cassava_kit.inference import run as run_module
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble, write_ensemble
from cassava_kit.inference.forward import Forward
from cassava_kit.inference.pixels import Budget
from cassava_kit.inference.report import RunOptions


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
    assert report["versions"]["torch"] and report["devices"] == [f"cpu ({len(os.sched_getaffinity(0))} cores)"]
    assert report["plan"]["total_seconds"] > 0 and report["timings"]["units"]
    assert report["timings"]["images_decoded"] == 20
    assert sum(report["class_counts"]) == 21


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"early_stop": "never"}, "certified, calibrated, off"),
        ({"views": "all"}, r"none, flips, d4, d4\+zoom"),
        ({"engine": "tvm"}, "auto, eager, compiled, onnx, openvino"),
        ({"pixels": "half"}, "exact, fast, got 'half'"),
        ({"memory": -1.0}, "at least 0 gigabytes"),
        ({"engine": "openvino"}, "pip install openvino"),
        ({"batch_size": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_options_are_refused_at_once(
    wrong: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "find_spec", lambda name: None)
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
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="off", engine="eager")
    assert list(report.left_out) == ["res-fold0.safetensors"]
    costs = [unit["seconds_per_image"] for unit in report.plan["units"] if unit["unit"].startswith("res-fold1")]
    assert len(costs) == 4 and min(costs) > 0


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
    labels, report = submit(images, weights, tmp_path / "s.csv", engine="eager")
    assert len(report.left_out) == 4 and not report.prior_alone
    assert labels["025.jpg"] == 3 and list(report.images_failed) == ["025.jpg"]


def test_a_disk_that_is_full_for_a_while_costs_no_checkpoint(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = run_module.write_submission, []

    def write(*arguments: object) -> None:
        calls.append(1)
        if 2 < len(calls) < 9:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(run_module, "write_submission", write)
    monkeypatch.setattr(session, "WRITE_EVERY_SECONDS", 0.0)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    assert not report.left_out and report.error is None and not report.prior_alone
    assert "the last one stands for now: [Errno 28]" in capsys.readouterr().err


def test_a_probability_file_of_other_images_is_left_out(images: Path, weights: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"image_id": ["a.jpg", "b.jpg"], **{f"p{k}": [0.2, 0.2] for k in range(5)}})
    table.to_csv(weights / "theirs.csv", index=False)
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    ours = full_ensemble(images, weights).argmax(1).tolist()
    shrunk = [member.model_copy(update={"weight": 0.6 * member.weight}) for member in ensemble.members]
    foreign = ensemble.members[0].model_copy(update={"name": "theirs", "weight": 0.4, "checkpoints": ("theirs.csv",)})
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"members": (*shrunk, foreign)}))
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert labels.tolist() == ours
    assert report.left_out == {"theirs.csv": "predicts none of the 21 images (first: 000.jpg)"}
    assert "theirs.csv" not in {member["file"] for member in report.members_used}


def test_a_probability_file_votes_with_its_weight(images: Path, weights: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    theirs = np.random.default_rng(0).dirichlet(np.ones(5), 20)
    table = pd.DataFrame({"image_id": names[::-1][:20], **{f"p{k}": theirs[:, k] for k in range(5)}})
    table.to_csv(weights / "theirs.csv", index=False, float_format="%.8g")
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    ours = full_ensemble(images, weights)
    shrunk = [member.model_copy(update={"weight": 0.6 * member.weight}) for member in ensemble.members]
    foreign = ensemble.members[0].model_copy(update={"name": "theirs", "weight": 0.4, "checkpoints": ("theirs.csv",)})
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"members": (*shrunk, foreign)}))
    expected = 0.6 * ours
    expected[np.arange(21)[::-1][:20]] += 0.4 * theirs
    assert (expected.argmax(1) != ours.argmax(1)).any()
    for early_stop in ("off", "certified"):
        labels, _ = submit(images, weights, tmp_path / "s.csv", early_stop=early_stop)
        assert labels.tolist() == expected.argmax(1).tolist()


def test_calibrated_stop_comes_from_the_ensemble_file(images: Path, weights: Path, tmp_path: Path) -> None:
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    lax = {"early_stop": {"threshold": 0.0, "min_share": 0.0, "changed": 0.3}}
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"oof": lax}))
    _, report = submit(images, weights, tmp_path / "s.csv", early_stop="calibrated")
    _, certified = submit(images, weights, tmp_path / "s.csv")
    assert report.early_stop["kind"] == "calibrated" and report.early_stop["changed"] == 0.3
    assert report.early_stop["work_done"] < certified.early_stop["work_done"]
    write_ensemble(weights / ENSEMBLE_FILE, ensemble)
    _, fallen_back = submit(images, weights, tmp_path / "s.csv", early_stop="calibrated")
    assert fallen_back.early_stop["kind"] == "certified" and fallen_back.early_stop["asked"] == "calibrated"


def test_importing_the_run_takes_no_model_library() -> None:
    heavy = ["torch", "timm", "pandas", "cv2"]
    code = f"import sys, cassava_kit.inference.run; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(["-c", code]).strip() == "[]"


def test_a_strange_checkpoint_beside_the_others_does_not_take_part(images: Path, weights: Path, tmp_path: Path) -> None:
    write_checkpoint(weights / "other-fold0.safetensors")
    labels, _ = submit(images, weights, tmp_path / "s.csv")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
