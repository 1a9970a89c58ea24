"""What was trained already, packed without training; and a reading of everything packed and printed for secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from forked_python import interpreter
from scipy.optimize import nnls

from cassava_kit.data.folds import Folds, read_folds, write_folds
from cassava_kit.evidence.oof import check_oof
from cassava_kit.evidence.predictions import Header, make_predictions, read_predictions, write_predictions
from cassava_kit.files import read_json, write_json
from cassava_kit.inference.ensemble import read_ensemble, write_ensemble
from cassava_kit.kaggle.pack.bundle import package
from cassava_kit.kaggle.pack.selection import from_dry_run, from_runs, keep_evidence
from cassava_kit.models.checkpoint import CheckpointInfo, read_info, save_checkpoint
from cassava_kit.models.weights import load_tensors

REPOSITORY = Path(__file__).resolve().parents[3]
NAMES = ("vit_a", "vit_b")
ROWS = 40


@pytest.fixture
def trained(tmp_path: Path, checkpoints: dict[str, Path]) -> Path:
    """Runs of two recipes over two folds, with their split and out-of-fold files, as `train` leaves them."""
    home = tmp_path / "trained"
    frame = pd.DataFrame({"image_id": [f"{i:03d}.jpg" for i in range(ROWS)], "label": np.arange(ROWS) % 5})
    split = Folds(frame.assign(fold=np.arange(ROWS) % 2))
    write_folds(home / "folds.csv", split)
    for number, name in enumerate(NAMES):
        source = next(path for path in checkpoints.values() if read_info(path).recipe == name)
        facts = read_info(source).model_dump()
        for fold in (0, 1):
            changed = {"fold": fold, "fold_hash": split.hash, "oof_accuracy": 0.5 + 0.2 * fold, "oof_rows": 20}
            info = CheckpointInfo(**(facts | changed))
            save_checkpoint(home / "runs" / name / f"fold{fold}" / "best.safetensors", load_tensors(source), info)
        probabilities = np.random.default_rng(number).dirichlet(np.ones(5), ROWS)
        header = Header(name=name, kind="oof", fold_hash=split.hash)
        oof = make_predictions(
            frame["image_id"].to_numpy(), probabilities, header=header, fold=split.frame["fold"].to_numpy()
        )
        write_predictions(home / "runs" / name / "oof.csv", oof)
    members = [
        {"name": name, "oof": str(home / "runs" / name / "oof.csv"), "weight": weight}
        for name, weight in zip(NAMES, (0.25, 0.75), strict=True)
    ]
    write_json(home / "weights.json", {"members": members, "method": "stack", "fold_hash": split.hash})
    return home


def test_temperatures_of_a_weights_file_go_into_the_bundle(trained: Path) -> None:
    temperatures = [0.5, 0.9, 1.0, 2.0, 0.7]
    written = read_json(trained / "weights.json")
    write_json(trained / "weights.json", written | {"method": "by hand", "temperatures": temperatures})
    selection = from_runs([], weights=trained / "weights.json", folds=trained / "folds.csv")
    assert selection.ensemble.temperatures == tuple(temperatures)
    a, b = (read_predictions(trained / "runs" / name / "oof.csv").probabilities for name in NAMES)
    raised = (0.25 * a + 0.75 * b) ** (1 / np.array(temperatures))
    assert selection.evidence is not None
    judged = selection.evidence[0]
    assert judged.probabilities == pytest.approx(raised / raised.sum(axis=1, keepdims=True), abs=1e-6)
    labels = read_folds(trained / "folds.csv").frame["label"].to_numpy()
    assert selection.ensemble.oof["accuracy"] == (raised.argmax(axis=1) == labels).mean()
    assert any("temperatures" in text for text in selection.ensemble.oof["labels_seen"])
    assert from_runs([], weights=trained / "weights.json").ensemble.temperatures == tuple(temperatures)


def test_run_folders_are_averaged_evenly(trained: Path) -> None:
    selection = from_runs([trained / "runs" / name for name in NAMES], views="none")
    members = {member.name: member for member in selection.ensemble.members}
    assert [member.weight for member in members.values()] == [0.5, 0.5]
    assert members["vit_a"].checkpoints == ("vit_a-fold0.safetensors", "vit_a-fold1.safetensors")
    assert members["vit_a"].oof_accuracy == pytest.approx(0.6)
    assert selection.ensemble.views == "none" and selection.ensemble.fold_hash == read_folds(trained / "folds.csv").hash
    assert sum(selection.ensemble.prior) == pytest.approx(1)
    assert selection.checkpoints["vit_b-fold1.safetensors"] == trained / "runs/vit_b/fold1/best.safetensors"


def test_the_verbs_weights_file_is_enough(trained: Path) -> None:
    split = read_folds(trained / "folds.csv")
    selection = from_runs([], weights=trained / "weights.json", folds=trained / "folds.csv")
    assert [(member.name, member.weight) for member in selection.ensemble.members] == [("vit_a", 0.25), ("vit_b", 0.75)]
    parts = np.stack([read_predictions(trained / "runs" / name / "oof.csv").probabilities for name in NAMES])
    fold, labels = split.frame["fold"].to_numpy(), split.frame["label"].to_numpy()
    blended = np.zeros_like(parts[0])
    for out in (0, 1):  # weights of the method `stack`, found on the other fold by scipy's least squares
        rest = fold != out
        weights, _ = nnls(parts[:, rest].reshape(2, -1).T, np.eye(5)[labels[rest]].ravel())
        blended[~rest] = np.tensordot(weights / weights.sum(), parts[:, ~rest], axes=1)
    assert selection.evidence is not None
    assert selection.evidence[0].probabilities == pytest.approx(blended, abs=1e-5)
    right = (blended.argmax(axis=1) == labels).mean()
    assert selection.ensemble.oof["accuracy"] == pytest.approx(right)
    assert selection.ensemble.oof["labels_seen"], "the method was chosen on these rows"
    keep_evidence(selection, trained / "packed")
    kept = trained / "packed" / "evidence"
    check_oof(read_predictions(kept / "oof.csv"), read_folds(kept / "folds.csv"), "kept")
    keep_evidence(from_runs([], weights=trained / "weights.json"), trained / "packed")
    assert not list(kept.iterdir()), "evidence of another packing does not stay"


def test_two_rounds_of_one_recipe_are_packed_side_by_side(trained: Path, root: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "runs", trained / "round2" / "runs")
    folders = [trained / "runs" / "vit_a", trained / "round2" / "runs" / "vit_a", trained / "runs" / "vit_b"]
    selection = from_runs(folders)
    names = [member.name for member in selection.ensemble.members]
    assert names == ["trained/runs/vit_a", "round2/runs/vit_a", "vit_b"]
    assert {name: str(path.relative_to(trained)) for name, path in selection.checkpoints.items()} == {
        "m1-vit_a-fold0.safetensors": "runs/vit_a/fold0/best.safetensors",
        "m1-vit_a-fold1.safetensors": "runs/vit_a/fold1/best.safetensors",
        "m2-vit_a-fold0.safetensors": "round2/runs/vit_a/fold0/best.safetensors",
        "m2-vit_a-fold1.safetensors": "round2/runs/vit_a/fold1/best.safetensors",
        "vit_b-fold0.safetensors": "runs/vit_b/fold0/best.safetensors",
        "vit_b-fold1.safetensors": "runs/vit_b/fold1/best.safetensors",
    }
    made = package(tmp_path / "a", ensemble=selection.ensemble, checkpoints=selection.checkpoints, root=root)
    assert len(list(made.weights_dir.glob("*.safetensors"))) == 6


def test_a_member_without_weight_is_left_out_and_a_missing_fold_is_named(trained: Path) -> None:
    weights = read_json(trained / "weights.json")
    weights["members"][0]["weight"], weights["members"][1]["weight"] = 0.0, 1.0
    write_json(trained / "weights.json", weights)
    shutil.rmtree(trained / "runs" / "vit_b" / "fold0")
    selection = from_runs([], weights=trained / "weights.json")
    assert list(selection.checkpoints) == ["vit_b-fold1.safetensors"]
    assert {"vit_a has weight 0 and is left out", "vit_b: fold 0 of 2 is not trained"} <= set(selection.notes)


def _other_split(trained: Path) -> None:
    weights = read_json(trained / "weights.json")
    write_json(trained / "weights.json", weights | {"fold_hash": "f" * 64})


@pytest.mark.parametrize(
    ("spoil", "members", "message"),
    [
        (_other_split, [], "must be of one split"),
        (lambda t: None, ["vit_a"], "has weights for vit_a, vit_b, the run folders are of vit_a"),
        (lambda t: None, ["vit_a", "vit_a"], r"must differ, got .*runs/vit_a more than once"),
        (lambda t: shutil.rmtree(t / "runs" / "vit_b"), [], r"vit_b holds no fold\*/best.safetensors"),
        (lambda t: (t / "weights.json").write_text("{}"), [], "not a weights file of the verb ensemble"),
        (lambda t: (t / "weights.json").unlink(), [], "no weights file"),
    ],
)
def test_what_does_not_belong_together_is_refused(trained: Path, spoil, members: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(trained)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        from_runs([trained / "runs" / name for name in members], weights=trained / "weights.json")


def test_an_earlier_ensemble_is_packed_as_it_was(trained: Path, root: Path, tmp_path: Path) -> None:
    """The bundle that `ensemble` packed and the one that `package` makes of its runs are the same, byte for byte."""
    first = from_runs([trained / "runs" / name for name in NAMES])
    made = package(tmp_path / "a", ensemble=first.ensemble, checkpoints=first.checkpoints, root=root)
    write_ensemble(trained / "ensemble.json", first.ensemble)
    again = from_dry_run(trained)
    assert package(tmp_path / "b", ensemble=again.ensemble, checkpoints=again.checkpoints, root=root) is not None
    for path in (path for path in (tmp_path / "a").rglob("*") if path.is_file()):
        assert (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes() == path.read_bytes()
    assert read_ensemble(made.weights_dir / "ensemble.json") == first.ensemble
    assert from_dry_run(trained, "d4").ensemble.views == "d4"
    with pytest.raises(ValueError, match="views"):
        from_dry_run(trained, "upside-down")
    with pytest.raises(FileNotFoundError, match=r"run: python submit\.py ensemble"):
        from_dry_run(tmp_path)


def test_a_call_on_another_split_that_was_stopped_is_not_packed(trained: Path) -> None:
    """Folds of the split that was begun lie among those of the one that the ensemble is of."""
    write_ensemble(trained / "ensemble.json", from_runs([trained / "runs" / name for name in NAMES]).ensemble)
    oof = read_predictions(trained / "runs" / "vit_a" / "oof.csv")
    write_predictions(trained / "ensemble-oof.csv", oof)
    assert from_dry_run(trained).evidence is not None
    other = Folds(read_folds(trained / "folds.csv").frame.assign(fold=np.arange(ROWS) % 5))
    path = trained / "runs" / "vit_a" / "fold0" / "best.safetensors"
    before = path.read_bytes()
    _change(path, fold_hash=other.hash)
    with pytest.raises(ValueError, match="must be of one split"):
        from_dry_run(trained)
    path.write_bytes(before)
    write_folds(trained / "folds.csv", other, replace=True)
    with pytest.raises(ValueError, match=r"ensemble-oof\.csv was made on"):
        from_dry_run(trained)


def _change(path: Path, **changes: object) -> None:
    """Write a checkpoint again with another header."""
    save_checkpoint(path, load_tensors(path), read_info(path).model_copy(update=changes))


def test_members_of_other_classes_are_refused(trained: Path) -> None:
    _change(trained / "runs" / "vit_b" / "fold0" / "best.safetensors", n_classes=3, prior=(0.2, 0.3, 0.5))
    with pytest.raises(ValueError, match="must have the same classes, got vit_b-fold1 has 5, vit_b-fold0 has 3"):
        from_runs([trained / "runs" / name for name in NAMES])


def submit(root: Path, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`submit.py` of a copy of the repository, started anywhere."""
    shutil.copy(REPOSITORY / "submit.py", root)
    environment = os.environ | {"PYTHONPATH": str(root), "KAGGLE_KEY": "PLANTED-KEY-OF-ENVIRONMENT"}
    command = [interpreter(), str(root / "submit.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment, check=False)


def _plant(root: Path) -> None:
    for place in (root, root / "cassava_kit", root / "kernels"):
        write_json(place / "kaggle.json", {"username": "me", "key": "PLANTED-KEY-IN-TREE"})
        (place / "access_token").write_text("PLANTED-ACCESS-TOKEN")


@pytest.mark.slow
def test_two_packings_are_the_same_and_nothing_packed_printed_or_logged_holds_a_secret(
    root: Path, trained: Path, tmp_path: Path
) -> None:
    from cassava_kit.data.sample.make import make_sample

    _plant(root)
    data = make_sample(tmp_path / "sample" / "competition", n_train=50, n_test=3)
    outs, printed = (tmp_path / "here" / "bundle", tmp_path / "there" / "bundle"), ""
    for number, out in enumerate(outs):
        out.parent.mkdir()
        for path in [*root.rglob("*.py"), *trained.rglob("*")]:
            os.utime(path, (time.time() - 5000 * number, time.time() - 5000 * number))
        done = submit(root, "package", "--out", out, "--ensemble-weights", trained / "weights.json", cwd=out.parent)
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    files = [path.relative_to(outs[0]) for path in outs[0].rglob("*") if path.is_file()]
    assert len(files) > 10
    assert all((outs[0] / path).read_bytes() == (outs[1] / path).read_bytes() for path in files)
    for arguments in (["rehearse", "--data", data], ["doctor"], ["submit", "--dry-run"]):
        done = submit(root, *arguments, "--bundle", outs[0], cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout + done.stderr
    assert "all 4 rehearsals passed" in printed and "next: cassava-kit submit rehearse" in printed
    for name in ("train-folds", "eda"):
        done = submit(root, "package", "--kernel", name, "--out", tmp_path / "kernels", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        printed += done.stdout + done.stderr
    left = {
        path: path.read_bytes() for out in (*outs, tmp_path / "kernels") for path in out.rglob("*") if path.is_file()
    }
    assert {"log.txt", "run.json", "rehearsal.json", "ensemble-submission.ipynb"} <= {path.name for path in left}
    assert "PLANTED" not in printed
    assert not [path for path, content in left.items() if b"PLANTED" in content]


@pytest.mark.slow
def test_each_push_of_a_kernel_packs_it_anew_with_the_parameters_it_had(root: Path, tmp_path: Path) -> None:
    push = ["push", "--dry-run", "--kernel", "train-folds"]
    first = submit(root, *push, "--param", "RECIPE=vit_base", cwd=tmp_path)
    assert first.returncode == 0 and "next:" not in first.stdout, first.stderr
    notebook = tmp_path / "build/kernels/kernel-train-folds/train-folds.ipynb"
    before = notebook.read_text()
    with (root / "cassava_kit" / "files.py").open("a") as file:
        file.write("# a later version\n")
    second = submit(root, *push, "--owner", "someone", cwd=tmp_path)
    assert "SaveKernel someone/cassava-kit-train-folds" in second.stdout, second.stdout + second.stderr
    assert "RECIPE = 'vit_base'" in notebook.read_text() and notebook.read_text() != before


@pytest.mark.slow
def test_without_anything_trained_it_says_what_to_do(root: Path, tmp_path: Path) -> None:
    done = submit(root, "package", "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "found none in build/" in done.stderr and "--kernel train-folds" in done.stderr
