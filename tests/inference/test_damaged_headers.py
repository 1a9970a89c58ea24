"""A checkpoint whose header is wrong, or whose answers are no numbers, costs its own votes and is named."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_members import write_checkpoint
from tiny_runs import full_ensemble, submit

from cassava_kit.inference import pixels
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble, write_ensemble
from cassava_kit.inference.ensemble_run import EnsembleRun
from cassava_kit.inference.runner import NotFiniteError, Runner
from cassava_kit.models.checkpoint import METADATA_KEY, read_info, save_checkpoint
from cassava_kit.models.weights import load_tensors


def change_header(path: Path, **changes: object) -> None:
    """Rewrite a checkpoint with other header fields, past every check of the kit."""
    header = read_info(path).model_dump(mode="json") | changes
    save_file(load_file(path), path, metadata={METADATA_KEY: json.dumps(header)})


ALREADY: dict[tuple[object, ...], list[int]] = {}


def labels_without(images: Path, weights: Path, lost: str) -> list[int]:
    """The labels of the other members' ensemble, their weights made to sum to 1 again; the same files' are known."""
    files = sorted(path for folder in (images, weights) for path in folder.iterdir() if not path.name.startswith(lost))
    key = (lost, *((path.name, hashlib.sha256(path.read_bytes()).digest()) for path in files))
    if key not in ALREADY:
        ALREADY[key] = compute_labels_without(images, weights, lost)
    return ALREADY[key]


def compute_labels_without(images: Path, weights: Path, lost: str) -> list[int]:
    ensemble = read_ensemble(weights / ENSEMBLE_FILE)
    kept = [member for member in ensemble.members if member.name != lost]
    total = sum(member.weight for member in kept)
    members = tuple(member.model_copy(update={"weight": member.weight / total}) for member in kept)
    write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"members": members}))
    expected = full_ensemble(images, weights).argmax(1).tolist()
    write_ensemble(weights / ENSEMBLE_FILE, ensemble)
    return expected


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pixels": "fast"}, "pixels"),
        ({"pixels": "half"}, "pixels"),
        ({"input_size": [0, 32]}, "input_size"),
        ({"input_size": [-32, 32]}, "input_size"),
        ({"input_size": [32, 100_000]}, "input_size"),
        ({"std": [0.2, 0.0, 0.2]}, "std"),
        ({"std": [0.2, -0.1, 0.2]}, "std"),
        ({"mean": [float("nan"), 0.5, 0.5]}, "mean"),
        ({"std": [float("inf"), 0.5, 0.5]}, "std"),
        ({"prior": [float("nan"), 0.5, 0.5, 0.0, 0.0]}, "prior"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_a_wrong_header_costs_its_own_member_alone(
    images: Path, weights: Path, tmp_path: Path, changes: dict[str, object], field: str
) -> None:
    expected = labels_without(images, weights, "vit")
    change_header(weights / "vit-fold0.safetensors", **changes)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert list(report.left_out) == ["vit-fold0.safetensors"]
    assert f"header this kit cannot read ({field}" in report.left_out["vit-fold0.safetensors"]
    assert labels.tolist() == expected and not report.images_failed
    assert "vit" not in {member["member"] for member in report.members_used}


def test_a_size_that_cannot_be_made_costs_its_members_alone(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = labels_without(images, weights, "eff")
    real = pixels.resize

    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if size == (48, 48):
            raise MemoryError("no room for this size")
        return real(image, size)

    monkeypatch.setattr(pixels, "resize", resize)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert report.left_out == {"eff-fold0.safetensors": "MemoryError: no room for this size"}
    assert labels.tolist() == expected and not report.images_failed and report.error is None
    assert report.timings["images_decoded"] >= 21


@pytest.mark.parametrize("name", ["vit-fold0", "eff-fold0", "res-fold1"])
def test_a_checkpoint_that_answers_nan_is_named_and_left_out(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = weights / f"{name}.safetensors"
    info, tensors = read_info(path), load_tensors(path)
    head = [key for key in tensors if key.endswith("bias")][-1]
    tensors[head] = torch.full_like(tensors[head], float("nan"))
    save_checkpoint(path, tensors, info)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert list(report.left_out) == [path.name] and "answers NaN for " in report.left_out[path.name]
    assert f"WARNING: {path.name} is left out" in capsys.readouterr().err
    assert path.name not in {member["file"] for member in report.members_used}
    assert sum(member["weight"] for member in report.members_used) == pytest.approx(1)
    if name == "res-fold1":
        ensemble = read_ensemble(weights / ENSEMBLE_FILE)
        left = zip(ensemble.members, (0.25, 0.3, 0.2), strict=True)
        members = [member.model_copy(update={"weight": weight / 0.75}) for member, weight in left]
        members[0] = members[0].model_copy(update={"checkpoints": ("res-fold0.safetensors",)})
        write_ensemble(weights / ENSEMBLE_FILE, ensemble.model_copy(update={"members": tuple(members)}))
        assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    else:
        assert labels.tolist() == labels_without(images, weights, name.split("-")[0])


def test_an_image_that_cannot_be_read_does_not_make_a_checkpoint_answer_nan(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference.forward import Forward, Started

    (images / "003.jpg").write_bytes(b"")
    real = Forward.finish

    def finish(self: Forward, started: Started) -> np.ndarray:
        answer = real(self, started).copy()
        black = (started.ordered.batch.flatten(1) == 0).all(1).numpy()
        answer[:, black] = float("nan")  # a network that divides by an image's deviation
        return answer

    monkeypatch.setattr(Forward, "finish", finish)
    _, report = submit(images, weights, tmp_path / "s.csv")
    assert not report.left_out and list(report.images_failed) == ["003.jpg"]


@pytest.mark.parametrize("weight", [float("nan"), -0.5])
def test_a_weight_that_is_no_share_is_said_and_every_checkpoint_votes_evenly(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weight: float
) -> None:
    content = json.loads((weights / ENSEMBLE_FILE).read_text())
    good = [member | {"weight": 1 / 3} for member in content["members"]]
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content | {"members": good}))
    expected = full_ensemble(images, weights).argmax(1).tolist()
    content["members"][0]["weight"] = weight
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content))
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == expected and not report.prior_alone
    assert f"got {weight}" in report.left_out[ENSEMBLE_FILE] and "equal weight" in report.left_out[ENSEMBLE_FILE]
    assert "members.0.weight" in capsys.readouterr().err


def test_a_checkpoint_of_another_competition_does_not_vote(images: Path, weights: Path, tmp_path: Path) -> None:
    expected = labels_without(images, weights, "vit")
    size = {"size": (32, 32)}
    write_checkpoint(weights / "vit-fold0.safetensors", "test_vit", competition="plant-pathology-2020-fgvc7", **size)
    write_checkpoint(weights / "res-fold0.safetensors", competition="cassava-leaf-disease-classification")
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    reason = (
        "was trained for the competition plant-pathology-2020-fgvc7, this one is cassava-leaf-disease-classification"
    )
    assert report.left_out == {"vit-fold0.safetensors": reason}
    assert labels.tolist() == expected


@pytest.mark.parametrize("alone", [False, True])
def test_votes_before_a_checkpoint_answers_nan_are_taken_back_where_others_answer(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    if alone:
        for path in weights.iterdir():
            if not path.name.startswith("eff"):
                path.unlink()
    expected = None if alone else labels_without(images, weights, "eff")
    real = EnsembleRun.run_views
    rounds: list[int] = []

    def run_views(self: EnsembleRun, own: list[int], rows: np.ndarray, **options: bool) -> float | None:
        if self.units[own[0]].checkpoint.member == "eff":
            rounds.append(own[0])
            if len(rounds) > 1:
                monkeypatch.setattr(self.runner, "predict", answer_nan)
        seconds = real(self, own, rows, **options)
        monkeypatch.setattr(self.runner, "predict", Runner.predict.__get__(self.runner))
        return seconds

    def answer_nan(*_: object, **__: object) -> int:
        raise NotFiniteError("answers NaN")

    monkeypatch.setattr(EnsembleRun, "run_views", run_views)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off", batch_size=4)
    assert len(rounds) == 2 and "answers NaN" in report.left_out["eff-fold0.safetensors"]
    used = {member["file"] for member in report.members_used}
    if alone:
        assert used == {"eff-fold0.safetensors"} and not report.prior_alone
    else:
        assert "eff-fold0.safetensors" not in used and labels.tolist() == expected
