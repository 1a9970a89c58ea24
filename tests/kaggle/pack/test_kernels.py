from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
import pandas as pd
import pytest
import torch
from forked_python import interpreter

from cassava_kit.cli.kaggle import rehearse_kernel
from cassava_kit.competition import CASSAVA
from cassava_kit.kaggle.doctor import CHECKS, doctor
from cassava_kit.kaggle.pack.config import read_config
from cassava_kit.kaggle.pack.kernels import (
    KERNELS,
    Kernel,
    build_kernels,
    find_kernel,
    notebook_settings,
    parse_changes,
    render,
)
from cassava_kit.kaggle.pack.wheels import build_kit_wheel, rebuild_wheel
from cassava_kit.kaggle.rehearse.layout import Mount, as_uploaded, competition_mounts, dataset_mounts
from cassava_kit.kaggle.rehearse.options import NotebookRun, RehearsalOptions
from cassava_kit.kaggle.rehearse.runner import run_notebook
from cassava_kit.training.recipes import recipe, run_name

REPOSITORY = Path(__file__).resolve().parents[3]
WRONG = "RECIPE, FOLDS, N_SPLITS = 'no_such_recipe', [0], 2"
PRETRAIN = "METHOD = 'small_simclr'\nSET = ['epochs=1', 'warmup_epochs=0', 'batch_size=16']"


def test_the_repositorys_notebooks_are_fresh() -> None:
    assert build_kernels(REPOSITORY, check=True) == []


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_every_notebook_is_valid_and_can_be_pushed(kernel) -> None:  # type: ignore[no-untyped-def]
    folder = REPOSITORY / "kernels" / kernel.name
    notebook = nbformat.read(folder / f"{kernel.name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert (folder / f"{kernel.name}.ipynb").stat().st_size < 1_000_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, cell.id, "exec")
            assert not re.search(r"^# (include|ruff):", cell.source, re.MULTILINE)
    metadata = json.loads((folder / "kernel-metadata.json").read_text())
    assert metadata["enable_internet"] is False and metadata["is_private"] is True
    assert metadata.get("machine_shape") == ("NvidiaTeslaT4" if metadata["enable_gpu"] else None)
    assert metadata["competition_sources"] == ["cassava-leaf-disease-classification"]
    assert (folder / metadata["code_file"]).is_file()
    title = metadata["title"]
    assert 5 <= len(title) <= 50
    assert metadata["id"].partition("/")[2] == title.lower().replace(" ", "-")


def _run(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    """The verb of the copy of the kit in `root`."""
    command = [interpreter(), "-m", "cassava_kit", "kernels", *arguments]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)


def test_check_fails_on_drift_and_writes_nothing(root: Path) -> None:
    notebook = root / "kernels" / "ensemble-submission" / "ensemble-submission.ipynb"
    assert _run("--check", root=root).returncode == 0
    with (root / "kernels" / "bootstrap.py").open("a") as file:
        file.write("print('changed')\n")
    before = notebook.read_bytes()
    done = _run("--check", root=root)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "ensemble-submission.ipynb" in done.stderr
    assert notebook.read_bytes() == before
    assert _run(root=root).returncode == 0
    assert notebook.read_bytes() != before
    assert _run("--check", root=root).returncode == 0


def test_the_owner_reaches_every_generated_file(root: Path) -> None:
    path = root / "dataset-metadata.json"
    path.write_text(path.read_text().replace("your-kaggle-name", "someone"))
    build_kernels(root)
    for kernel in KERNELS:
        text = (root / "kernels" / kernel.name / "kernel-metadata.json").read_text()
        assert "your-kaggle-name" not in text and '"someone/cassava-kit' in text


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
def test_a_gpu_that_does_not_compute_stops_training_alone(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a scored notebook raises scores nothing, and the submission finds what computes by itself."""
    tree = ast.parse((REPOSITORY / "kernels" / "bootstrap.py").read_text())
    tree.body = [part for part in tree.body if isinstance(part, ast.FunctionDef) and part.name == "check_gpus"]
    cell: dict[str, Any] = {"SETTINGS": notebook_settings(kernel, CASSAVA, {})}
    exec(compile(tree, "bootstrap", "exec"), cell)

    def ones(*_: int, **__: object) -> None:
        raise RuntimeError("no kernel image is available")

    for name, value in {"is_available": True, "device_count": 1, "get_device_name": "Old GPU"}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch, "ones", ones)
    if kernel.name in ("train-folds", "pretrain-ssl", "gpu-check"):
        with pytest.raises(RuntimeError, match=r"cannot use Old GPU .*no kernel image"):
            cell["check_gpus"]()
    else:
        cell["check_gpus"]()
        assert "WARNING: this torch cannot use Old GPU" in capsys.readouterr().out


def test_wheels_are_unpacked_to_the_files_that_pip_installs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = [build_kit_wheel(root, tmp_path), rebuild_wheel("ttach", tmp_path), rebuild_wheel("rich", tmp_path)]
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "the/users")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tree = ast.parse((REPOSITORY / "kernels" / "bootstrap.py").read_text())
    tree.body = [each for each in tree.body if not isinstance(each, ast.Assign | ast.If | ast.Expr)]
    cell: dict[str, Any] = {}
    exec(compile(tree, "bootstrap", "exec"), cell)
    (place,) = cell["install"](wheels)
    assert sys.path[0] == place and os.environ["PYTHONPATH"] == os.pathsep.join([place, "the/users"])
    pip = [sys.executable, "-m", "pip", "install", "--isolated", "--no-index", "--no-deps", "--no-compile", "--quiet"]
    subprocess.run([*pip, "--target", tmp_path / "pip", *wheels], check=True, capture_output=True)

    def contents(folder: Path) -> dict[str, bytes]:
        """Files but the scripts, and what pip notes of itself; RECORD lists them."""
        files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "bin"]
        own = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name not in own}

    assert contents(Path(place)) == contents(tmp_path / "pip")
    assert {each.name for each in metadata.distributions(path=[place])} == {"cassava-kit", "ttach", "rich"}


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample competition."""
    from cassava_kit.data.sample.make import make_sample

    return make_sample(tmp_path_factory.mktemp("sample") / "competition", n_train=80, n_test=4)


def execute_kernel(
    name: str,
    parameters: str,
    packed: Path,
    competition: Path,
    out: Path,
    *,
    earlier: tuple[str, Path] | None = None,
    before: tuple[str, str] = ("", ""),
) -> tuple[dict[str, Any], Path]:
    """Run a generated notebook with other parameters in its first code cell; its result and its output folder.

    `earlier`: a kernel's name and its output, which is attached. `before`: how a cell begins, and what runs before it.
    """
    kernel = next(each for each in KERNELS if each.name == name)
    notebook = nbformat.reads(render(kernel, REPOSITORY)[f"{name}.ipynb"], as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source += f"\n{parameters}"
    if before[0]:
        later = next(cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith(before[0]))
        later.source = f"{before[1]}\n{later.source}"
    out.mkdir(parents=True)
    path = out / f"{name}.ipynb"
    nbformat.write(notebook, path)
    config = read_config(REPOSITORY)
    with tempfile.TemporaryDirectory(prefix="kit-") as scratch:
        kit = as_uploaded(packed / "kit", Path(scratch) / "kit")
        mounts = competition_mounts(competition, "new") + dataset_mounts(kit, config.kit_dataset, "new")
        if earlier is not None:
            kernel_id = config.kernel_id(earlier[0])
            mounts.append(Mount(earlier[1], PurePosixPath("notebooks", *kernel_id.split("/"))))
        options = RehearsalOptions(minutes=30, python=interpreter())
        stage = NotebookRun(path, mounts, out / "result", "new", options)
        stage.working.mkdir(parents=True)
        result, isolation = run_notebook(stage, Path(scratch))
    assert isolation.network or isolation.name == "sockets"
    return result, stage.working


def named(*settings: str) -> str:
    """The run's name of the small ResNet with some settings."""
    return run_name(recipe("small_resnet").with_settings(settings))


def count_pictures(executed: Path) -> int:
    """Pictures that an executed notebook shows."""
    cells = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.outputs]
    return "".join(shown).count("data:image/")


TRAIN = "RECIPE, FOLDS, N_SPLITS = 'small_resnet', [0], 2\nSET = ['epochs=1', 'image_size=32']"


@pytest.fixture(scope="module")
def trained(packed: Path, competition: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What train-folds with TRAIN says and leaves, run once; its folder is not to be changed."""
    return execute_kernel("train-folds", TRAIN, packed, competition, tmp_path_factory.mktemp("trained") / "one")


@pytest.mark.slow
def test_train_folds_trains_and_goes_on_from_its_own_output(
    trained: tuple[dict[str, Any], Path], packed: Path, competition: Path, tmp_path: Path
) -> None:
    name = named("epochs=1", "image_size=32")
    result, output = trained
    assert result["error"] == "", result
    assert "--workers 2" in result["log"], "Kaggle's cores read the pictures ahead of the GPUs"
    assert count_pictures(output.parent / "train-folds.ipynb") == 6, "two of curves, matrix, recall, two of mistakes"
    assert " is left out: " not in result["log"], result
    checkpoint = output / "runs" / name / "fold0" / "best.safetensors"
    first = checkpoint.read_bytes()
    assert (checkpoint.parent / "oof.csv").is_file()
    parameters = TRAIN.replace("[0]", "[0, 1]")
    result, later = execute_kernel(
        "train-folds", parameters, packed, competition, tmp_path / "two", earlier=("train-folds", output)
    )
    assert result["error"] == "" and result["log"].count("went on from") == 2, result
    assert "cassava-kit folds" not in result["log"], "the split of the first session holds"
    assert (later / "runs" / name / "fold0" / "best.safetensors").read_bytes() == first
    assert (later / "runs" / name / "fold1" / "best.safetensors").is_file()
    assert len((later / "runs" / name / "oof.csv").read_text().splitlines()) == 81
    second = (later / "runs" / name / "fold1" / "best.safetensors").read_bytes()
    parameters = parameters.replace("[0, 1]", "[0]").replace("epochs=1", "epochs=1', 'seed=7")
    result, changed = execute_kernel(
        "train-folds", parameters, packed, competition, tmp_path / "three", earlier=("train-folds", later)
    )
    assert result["error"] == "" and "not joined: not all 2 folds" in result["log"], result
    assert (changed / "runs" / named("epochs=1", "seed=7", "image_size=32") / "fold0" / "oof.csv").is_file()
    assert (changed / "runs" / name / "fold0" / "best.safetensors").read_bytes() == first, "a run beside it"
    assert (changed / "runs" / name / "fold1" / "best.safetensors").read_bytes() == second


@pytest.mark.slow
def test_train_folds_keeps_a_fold_of_other_code_only_when_it_is_told_to(
    trained: tuple[dict[str, Any], Path], packed: Path, competition: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(trained[1], tmp_path / "one"))
    fold = output / "runs" / named("epochs=1", "image_size=32") / "fold0"
    done = json.loads((fold / "run.json").read_text())
    done["fingerprint"]["code"] = "of another version"
    (fold / "run.json").write_text(json.dumps(done))
    earlier = ("train-folds", output)
    result, _ = execute_kernel("train-folds", TRAIN, packed, competition, tmp_path / "two", earlier=earlier)
    assert "no fold ended" in result["error"] and "another version of the code" in result["log"]
    keep = f"{TRAIN}\nEXISTING = 'keep'"
    result, kept = execute_kernel("train-folds", keep, packed, competition, tmp_path / "three", earlier=earlier)
    assert result["error"] == "", result
    assert (kept / fold.relative_to(output) / "best.safetensors").read_bytes() == (
        fold / "best.safetensors"
    ).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("train-folds", ["RECIPE=small_resnet", "FOLDS=[1, 0]", "N_SPLITS=4"]),
        ("pretrain-ssl", ["METHOD=small_simclr"]),
        ("eda", []),
        ("gpu-check", ["MINUTES=4.0"]),
    ],
)
def test_a_kernel_is_rehearsed_at_home_in_both_layouts(
    name: str, parameters: list[str], competition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel, changes = find_kernel(name), parse_changes(parameters, [])
    out, options = tmp_path / "kernels", RehearsalOptions(minutes=30, python=interpreter())
    assert rehearse_kernel(kernel, out, competition, options, changes=changes) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "new layout" in said and "old layout" in said and "all 2 rehearsals passed" in said
    assert f"next: python submit.py push --kernel {name}" in said
    checks = {check.cause: check for check in doctor(REPOSITORY, out, kernel=kernel)}
    assert "2 rehearsals of this notebook" in checks[CHECKS[3][0]].detail
    if name == "train-folds":
        oof = next((out / "rehearsal-train-folds-old" / "working").glob("runs/*/fold1/oof.csv"))
        assert len(oof.read_text().splitlines()) <= 16, "half of at most six images of every class"
        assert "fold 0" not in (out / "rehearsal-train-folds-old" / "log.txt").read_text()


@pytest.mark.slow
def test_a_kernel_that_fails_at_home_says_so(
    competition: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings that each are right and that the network does not take."""
    monkeypatch.setattr("cassava_kit.cli.kaggle.check_parameters", lambda *_: None)
    changes = parse_changes(["RECIPE=small_resnet", "FOLDS=[0]", "SET=['model_args={\"layers\":[1]}']"], [])
    kernel, options = find_kernel("train-folds"), RehearsalOptions(minutes=30, python=interpreter())
    assert rehearse_kernel(kernel, tmp_path / "k", competition, options, changes=changes) == 1
    said = capsys.readouterr().out
    assert "rehearsal FAILED (new layout" in said and "no fold ended" in said and "next:" not in said


@pytest.mark.slow
def test_train_folds_joins_a_run_of_another_name_in_fewer_folds(
    packed: Path, competition: Path, tmp_path: Path
) -> None:
    """The run's folder is named by the settings, and a fold left of a larger split does not count."""
    old = tmp_path / "earlier" / "runs" / "mine" / "fold2"
    old.mkdir(parents=True)
    (old / "oof.csv").write_text("image_id,p0\n")
    parameters = "RECIPE, FOLDS, N_SPLITS = 'timm:test_resnet', [0, 1], 2"
    parameters += "\nSET = ['name=mine', 'epochs=1', 'image_size=32']"
    result, output = execute_kernel(
        "train-folds", parameters, packed, competition, tmp_path / "one", earlier=("train-folds", old.parents[2])
    )
    assert result["error"] == "", result
    assert len((output / "runs" / "mine" / "oof.csv").read_text().splitlines()) == 81


@pytest.mark.slow
def test_train_folds_can_give_a_fold_two_processes(packed: Path, competition: Path, tmp_path: Path) -> None:
    """Both T4s on one fold: the same option starts two processes where there is no GPU, without a network."""
    parameters = (
        "RECIPE, FOLDS, N_SPLITS, GPUS_PER_FOLD = 'small_resnet', [1], 2, 2\nSET = ['epochs=1', 'image_size=32']"
    )
    result, output = execute_kernel("train-folds", parameters, packed, competition, tmp_path / "one")
    assert result["error"] == "", result
    assert "--fold 1" in result["log"] and "--devices 2 --strategy ddp" in result["log"]
    run = output / "runs" / named("epochs=1", "image_size=32") / "fold1"
    assert (run / "best.safetensors").is_file() and len((run / "oof.csv").read_text().splitlines()) == 41


@pytest.mark.slow
def test_train_folds_stops_itself_before_kaggle_does(packed: Path, competition: Path, tmp_path: Path) -> None:
    """What the session's time ends is named, and its processes are gone."""
    parameters = "RECIPE, FOLDS, N_SPLITS = 'small_resnet', [0], 2\nSET = ['epochs=100000']"
    parameters += "\nimport os\nos.environ['CASSAVA_KIT_TIME_LIMIT'] = '1234'"
    # Most of the session is over when the training begins, however long it took to come there.
    late = "from dataclasses import replace\nassert (SESSION.started, SESSION.seconds) == (STARTED, 1234.0)"
    late += "\nSESSION = replace(SESSION, seconds=time.time() - STARTED + 4)"
    result, _ = execute_kernel(
        "train-folds", parameters, packed, competition, tmp_path / "one", before=("import torch\n", late)
    )
    assert "no fold ended" in result["error"]
    assert "attach this notebook's output to itself and run again to go on" in result["log"]


@pytest.mark.slow
def test_train_folds_refuses_a_slip_before_anything_is_made(packed: Path, competition: Path, tmp_path: Path) -> None:
    result, output = execute_kernel("train-folds", WRONG, packed, competition, tmp_path / "one")
    assert "no recipe 'no_such_recipe'" in result["error"] and not (output / "folds").exists()


@pytest.mark.slow
def test_train_folds_says_when_nothing_was_trained(packed: Path, competition: Path, tmp_path: Path) -> None:
    parameters = "RECIPE, FOLDS, N_SPLITS = 'small_resnet', [7], 2"
    result, _ = execute_kernel("train-folds", parameters, packed, competition, tmp_path / "one")
    assert "no fold ended" in result["error"] and "fold must be in 0..1, got 7" in result["log"]


@pytest.mark.slow
def test_pretrain_ssl_exports_a_backbone_that_train_folds_starts_from(
    packed: Path, competition: Path, tmp_path: Path
) -> None:
    result, output = execute_kernel("pretrain-ssl", PRETRAIN, packed, competition, tmp_path / "one")
    assert result["error"] == "" and "left out" not in result["log"], result
    assert count_pictures(output.parent / "pretrain-ssl.ipynb") >= 6
    assert (output / "pretrain-small_simclr" / "backbone.safetensors").is_file()
    doubtful = pd.read_csv(competition / "train.csv").assign(suggested_label=0, label_quality=0.9, keep=True)
    doubtful.loc[doubtful.index[:9], "keep"] = False
    doubtful.to_csv(output / "clean.csv", index=False)
    parameters = "RECIPE, FOLDS, N_SPLITS, WEIGHTS = 'small_ssl_resnet', [0], 2, 'backbone.safetensors'"
    parameters += "\nCLEAN = 'clean.csv'"
    parameters += "\nSET = ['epochs=1', 'image_size=32']"
    result, trained = execute_kernel(
        "train-folds", parameters, packed, competition, tmp_path / "two", earlier=("pretrain-ssl", output)
    )
    done = next((trained / "runs").glob("small_ssl_resnet*/fold0/run.json"))
    given = json.loads(done.read_text())["given"]
    assert given["clean"] and given["weights"], given
    assert result["error"] == "" and "backbone.safetensors: " in result["log"], result


@pytest.mark.slow
def test_eda_shows_the_data(packed: Path, competition: Path, tmp_path: Path) -> None:
    result, output = execute_kernel("eda", "N_DUPLICATES = 40", packed, competition, tmp_path / "one")
    assert result["error"] == "", result
    assert (output / "classes.png").stat().st_size > 10_000
    assert "near-duplicates" in result["log"] and "left out" not in result["log"]
    assert count_pictures(output.parent / "eda.ipynb") >= 8
