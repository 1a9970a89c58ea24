from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cassava_kit.competition import CASSAVA
from cassava_kit.files import read_json, sha256_file, write_json
from cassava_kit.kaggle.doctor import CHECKS, doctor
from cassava_kit.kaggle.pack.bundle import Bundle, package_kernel
from cassava_kit.kaggle.pack.config import library_ranges, read_config
from cassava_kit.kaggle.pack.credentials import collect_secrets, redact
from cassava_kit.kaggle.pack.kernels import OWN_LIMIT_SECONDS, find_kernel, parse_changes
from cassava_kit.kaggle.pack.manifest import write_manifest
from cassava_kit.kaggle.rehearse.image import find_python, image_versions
from cassava_kit.kaggle.send.remote import Limits

REPOSITORY = Path(__file__).resolve().parents[2]


def status(bundle: Bundle, cause: str) -> str:
    """What the doctor says of one cause."""
    checks = doctor(REPOSITORY, bundle.home)
    return next(str(check.status) for check in checks if check.cause == cause)


REHEARSED = "not rehearsed, scoring error (rows, ids, dtype)"


def rehearsed(bundle: Bundle, **changes: Any) -> None:
    """Leave the report of a rehearsal of this build and notebook beside it."""
    folder = bundle.home / "rehearsal"
    report = {"ok": True, "verdict": "passed", "layout": "new", "memory": 2**30, "build_id": bundle.build_id}
    report |= {"kernel": bundle.kernel.name, "notebook": sha256_file(bundle.notebook)}
    write_json(folder / "rehearsal.json", report | changes)
    write_json(folder / "working" / "run.json", {"plan": {"reading_seconds_per_image": 0.01}})


class Asked:
    """A Kaggle that answers the doctor's questions as it is told to."""

    def __init__(self, **answers: Any) -> None:
        usual = {"owner": "me", "gpu_hours_left": 30.0, "dataset_status": "ready"}
        self.answers = usual | {"rules_accepted": True, "limits": Limits(2, 9, 5)} | answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_: self.answers[name]


def test_every_cause_has_its_line_and_a_good_bundle_passes(bundle: Bundle) -> None:
    rehearsed(bundle)
    checks = doctor(REPOSITORY, bundle.home)
    assert [check.cause for check in checks] == [cause for cause, _, _ in CHECKS]
    assert not [str(check) for check in checks if check.status == "failed"]
    unknown = {check.cause for check in checks if check.status == "unknown"}
    assert unknown == {"GPU quota and phone", "rules accepted", "submissions left today"}
    assert all("\n" not in str(check) for check in checks)
    checks = doctor(REPOSITORY, bundle.home, remote=Asked())  # type: ignore[arg-type]
    assert {check.status for check in checks} == {"passed"}, [str(check) for check in checks]


@pytest.mark.parametrize(
    ("cause", "answers", "said"),
    [
        ("GPU quota and phone", {"gpu_hours_left": 0.1}, "quota is used up.*phone"),
        ("rules accepted", {"rules_accepted": False}, "kaggle.com/competitions/cassava-leaf.*/rules"),
        ("submissions left today", {"limits": Limits(5, 9, 0)}, "used up; submit again after midnight"),
    ],
)
def test_what_kaggle_alone_knows_turns_red_when_it_is_asked(
    bundle: Bundle, cause: str, answers: dict[str, Any], said: str
) -> None:
    rehearsed(bundle)
    remote: Any = Asked(**answers)
    checks = [check for check in doctor(REPOSITORY, bundle.home, remote=remote) if check.status == "failed"]
    assert [check.cause for check in checks] == [cause] and re.search(said, checks[0].detail)
    pushed = doctor(REPOSITORY, bundle.home, remote=Asked(limits=Limits(5, 9, 0)), submits=False)  # type: ignore[arg-type]
    assert {check.status for check in pushed} == {"passed"}, "a push alone needs no submission"


def test_datasets_of_another_owner_or_that_kaggle_could_not_process_are_red(bundle: Bundle) -> None:
    rehearsed(bundle)
    for path in (*bundle.home.glob("*/dataset-metadata.json"), bundle.kernel_dir / "kernel-metadata.json"):
        path.write_text(path.read_text().replace("your-kaggle-name/", "me/"))
    assert {check.status for check in doctor(REPOSITORY, bundle.home, remote=Asked())} == {"passed"}  # type: ignore[arg-type]
    for answers, cause in (
        ({"owner": "somebody"}, "metadata slugs"),
        ({"dataset_status": "failed"}, "dataset stale or still processing"),
    ):
        remote: Any = Asked(**answers)
        failed = [check.cause for check in doctor(REPOSITORY, bundle.home, remote=remote) if check.status == "failed"]
        assert failed == [cause]


def test_a_kernel_that_trains_is_examined_by_what_can_end_it(pristine: Path, tmp_path: Path) -> None:
    kernel = find_kernel("train-folds")
    changes = parse_changes(["FOLDS=[0, 1]", "RECIPE=vit_base"], ["me/first-weights", "pretrain-ssl"])
    bundle = package_kernel(tmp_path, kernel, root=pristine, changes=changes)
    checks = {check.cause: check for check in doctor(REPOSITORY, tmp_path, kernel=kernel)}
    assert not [str(check) for check in checks.values() if check.status == "failed"]
    assert {"offline pip", "wrong GPU", "dataset stale or still processing", "GPU quota and phone"} <= checks.keys()
    assert not {"CSV not found", "RAM and shared memory", "submissions left today"} & checks.keys()
    assert checks[REHEARSED].status == "unknown"
    rehearsed(bundle, kernel="eda")
    checks = {check.cause: check for check in doctor(REPOSITORY, tmp_path, kernel=kernel)}
    assert checks[REHEARSED].status == "unknown", "the rehearsal of another notebook of this build"
    rehearsed(bundle)
    checks = {check.cause: check for check in doctor(REPOSITORY, tmp_path, kernel=kernel)}
    assert checks[REHEARSED].status == "passed"
    described = read_json(bundle.kernel_dir / "kernel-metadata.json")
    assert described["dataset_sources"][1:] == ["me/first-weights"]
    assert described["kernel_sources"][1:] == [described["id"].replace("train-folds", "pretrain-ssl")]
    text = bundle.notebook.read_text()
    assert "FOLDS = [0, 1]" in text and "RECIPE = 'vit_base'" in text
    assert "the run stops after 11.5 of 12 h" in checks["timeout"].detail
    _in_notebook(bundle, str(OWN_LIMIT_SECONDS), str(12 * 3600))
    _edit(bundle.kernel_dir / "kernel-metadata.json", dataset_sources=["me/first-weights"])
    checks = {check.cause: check for check in doctor(REPOSITORY, tmp_path, kernel=kernel)}
    assert (checks["timeout"].status, checks["metadata slugs"].status) == ("failed", "failed")


def test_a_kernels_parameters_are_checked(pristine: Path, tmp_path: Path) -> None:
    for parameters, attach, message in (
        (["FOLDS"], [], "--param takes NAME=VALUE"),
        ([], ["no-owner"], "--attach takes a dataset's owner/slug"),
        (["FOLD=1"], [], "no parameter FOLD; it has CLEAN, EXISTING, FOLDS, GPUS_PER_FOLD, GROUPS, N_SPLITS, RECIPE"),
    ):
        with pytest.raises(ValueError, match=message):
            changes = parse_changes(parameters, attach)
            package_kernel(tmp_path, find_kernel("train-folds"), root=pristine, changes=changes)
    with pytest.raises(ValueError, match=r"no kernel 'train'.*; kernels are ensemble-submission, train-folds"):
        find_kernel("train")
    with pytest.raises(ValueError, match="needs weights"):
        package_kernel(tmp_path, find_kernel("ensemble-submission"), root=pristine)
    assert not list(tmp_path.glob("kernel-*"))


def test_what_was_not_rehearsed_is_not_called_good(bundle: Bundle) -> None:
    causes = (REHEARSED, "RAM and shared memory", "slow decode on few cores")
    assert [status(bundle, cause) for cause in causes] == ["unknown"] * 3
    rehearsed(bundle, build_id="of another build")
    assert [status(bundle, cause) for cause in causes] == ["unknown"] * 3
    rehearsed(bundle)
    assert [status(bundle, cause) for cause in causes] == ["passed"] * 3


def _edit(path: Path, **changes: Any) -> None:
    write_json(path, read_json(path) | changes)


def _in_notebook(bundle: Bundle, old: str, new: str) -> None:
    text = bundle.notebook.read_text()
    assert old in text
    bundle.notebook.write_text(text.replace(old, new))


def _metadata(bundle: Bundle, **changes: Any) -> None:
    _edit(bundle.kernel_dir / "kernel-metadata.json", **changes)


def _packed_without(bundle: Bundle, name: str) -> None:
    """A bundle that is whole by its manifest, but whose manifest never had one of the ensemble's files."""
    (bundle.weights_dir / name).unlink()
    build = write_manifest(bundle.weights_dir, "weights", {"kit_version": "0"})["build_id"]
    _in_notebook(bundle, json.loads(_pinned(bundle))["WEIGHTS_MANIFEST.json"], build)


def _pinned(bundle: Bundle) -> str:
    found = re.search(r"\\\"builds\\\": (\{.*?\})", bundle.notebook.read_text())
    assert found
    return found[1].replace("'", '"')


PATHS = (
    "'/kaggle/input/cassava'",
    "'../input/cassava'",
    "Path('/kaggle/input') / 'cassava'",
    "join('../input', 'cassava')",
)


@pytest.mark.parametrize(
    ("cause", "spoil"),
    [
        ("offline pip", lambda b: _metadata(b, enable_internet=True)),
        ("offline pip", lambda b: _metadata(b, enable_internet="false")),
        ("offline pip", lambda b: _in_notebook(b, "'ttach'", "'no-such-wheel'")),
        ("offline pip", lambda b: _in_notebook(b, '\\"bootstrap\\": \'', '\\"bootstrap\\": \'0')),
        ("weights downloaded at build", lambda b: _packed_without(b, "vit_a-fold0.safetensors")),
        ("wrong GPU", lambda b: _metadata(b, machine_shape="NvidiaTeslaP100")),
        ("wrong GPU", lambda b: _metadata(b, enable_gpu="false")),
        ("wrong GPU", lambda b: _metadata(b, enable_gpu=False)),
        (REHEARSED, lambda b: rehearsed(b, ok=False)),
        (REHEARSED, lambda b: _in_notebook(b, "holds the most frequent class", "holds a guess")),
        ("timeout", lambda b: _in_notebook(b, "30600", "32400")),
        ("CSV not found", lambda b: _in_notebook(b, "PART.replace(SUBMISSION)", "pass")),
        *(
            ("mount path changed", lambda b, p=path: _in_notebook(b, "STARTED = time.time()", f"X = {p}"))
            for path in PATHS
        ),
        ("dataset stale or still processing", lambda b: _in_notebook(b, "'WEIGHTS_MANIFEST.json': '", "'x': '")),
        ("notebook: right file, private, below 1 MB", lambda b: _metadata(b, is_private=False)),
        ("notebook: right file, private, below 1 MB", lambda b: _metadata(b, is_private="true")),
        ("notebook: right file, private, below 1 MB", lambda b: _metadata(b, is_private=None)),
        ("notebook: right file, private, below 1 MB", lambda b: _metadata(b, code_file="other.ipynb")),
        ("notebook: right file, private, below 1 MB", lambda b: _metadata(b, kernel_type="script")),
        (
            "notebook: right file, private, below 1 MB",
            lambda b: _in_notebook(b, "STARTED = time.time()", f"X = '{'x' * 10**6}'"),
        ),
        ("competition attached", lambda b: _metadata(b, competition_sources=[])),
        ("competition attached", lambda b: _metadata(b, competition_sources=["titanic"])),
        ("competition attached", lambda b: _metadata(b, competition_sources=[CASSAVA.slug, "titanic"])),
        ("metadata slugs", lambda b: _metadata(b, title="Another title")),
        ("metadata slugs", lambda b: _metadata(b, dataset_sources=["me/other"])),
        ("licence", lambda b: _edit(b.kit_dir / "dataset-metadata.json", licenses=[{"name": "MIT"}])),
        ("licence", lambda b: _edit(b.weights_dir / "dataset-metadata.json", licenses=[])),
        ("RAM and shared memory", lambda b: rehearsed(b, memory=28 * 2**30)),
    ],
)
def test_every_cause_can_fail(bundle: Bundle, cause: str, spoil: Callable[[Bundle], Any]) -> None:
    rehearsed(bundle)
    assert status(bundle, cause) == "passed"
    spoil(bundle)
    assert status(bundle, cause) == "failed"


def test_a_slug_that_is_too_long_is_told_by_its_length(bundle: Bundle) -> None:
    """A bundle of an earlier version, which took slugs of 31 to 42 characters."""
    slug = "a-dataset-with-a-name-of-35-letters"
    title = f"{slug}-ensemble-submission"
    _metadata(bundle, id=f"me/{title}", title=title.replace("-", " ").title())
    found = next(check for check in doctor(REPOSITORY, bundle.home) if check.cause == "metadata slugs")
    assert found.status == "failed" and "has 55 characters, Kaggle takes 5 to 50" in found.detail
    assert "slug of at most 30" in found.detail


def test_a_metadata_file_without_a_field_is_one_line(bundle: Bundle) -> None:
    write_json(bundle.kernel_dir / "kernel-metadata.json", {"id": "me/x"})
    failed = {check.cause: check.detail for check in doctor(REPOSITORY, bundle.home) if check.status == "failed"}
    assert "lacks a field ('title')" in failed["metadata slugs"]


def test_slow_reading_is_found(bundle: Bundle) -> None:
    rehearsed(bundle)
    _edit(bundle.home / "rehearsal" / "working" / "run.json", plan={"reading_seconds_per_image": 1.5})
    assert status(bundle, "slow decode on few cores") == "failed"


def test_drift_of_the_image_is_found(bundle: Bundle, root: Path) -> None:
    path = root / "kernels" / "image-3.13.txt"
    path.write_text(path.read_text().replace("albumentations==2.0.8", "albumentations==3.0.0"))
    found = {check.cause: check for check in doctor(root, bundle.home)}["library drift"]
    assert found.status == "failed" and "albumentations 3.0.0" in found.detail


def test_a_missing_bundle_fails_with_its_reason(tmp_path: Path) -> None:
    checks = doctor(REPOSITORY, tmp_path)
    assert [(check.cause, check.status) for check in checks] == [("bundle", "failed")]
    assert "KIT_MANIFEST.json" in checks[0].detail


def test_a_damaged_bundle_is_one_line(bundle: Bundle) -> None:
    (bundle.kit_dir / "wheels").mkdir()
    (bundle.weights_dir / "vit_a-fold0.safetensors").write_bytes(b"cut off")
    checks = doctor(REPOSITORY, bundle.home)
    assert [(check.cause, check.status) for check in checks] == [("bundle", "failed")]
    assert "wheels is not in the manifest" in checks[0].detail and "vit_a-fold0.safetensors" in checks[0].detail


def test_the_images_versions_are_within_what_the_kit_asks_for() -> None:
    from packaging.requirements import Requirement

    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    asked = {one.name: one.specifier for one in map(Requirement, declared)}
    for image, versions in image_versions(REPOSITORY).items():
        outside = [name for name, version in versions.items() if name in asked and version not in asked[name]]
        assert not outside, f"image-{image}.txt: {outside}"
    assert library_ranges(REPOSITORY).keys() >= {"torch", "timm", "albumentations"}


def test_only_the_images_pythons_can_be_asked_for() -> None:
    with pytest.raises(ValueError, match=r"have Python 3\.13 or 3\.12, got 3\.11"):
        find_python("3.11")
    for version in ("3.13", "3.12"):
        try:
            assert find_python(version)[0] == version
        except FileNotFoundError as error:
            assert version in str(error)


def test_a_python_of_the_image_is_found_or_named() -> None:
    try:
        version, python = find_python()
    except FileNotFoundError as error:
        assert "3.13 or 3.12" in str(error)
        return
    said = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"Python {version}.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "me/UPPER"}, "id must be owner/slug"),
        ({"id": "me"}, "id must be owner/slug"),
        ({"id": "me/abc"}, "6 to 30 characters"),
        ({"id": f"me/{'a' * 31}"}, "6 to 30 characters, because Kaggle takes 50 for a kernel's title.*has 31"),
        ({"licenses": [{"name": "MIT"}]}, "does not list the licence 'MIT'"),
        ({"title": "Kit"}, "title must have 6 to 42"),
        ({"licenses": []}, "exactly one"),
    ],
)
def test_metadata_that_kaggle_would_refuse(root: Path, change: dict[str, Any], message: str) -> None:
    assert read_config(root).kit_dataset == "your-kaggle-name/cassava-kit"
    _edit(root / "dataset-metadata.json", **change)
    with pytest.raises(ValueError, match=message):
        read_config(root)


def test_secrets_are_known_from_everywhere_and_taken_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".kaggle").mkdir()
    (tmp_path / ".kaggle" / "kaggle.json").write_text(json.dumps({"username": "me", "key": "PLANTED-IN-HOME"}))
    (tmp_path / ".kaggle" / "access_token").write_text("PLANTED-TOKEN\n")
    credentials = {"refresh_token": "PLANTED-REFRESH", "access_token": "PLANTED-ACCESS"}
    (tmp_path / ".kaggle" / "credentials.json").write_text(json.dumps(credentials))
    (tmp_path / "token-file").write_text("PLANTED-FILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = collect_secrets(
        environment={"KAGGLE_KEY": "PLANTED-KEY", "KAGGLE_API_TOKEN": str(tmp_path / "token-file"), "PATH": "/usr/bin"}
    )
    planted = {"IN-HOME", "TOKEN", "REFRESH", "ACCESS", "FILE", "KEY"}
    assert {f"PLANTED-{name}" for name in planted} <= found
    assert "/usr/bin" not in found
    assert redact("key=PLANTED-KEY.", found) == "key=***."


@pytest.mark.parametrize(
    "name",
    [
        "MY_PAT",
        "PAT",
        "GH_PAT_2",
        "KEY",
        "MY_KEY",
        "SSH_PASS",
        "DB_PW",
        "DB_PWD_1",
        "PASSWORD",
        "HF_TOKEN",
        "WANDB_API_KEY",
    ],
)
def test_variables_are_secret_by_a_part_of_their_name(name: str) -> None:
    assert collect_secrets(environment={name: "PLANTED-VALUE"}) >= {"PLANTED-VALUE"}


def test_other_variables_are_no_secrets() -> None:
    names = ("PATH", "PWD", "KEYBOARD", "COMPAT", "PATTERN", "MONKEY", "PASSENGER", "LD_LIBRARY_PATH")
    assert "harmless value" not in collect_secrets(environment=dict.fromkeys(names, "harmless value"))


def test_importing_the_kit_does_not_sign_in(tmp_path: Path) -> None:
    """`import kaggle` makes a folder in the user's home and may call Kaggle."""
    names = ("send.push", "doctor", "rehearse.rehearsal", "send.client", "pack.bundle")
    modules = ", ".join(f"cassava_kit.kaggle.{name}" for name in names)
    code = f"import sys, {modules}; print('kaggle' in sys.modules)"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "False" and not list(tmp_path.iterdir())
