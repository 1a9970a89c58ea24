"""A weights folder with something wrong still gives an ensemble, and says what it left out."""

import json
import re
from pathlib import Path

import pytest
from tiny_members import PRIOR, write_checkpoint
from tiny_runs import FakeClock

from cassava_kit.competition import CASSAVA
from cassava_kit.files import WEIGHTS_MANIFEST, sha256_file
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.inference.members import load_members, read_prior


def weight_of(folder: Path) -> dict[str, float]:
    return {checkpoint.name: round(checkpoint.weight, 6) for checkpoint in load_members(folder).checkpoints}


def test_a_whole_folder(weights: Path) -> None:
    members = load_members(weights)
    assert weight_of(weights) == {
        "res-fold0.safetensors": 0.25,
        "res-fold1.safetensors": 0.25,
        "eff-fold0.safetensors": 0.3,
        "vit-fold0.safetensors": 0.2,
    }
    assert members.left_out == {} and members.prior == PRIOR and members.views == "flips"


def test_a_lost_folds_weight_goes_to_its_sisters(weights: Path) -> None:
    (weights / "res-fold1.safetensors").unlink()
    assert weight_of(weights)["res-fold0.safetensors"] == 0.5
    assert load_members(weights).left_out == {"res-fold1.safetensors": "the file is missing"}


def test_a_lost_members_weight_goes_to_the_others(weights: Path) -> None:
    (weights / "eff-fold0.safetensors").unlink()
    found = weight_of(weights)
    assert found["vit-fold0.safetensors"] == pytest.approx(0.2 / 0.7, abs=1e-6)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cut", [0, 4, 1000, -10])
def test_a_truncated_checkpoint_is_left_out(weights: Path, cut: int) -> None:
    path = weights / "vit-fold0.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    assert "vit-fold0.safetensors" not in weight_of(weights)
    assert "whole .safetensors" in load_members(weights).left_out["vit-fold0.safetensors"]


def write_manifest(folder: Path) -> None:
    files = [{"name": p.name, "size": p.stat().st_size, "sha256": sha256_file(p)} for p in sorted(folder.iterdir())]
    (folder / WEIGHTS_MANIFEST).write_text(json.dumps({"files": files}))


def test_a_checkpoint_of_another_build_is_left_out(weights: Path) -> None:
    write_manifest(weights)
    assert not load_members(weights).left_out
    write_checkpoint(weights / "vit-fold0.safetensors", "test_resnet")
    assert "another build" in load_members(weights).left_out["vit-fold0.safetensors"]


def test_a_flipped_bit_is_another_build(weights: Path) -> None:
    write_manifest(weights)
    path = weights / "eff-fold0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert list(load_members(weights).left_out) == ["eff-fold0.safetensors"]


def test_a_file_that_the_manifest_does_not_list_is_left_out(weights: Path) -> None:
    write_manifest(weights)
    path = weights / WEIGHTS_MANIFEST
    content = json.loads(path.read_text())
    content["files"] = [entry for entry in content["files"] if not entry["name"].startswith("vit")]
    path.write_text(json.dumps(content))
    assert "does not list it" in load_members(weights).left_out["vit-fold0.safetensors"]


def test_a_broken_manifest_is_said_and_stops_nothing(weights: Path) -> None:
    (weights / WEIGHTS_MANIFEST).write_text("{")
    members = load_members(weights)
    assert len(members.checkpoints) == 4 and list(members.left_out) == [WEIGHTS_MANIFEST]


def test_a_model_for_other_classes_is_left_out(weights: Path) -> None:
    write_checkpoint(weights / "vit-fold0.safetensors", "test_resnet", n_classes=7)
    assert "7 classes" in load_members(weights).left_out["vit-fold0.safetensors"]


@pytest.mark.parametrize("content", [None, "", "{", '{"members": []}', "[1]"])
def test_without_an_ensemble_file_every_checkpoint_takes_part(weights: Path, content: str | None) -> None:
    path = weights / ENSEMBLE_FILE
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert weight_of(weights)["res-fold0.safetensors"] == pytest.approx(1 / 6, abs=1e-6)
    assert weight_of(weights)["eff-fold0.safetensors"] == pytest.approx(1 / 3, abs=1e-6)
    members = load_members(weights)
    assert ENSEMBLE_FILE in members.left_out and members.prior == PRIOR


def test_views_that_the_kit_does_not_know_fall_back(weights: Path) -> None:
    content = json.loads((weights / ENSEMBLE_FILE).read_text())
    (weights / ENSEMBLE_FILE).write_text(json.dumps(content | {"views": "fisheye"}))
    members = load_members(weights)
    assert members.views == "flips" and "fisheye" in members.left_out["views"] and len(members.checkpoints) == 4


def test_the_prior_comes_from_a_checkpoint_where_the_ensemble_file_is_lost(weights: Path) -> None:
    (weights / ENSEMBLE_FILE).unlink()
    assert read_prior(weights) == PRIOR


def test_an_empty_folder_leaves_the_prior(tmp_path: Path) -> None:
    members = load_members(tmp_path)
    assert members.checkpoints == () and len(members.prior) == 5
    assert load_members(tmp_path / "nowhere").checkpoints == ()
    assert len(read_prior(tmp_path / "nowhere")) == 5


def test_members_of_no_weight_vote_only_when_alone(weights: Path) -> None:
    def ensemble(res: float, eff: float) -> None:
        members = (
            EnsembleMember(name="res", weight=res, checkpoints=("res-fold0.safetensors",)),
            EnsembleMember(name="eff", weight=eff, checkpoints=("eff-fold0.safetensors",)),
        )
        write_ensemble(weights / ENSEMBLE_FILE, Ensemble(members=members, prior=PRIOR))

    ensemble(1.0, 0.0)
    assert weight_of(weights) == {"res-fold0.safetensors": 1.0}
    (weights / "res-fold0.safetensors").unlink()
    assert weight_of(weights) == {"eff-fold0.safetensors": 1.0}


def test_files_that_there_is_no_time_for_are_left_out(weights: Path) -> None:
    clock = FakeClock(100.0)
    assert len(load_members(weights, clock=clock).checkpoints) == 4
    clock.now = 100.0
    members = load_members(weights, clock=clock)
    assert members.checkpoints == () and members.prior == PRIOR
    assert set(members.left_out.values()) == {"the time was over before it was read"} and len(members.left_out) == 4


@pytest.mark.parametrize("slug", [CASSAVA.slug, None])
def test_a_checkpoint_with_the_classes_in_another_order_is_left_out(weights: Path, slug: str | None) -> None:
    path = weights / "vit-fold0.safetensors"
    write_checkpoint(path, "test_vit", competition=slug, classes=CASSAVA.classes)
    assert not load_members(weights).left_out
    write_checkpoint(path, "test_vit", competition=slug, classes=CASSAVA.classes[::-1])
    members = load_members(weights)
    assert path.name not in weight_of(weights)
    expected = f"for the classes {', '.join(CASSAVA.classes[::-1])}; expected .* order: {', '.join(CASSAVA.classes)}"
    assert re.search(expected.replace("(", r"\(").replace(")", r"\)"), members.left_out[path.name])


def test_classes_by_their_numbers_are_the_competitions_own(weights: Path) -> None:
    path = weights / "vit-fold0.safetensors"
    write_checkpoint(path, "test_vit", classes=("0", "1", "2", "3", "4"))
    assert not load_members(weights).left_out
    write_checkpoint(path, "test_vit", classes=("0", "1", "2", "4", "3"))
    assert "for the classes 0, 1, 2, 4, 3" in load_members(weights).left_out[path.name]


def test_the_prior_is_not_taken_from_another_competitions_checkpoint(weights: Path) -> None:
    (weights / ENSEMBLE_FILE).unlink()
    foreign, shares = {"competition": "flowers-2027"}, (0.9, 0.1, 0.0, 0.0, 0.0)
    write_checkpoint(weights / "aaa-fold0.safetensors", prior=shares, **foreign)
    write_checkpoint(weights / "aab-fold0.safetensors", prior=shares, classes=CASSAVA.classes[::-1])
    assert read_prior(weights) == PRIOR == load_members(weights).prior
