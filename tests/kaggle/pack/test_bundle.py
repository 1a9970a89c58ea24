from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cassava_kit.competition import CASSAVA, VARIABLE, write_facts
from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_file
from cassava_kit.inference.ensemble import Ensemble, read_ensemble
from cassava_kit.kaggle.pack import bundle as packing
from cassava_kit.kaggle.pack.bundle import (
    Bundle,
    check_ensemble_files,
    package,
    package_kernel,
    package_kit,
    package_members,
    read_bundle,
)
from cassava_kit.kaggle.pack.kernels import Changes, find_kernel, parse_changes
from cassava_kit.kaggle.pack.manifest import build_id, find_problems, read_manifest, write_manifest
from cassava_kit.models.checkpoint import read_info, save_checkpoint
from cassava_kit.models.weights import load_tensors


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_holds_what_its_manifests_say_and_nothing_else(
    bundle: Bundle, checkpoints: dict[str, Path], ensemble: Ensemble
) -> None:
    kit, weights = read_manifest(bundle.kit_dir, "kit"), read_manifest(bundle.weights_dir, "weights")
    assert {path.name for path in bundle.kit_dir.iterdir()} == {
        "KIT_MANIFEST.json",
        "dataset-metadata.json",
        "bootstrap.py",
        *kit["wheels"].values(),
    }
    assert {path.name for path in bundle.weights_dir.iterdir()} == {
        "WEIGHTS_MANIFEST.json",
        "dataset-metadata.json",
        "ensemble.json",
        *checkpoints,
    }
    for folder, manifest in ((bundle.kit_dir, kit), (bundle.weights_dir, weights)):
        for entry in manifest["files"]:
            path = folder / entry["name"]
            assert (path.stat().st_size, sha256_file(path)) == (entry["size"], entry["sha256"])
    for name, source in checkpoints.items():
        assert (bundle.weights_dir / name).read_bytes() == source.read_bytes()
    assert read_ensemble(bundle.weights_dir / "ensemble.json") == ensemble
    assert {"torch", "timm", "albumentations"} <= kit["tested"].keys()
    made = {"ensemble-submission.ipynb", "kernel-metadata.json", "competition.json"}
    assert {path.name for path in bundle.kernel_dir.iterdir()} == made and bundle.competition == CASSAVA


def test_the_same_inputs_give_the_same_bytes(
    bundle: Bundle, root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    for path in (root / "cassava_kit").rglob("*.py"):
        os.utime(path, (time.time() - 5000, time.time() - 5000))
    again = package(tmp_path / "again", ensemble=ensemble, checkpoints=checkpoints, root=root)
    assert again.build_id == bundle.build_id
    assert _contents(tmp_path / "again") == _contents(tmp_path / "build")


def test_packing_the_same_again_touches_nothing(
    bundle: Bundle, root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The client goes on with an upload only where size and time of a file are those it began with."""
    files = [path for path in (tmp_path / "build").rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    package(tmp_path / "build", ensemble=ensemble, checkpoints=checkpoints, root=root)
    assert {path: path.stat().st_mtime_ns for path in files} == before
    changed = ensemble.model_copy(update={"views": "none"})
    package(tmp_path / "build", ensemble=changed, checkpoints=checkpoints, root=root)
    assert read_ensemble(bundle.weights_dir / "ensemble.json") == changed


def test_members_are_packed_beside_the_code_that_is_packed(
    bundle: Bundle,
    root: Path,
    ensemble: Ensemble,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dry run packs the code before the training, and no wheel again after it."""
    given: dict[str, Any] = {"ensemble": ensemble, "checkpoints": checkpoints, "root": root}
    with pytest.raises(FileNotFoundError, match=r"has no KIT_MANIFEST\.json"):
        package_members(tmp_path / "again", **given)
    package_kit(tmp_path / "again" / "kit", root)
    for name in ("build_kit_wheel", "pure_wheel"):
        monkeypatch.setattr(packing, name, lambda *_, **__: pytest.fail("a wheel was made again"))
    assert package_members(tmp_path / "again", **given).build_id == bundle.build_id
    assert _contents(tmp_path / "again") == _contents(tmp_path / "build")


def test_packing_again_replaces_the_old_bundle_but_never_a_foreign_folder(
    bundle: Bundle, root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (bundle.weights_dir / "old-fold0.safetensors").write_bytes(b"of an earlier build")
    again = package(tmp_path / "build", ensemble=ensemble, checkpoints=checkpoints, root=root)
    assert again.build_id == bundle.build_id
    assert not (bundle.weights_dir / "old-fold0.safetensors").exists()
    mine = tmp_path / "mine" / "kit"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not part of a bundle"):
        package(tmp_path / "mine", ensemble=ensemble, checkpoints=checkpoints, root=root)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_the_notebook_is_pinned_to_both_builds(bundle: Bundle) -> None:
    cells = ["".join(cell["source"]) for cell in read_json(bundle.notebook)["cells"]]
    settings: dict[str, dict] = {}
    exec(next(cell for cell in cells if cell.startswith("SETTINGS")), settings)
    assert settings["SETTINGS"]["builds"] == {
        "KIT_MANIFEST.json": read_manifest(bundle.kit_dir, "kit")["build_id"],
        "WEIGHTS_MANIFEST.json": read_manifest(bundle.weights_dir, "weights")["build_id"],
    }


def test_names_on_kaggle_follow_the_owner(
    root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    bundle = package(tmp_path / "b", ensemble=ensemble, checkpoints=checkpoints, root=root, owner="someone")
    assert read_json(bundle.kit_dir / "dataset-metadata.json")["id"] == "someone/cassava-kit"
    assert read_json(bundle.weights_dir / "dataset-metadata.json")["id"] == "someone/cassava-kit-weights"
    metadata = read_json(bundle.kernel_dir / "kernel-metadata.json")
    assert metadata["dataset_sources"] == ["someone/cassava-kit", "someone/cassava-kit-weights"]


def _one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda b: _one_byte(b.weights_dir / "vit_a-fold0.safetensors"), "weights: vit_a-fold0.safetensors is not the"),
        (lambda b: next(b.kit_dir.glob("ttach*")).unlink(), "kit: ttach-0.0.3-py3-none-any.whl is missing"),
        (lambda b: (b.weights_dir / "extra.bin").write_bytes(b"x"), "weights: extra.bin is not in the manifest"),
        (lambda b: (b.kit_dir / "KIT_MANIFEST.json").unlink(), "has no KIT_MANIFEST.json"),
    ],
)
def test_a_tampered_bundle_is_refused(bundle: Bundle, tmp_path: Path, tamper, message: str) -> None:  # type: ignore[no-untyped-def]
    assert read_bundle(tmp_path / "build") == bundle
    tamper(bundle)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_bundle(tmp_path / "build")


def test_an_edited_manifest_is_refused(bundle: Bundle) -> None:
    path = bundle.kit_dir / "KIT_MANIFEST.json"
    path.write_text(path.read_text().replace('"kit_version": "', '"kit_version": "9'))
    with pytest.raises(ValueError, match="build id differs"):
        find_problems(bundle.kit_dir, "kit")


def test_members_and_checkpoints_must_agree(ensemble: Ensemble, checkpoints: dict[str, Path]) -> None:
    check_ensemble_files(ensemble, checkpoints)
    one = dict(list(checkpoints.items())[:1])
    with pytest.raises(ValueError, match=r"vit_b-fold0\.safetensors, for which no file was given"):
        check_ensemble_files(ensemble, one)
    with pytest.raises(ValueError, match=r"other\.safetensors is in no member"):
        check_ensemble_files(ensemble, {**checkpoints, "other.safetensors": next(iter(checkpoints.values()))})
    a, b = checkpoints
    with pytest.raises(ValueError, match="is vit_b-fold0 by its header"):
        check_ensemble_files(ensemble, {a: checkpoints[b], b: checkpoints[a]})
    wider = ensemble.model_copy(update={"prior": (0.5, 0.5)})
    with pytest.raises(ValueError, match=r"has 2 classes, its checkpoints \[5\]"):
        check_ensemble_files(wider, checkpoints)


def test_a_checkpoint_of_another_competition_is_refused(
    ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many classes as here, so that nothing but the slug tells them apart."""
    name, source = next(iter(checkpoints.items()))
    for slug in (CASSAVA.slug, "flowers-2027"):
        info = read_info(source).model_copy(update={"competition": slug})
        save_checkpoint(tmp_path / f"{slug}.safetensors", load_tensors(source), info)
    check_ensemble_files(ensemble, checkpoints | {name: tmp_path / f"{CASSAVA.slug}.safetensors"})
    theirs = checkpoints | {name: tmp_path / "flowers-2027.safetensors"}
    with pytest.raises(ValueError, match=r"the competition flowers-2027, this one is cassava.*_COMPETITION"):
        check_ensemble_files(ensemble, theirs)
    write_facts(tmp_path / "c.json", replace(CASSAVA, slug="flowers-2027"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    check_ensemble_files(ensemble, theirs)


def test_a_checkpoint_with_the_classes_in_another_order_is_refused(
    ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    name, source = next(iter(checkpoints.items()))
    facts = {"competition": CASSAVA.slug, "classes": CASSAVA.classes[::-1]}
    save_checkpoint(tmp_path / name, load_tensors(source), read_info(source).model_copy(update=facts))
    with pytest.raises(ValueError, match=r"was trained for the classes Healthy, .*order: Cassava Bacterial"):
        check_ensemble_files(ensemble, checkpoints | {name: tmp_path / name})


def test_a_checkpoint_in_two_members_is_named(ensemble: Ensemble, checkpoints: dict[str, Path]) -> None:
    again = ensemble.members[0].model_copy(update={"name": "again"})
    twice = ensemble.model_copy(update={"members": (*ensemble.members, again)})
    with pytest.raises(ValueError, match=r"names vit_a-fold0\.safetensors more than once; leave"):
        check_ensemble_files(twice, checkpoints)


def test_a_kernel_packed_again_keeps_its_parameters_and_owner_and_follows_the_code(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = find_kernel("train-folds")
    changes = parse_changes(["RECIPE=vit_base", "FOLDS=(0, 1)"], ["me/first-weights", "pretrain-ssl"])
    first = package_kernel(tmp_path / "k", kernel, root=root, owner="someone", changes=changes)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "k").rglob("*") if path.is_file()}
    assert package_kernel(tmp_path / "k", kernel, root=root) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing has changed, nothing is new"
    assert "FOLDS = (0, 1)" in first.notebook.read_text()
    with (root / "cassava_kit" / "files.py").open("a") as file:
        file.write("# a later version\n")
    package_kernel(tmp_path / "k", find_kernel("eda"), root=root, owner="other")
    later = package_kernel(tmp_path / "k", kernel, root=root)
    build = read_manifest(later.kit_dir, "kit")["build_id"]
    assert later.build_id != first.build_id and build in later.notebook.read_text()
    assert "RECIPE = 'vit_base'" in later.notebook.read_text()
    described = read_json(later.kernel_dir / "kernel-metadata.json")
    assert described["id"] == "other/cassava-kit-train-folds" and "me/first-weights" in described["dataset_sources"]
    write_facts(tmp_path / "c.json", replace(CASSAVA, slug="flowers-2027"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    assert package_kernel(tmp_path / "k", kernel, root=root).competition.slug == "flowers-2027"
    plain = package_kernel(tmp_path / "k", kernel, root=root, changes=Changes())
    assert "vit_base" not in plain.notebook.read_text(), "packed anew without parameters"


def test_no_credential_gets_into_a_bundle(
    root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "kaggle.json").write_text(json.dumps({"username": "me", "key": "PLANTED-KEY-IN-TREE"}))
    (root / "cassava_kit" / "kaggle.json").write_text(json.dumps({"username": "me", "key": "PLANTED-KEY-IN-TREE"}))
    (root / "kernels" / "access_token").write_text("PLANTED-ACCESS-TOKEN")
    monkeypatch.setenv("KAGGLE_KEY", "PLANTED-KEY-OF-ENVIRONMENT")
    package(tmp_path / "build", ensemble=ensemble, checkpoints=checkpoints, root=root)
    assert not [name for name, content in _contents(tmp_path / "build").items() if b"PLANTED" in content]


TOKENS = (
    "KGAT_" + "0123456789abcdef" * 2,
    "hf_" + "aBcDeFgHiJkLmNoPqRsTuVwXyZ012345678",
    "ghp_" + "a1B2" * 9,
    "github_pat_" + "11ABCDEFG0" * 3,
    "0123456789abcdef" * 2,
    "0123456789" * 4,
    "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl",
    "-----BEGIN RSA " + "PRIVATE KEY-----",
)


@pytest.mark.parametrize("where", ["cassava_kit/files.py", "kernels/bootstrap.py", "pyproject.toml"])
@pytest.mark.parametrize("value", ["PLANTED-KEY-OF-ENVIRONMENT", *TOKENS], ids=lambda value: value[:6])
def test_a_credential_written_into_the_code_is_named_by_file_and_line(
    root: Path, tmp_path: Path, where: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the user's own, by a variable whose name says so, or any string in the shape of a token."""
    monkeypatch.setenv("MY_PAT", "PLANTED-KEY-OF-ENVIRONMENT")
    number = len((root / where).read_text().splitlines()) + 1
    with (root / where).open("a") as file:
        file.write(f"# {value}\n# {value}\n")
    with pytest.raises(UserError, match=rf"{where}:{number}, {where}:{number + 1}: the line holds") as caught:
        package_kernel(tmp_path / "build", find_kernel("eda"), root=root)
    assert value not in str(caught.value)
    assert not (tmp_path / "build").exists()


def test_hashes_and_names_are_no_tokens(root: Path, tmp_path: Path) -> None:
    with (root / "cassava_kit" / "files.py").open("a") as file:
        file.write(f"# {'0123456789abcdef' * 4} {'0123456789abcdef' * 2}x hf_hub_download ghp_\n")
    package_kernel(tmp_path / "build", find_kernel("eda"), root=root)


def test_a_token_given_as_a_parameter_is_refused(root: Path, tmp_path: Path) -> None:
    changes = parse_changes([f"WEIGHTS={TOKENS[0]}"], ["me/weights"])
    with pytest.raises(UserError, match=r"(train-folds\.ipynb|changes\.json):\d+") as caught:
        package_kernel(tmp_path / "build", find_kernel("train-folds"), root=root, changes=changes)
    assert TOKENS[0] not in str(caught.value) and not (tmp_path / "build" / "kernel-train-folds").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must list its files with name, size and sha256"),
        ([], "must list its files with name, size and sha256"),
        ({"files": [{"name": "a"}]}, "must list its files with name, size and sha256"),
        ({"files": {"a": 1}}, "must list its files with name, size and sha256"),
        ({"files": []}, "lacks wheels, tested"),
    ],
)
def test_a_manifest_of_another_shape_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    """Even one that names its own hash."""
    if isinstance(content, dict):
        content = {"kind": "kit", **content}
        content["build_id"] = build_id(content)
    (tmp_path / "KIT_MANIFEST.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path, "kit")


@pytest.mark.parametrize("name", ["model+1.bin", "a b.bin", "weights.tar.gz", "données.bin", "x&y.bin"])
def test_names_that_kaggle_would_change_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match="changes its name or form"):
        write_manifest(tmp_path, "weights", {})


def test_folders_and_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="must be a flat folder"):
        write_manifest(tmp_path, "weights", {})
    shutil.rmtree(tmp_path / "folder")
    (tmp_path / "link").symlink_to(__file__)
    with pytest.raises(ValueError, match=r"link is not a plain file"):
        write_manifest(tmp_path, "weights", {})
