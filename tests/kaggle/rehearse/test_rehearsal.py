"""The generated notebook, executed from a packed bundle; its first cells' failures are tried one by one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked_python import interpreter

from cassava_kit.cli.kaggle import rehearse_bundle
from cassava_kit.competition import CASSAVA
from cassava_kit.errors import Stopped, UserError
from cassava_kit.files import read_json
from cassava_kit.inference.ensemble import Ensemble
from cassava_kit.inference.report import read_run
from cassava_kit.kaggle.pack.bundle import Bundle, package
from cassava_kit.kaggle.pack.kernels import find_kernel
from cassava_kit.kaggle.rehearse import image, rehearsal
from cassava_kit.kaggle.rehearse.isolation import (
    ISOLATIONS,
    Isolation,
    find_isolations,
    private_environment,
    write_start,
)
from cassava_kit.kaggle.rehearse.options import Mount, NotebookRun, RehearsalOptions
from cassava_kit.kaggle.rehearse.rehearsal import rehearse
from cassava_kit.kaggle.rehearse.runner import run_notebook

REPOSITORY = Path(__file__).resolve().parents[3]
IMAGES = ("10.jpg", "9.jpg", "image,1.jpg")


@pytest.fixture
def competition(tmp_path: Path) -> Path:
    """A competition with three test images, and one row in the sample submission."""
    import cv2
    import numpy as np

    folder = tmp_path / "competition"
    (folder / "test_images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in IMAGES:
        cv2.imwrite(str(folder / "test_images" / name), generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    for name in (".hidden.jpg", "notes.txt", "10.jpg.part"):
        (folder / "test_images" / name).write_text("not an image of the test set")
    (folder / "sample_submission.csv").write_text("image_id,label\n10.jpg,4\n")
    (folder / "train.csv").write_text("image_id,label\n")
    return folder


def quickly(**options: Any) -> RehearsalOptions:
    """Options of a rehearsal whose notebook, and what it starts, is forked; what is tested is what it does."""
    return RehearsalOptions(python=interpreter(), **options)


def cell(bundle: Bundle, start: str) -> str:
    """The notebook's cell that begins with `start`."""
    cells = ["".join(each["source"]) for each in read_json(bundle.notebook)["cells"]]
    return next(source for source in cells if source.startswith(start))


def bootstrap(bundle: Bundle) -> str:
    """The folded cell, and the functions of the file of the kit's dataset that runs before the kit is there."""
    functions = (bundle.kit_dir / "bootstrap.py").read_text().partition("KIT_FOLDER, KIT =")[0]
    return cell(bundle, "SETTINGS") + "\n" + functions


def edit_bootstrap(bundle: Bundle, old: str, new: str) -> None:
    """Let the notebook change its bootstrap file just before it runs it, once its hash was found right."""
    notebook = read_json(bundle.notebook)
    for each in notebook["cells"]:
        changed = f"exec(compile(BOOTSTRAP.replace({old.encode()!r}, {new.encode()!r})"
        each["source"] = "".join(each["source"]).replace("exec(compile(BOOTSTRAP", changed)
    text = json.dumps(notebook)
    assert "BOOTSTRAP.replace(" in text
    bundle.notebook.write_text(text)


def add_cell(bundle: Bundle, source: str) -> None:
    """Let the notebook end with one more cell."""
    notebook = read_json(bundle.notebook)
    notebook["cells"].append(
        {"cell_type": "code", "execution_count": None, "id": "added", "metadata": {}, "outputs": [], "source": source}
    )
    bundle.notebook.write_text(json.dumps(notebook))


def without_models(bundle: Bundle) -> None:
    """Leave out what needs torch: the cells that check the GPU, predict, and check the result."""
    edit_bootstrap(bundle, "\ncheck_gpus()", "")
    notebook = read_json(bundle.notebook)
    kept = [each for each in notebook["cells"] if not "".join(each["source"]).startswith(("from cassava_kit", "try:"))]
    bundle.notebook.write_text(json.dumps(notebook | {"cells": kept}))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["new", "old"])
def test_the_notebook_makes_a_checked_submission(
    bundle: Bundle, competition: Path, tmp_path: Path, layout: Any
) -> None:
    steps: list[tuple[int, int]] = []
    setting = RehearsalOptions(cpus=1, memory=8, minutes=5, progress=lambda done, cells: steps.append((done, cells)))
    rehearsal = rehearse(bundle, competition, tmp_path / "out", layout=layout, options=setting)
    assert rehearsal.ok, rehearsal.verdict + rehearsal.log
    rows = rehearsal.submission.read_text().splitlines()
    assert rows[0] == "image_id,label" and len(rows) == 4
    assert steps[-1][0] == steps[-1][1] > 3
    wrong, used = read_run(tmp_path / "out" / "working")
    assert wrong == [] and "vit_a" in used and "vit_b" in used
    assert f"{layout} layout" in rehearsal.verdict and "no network" in rehearsal.verdict
    assert (tmp_path / "out" / "ensemble-submission.ipynb").is_file()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_out_and_the_rest_still_submits(
    bundle: Bundle, competition: Path, tmp_path: Path
) -> None:
    path = bundle.weights_dir / "vit_a-fold0.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    rehearsal = rehearse(bundle, competition, tmp_path / "out", options=quickly())
    assert not rehearsal.ok
    assert "vit_a-fold0.safetensors was left out" in rehearsal.verdict
    assert len(rehearsal.submission.read_text().splitlines()) == 4
    assert "vit_b" in read_run(tmp_path / "out" / "working")[1]


def _failing(bundle: Bundle, competition: Path, tmp_path: Path) -> str:
    """The verdict of a rehearsal that must fail, and must leave a valid file all the same."""
    rehearsal = rehearse(bundle, competition, tmp_path / "out", options=quickly())
    assert not rehearsal.ok
    rows = rehearsal.submission.read_text().splitlines()
    assert rows == ["image_id,label", "10.jpg,3", "9.jpg,3", '"image,1.jpg",3']
    return rehearsal.verdict


def test_one_changed_byte_in_the_kit_stops_the_notebook(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    wheel = next(bundle.kit_dir.glob("cassava_kit*.whl"))
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    wheel.write_bytes(content)
    verdict = _failing(bundle, competition, tmp_path)
    assert "is damaged" in verdict and wheel.name in verdict and "content differs" in verdict


def _spoil_bootstrap(bundle: Bundle) -> None:
    path = bundle.kit_dir / "bootstrap.py"
    path.write_bytes(path.read_bytes() + b"raise SystemExit\n")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_bootstrap, "bootstrap.py is stale, damaged or missing"),
        (lambda bundle: (bundle.kit_dir / "bootstrap.py").unlink(), "bootstrap.py is stale, damaged or missing"),
        (lambda bundle: (bundle.kit_dir / "KIT_MANIFEST.json").unlink(), "expected one dataset with KIT_MANIFEST.json"),
    ],
)
def test_the_first_file_needs_nothing_of_the_kits_dataset(
    bundle: Bundle, competition: Path, tmp_path: Path, spoil: Callable[[Bundle], object], message: str
) -> None:
    """Never zero: the valid file is there before the file of the dataset is looked at that installs the kit."""
    spoil(bundle)
    assert message in _failing(bundle, competition, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ("    time.sleep(1000)\n", "drawing took longer than its time"),
        ("    os._exit(1)\n", "exit code 1"),
    ],
)
def test_pictures_that_hang_or_die_cost_the_submission_nothing(
    ensemble: Ensemble,
    checkpoints: dict[str, Path],
    root: Path,
    competition: Path,
    tmp_path: Path,
    spoilt: str,
    said: str,
) -> None:
    path = root / "cassava_kit" / "report" / "notebook" / "submission_pictures.py"
    path.write_text(path.read_text().replace('if __name__ == "__main__":\n', f'if __name__ == "__main__":\n{spoilt}'))
    spoiled = package(tmp_path / "spoiled", ensemble=ensemble, checkpoints=checkpoints, root=root)
    rehearsal = rehearse(spoiled, competition, tmp_path / "out", options=quickly())
    assert rehearsal.ok, rehearsal.verdict + rehearsal.log
    assert f"pictures are left out: {said}; the submission is not touched" in rehearsal.log
    assert "the first rows of submission.csv" in rehearsal.log and "left out: NameError" not in rehearsal.log
    assert len(rehearsal.submission.read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_missing_wheel_stops_the_notebook(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    next(bundle.kit_dir.glob("ttach*.whl")).unlink()
    assert "'ttach-0.0.3-py3-none-any.whl': 'missing'" in _failing(bundle, competition, tmp_path)


@pytest.mark.slow
def test_a_stale_kit_stops_the_notebook(
    bundle: Bundle, root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], competition: Path, tmp_path: Path
) -> None:
    """The notebook was made for a newer version of the dataset than the one that is mounted."""
    with (root / "cassava_kit" / "files.py").open("a") as file:
        file.write("# a later version\n")
    later = package(tmp_path / "later", ensemble=ensemble, checkpoints=checkpoints, root=root)
    shutil.copytree(bundle.kit_dir, later.kit_dir, dirs_exist_ok=True)
    assert "the dataset is stale, still processing or another one" in _failing(later, competition, tmp_path)


@pytest.mark.slow
def test_weights_of_another_build_stop_the_notebook(
    bundle: Bundle, root: Path, ensemble: Ensemble, checkpoints: dict[str, Path], competition: Path, tmp_path: Path
) -> None:
    other = package(
        tmp_path / "other", ensemble=ensemble.model_copy(update={"views": "none"}), checkpoints=checkpoints, root=root
    )
    without_models(bundle)
    shutil.rmtree(bundle.weights_dir)
    shutil.copytree(other.weights_dir, bundle.weights_dir)
    assert "this notebook was made for" in _failing(bundle, competition, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", [each.name for each in ISOLATIONS])
def test_nothing_gets_out_and_nothing_of_the_users_gets_in(
    bundle: Bundle, competition: Path, tmp_path: Path, isolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not list(find_isolations(isolation)):
        pytest.skip(f"this machine does not allow {isolation}")
    monkeypatch.setenv("KAGGLE_KEY", "PLANTED-KEY-OF-ENVIRONMENT")
    monkeypatch.setenv("PYTHONPATH", "/planted/path")
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe = (
            "import json, os, pathlib, socket, sys\n"
            "def tried(action):\n"
            "    try:\n        action()\n        return 'done'\n"
            "    except OSError as error:\n        return type(error).__name__\n"
            "outside = socket.socket()\noutside.settimeout(2)\n"
            f"port = {server.getsockname()[1]}\n"
            "seen = {'outside': tried(lambda: outside.connect(('192.0.2.1', 80))),\n"
            "        'name': tried(lambda: socket.getaddrinfo('www.kaggle.com', 443)),\n"
            "        'host': tried(lambda: socket.create_connection(('127.0.0.1', port), timeout=2)),\n"
            "        'write': tried(lambda: (IMAGES.parent / 'new.txt').write_text('x')),\n"
            "        'write_wheel': tried(lambda: (KIT_FOLDER / 'new.txt').write_text('x')),\n"
            "        'images': str(IMAGES), 'path': sys.path, 'environment': dict(os.environ), 'cwd': os.getcwd()}\n"
            "(OUTPUT / 'seen.json').write_text(json.dumps(seen))\n"
            "print('the key is PLANTED' + '-KEY-OF-ENVIRONMENT')\n"
        )
        without_models(bundle)
        add_cell(bundle, probe)
        rehearsal = rehearse(bundle, competition, tmp_path / "out", options=RehearsalOptions(isolation=isolation))
    chosen = next(each for each in ISOLATIONS if each.name == isolation)
    assert rehearsal.isolation == chosen.report
    seen = read_json(tmp_path / "out" / "working" / "seen.json")
    assert (seen["outside"], seen["name"]) == ("OSError", "gaierror")
    assert not [name for name in seen["environment"] if name.startswith("KAGGLE_") and not name.endswith("_DIR")]
    assert not {"/planted/path", str(REPOSITORY), str(REPOSITORY / "cassava_kit" / "kaggle")} & set(seen["path"])
    assert "PLANTED" not in rehearsal.log + rehearsal.verdict
    if chosen.network:
        assert seen["host"] == "ConnectionRefusedError", "another network's loopback must not reach this machine's"
    if chosen.mounts:
        assert seen["images"].startswith("/kaggle/input/") and seen["cwd"] == "/kaggle/working"
        assert (seen["write"], seen["write_wheel"]) == ("OSError", "OSError")
        assert not Path("/kaggle").exists() or "KAGGLE_KERNEL_RUN_TYPE" in os.environ


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "cause", "message"),
    [
        # By a real interpreter: the memory is counted of what the notebook itself started.
        (RehearsalOptions(memory=0.3), "block = b'x' * 2**30", "used more than 0.3 GiB of memory"),
        (None, "os._exit(3)", "the kernel died"),
    ],
)
def test_a_notebook_that_is_killed_says_why(
    bundle: Bundle, competition: Path, tmp_path: Path, setting: RehearsalOptions | None, cause: str, message: str
) -> None:
    without_models(bundle)
    add_cell(bundle, f"{cause}\ntime.sleep(2)")
    rehearsal = rehearse(bundle, competition, tmp_path / "out", options=setting or quickly())
    assert not rehearsal.ok and message in rehearsal.verdict
    assert len(rehearsal.submission.read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_notebook_that_takes_too_long_is_killed(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    """A machine that is busy with other things gets more time until the last cell has begun."""
    without_models(bundle)
    add_cell(bundle, "(OUTPUT / 'begun').touch()\ntime.sleep(100_000)")
    for minutes in (0.1, 0.5, 2, 10):
        rehearsal = rehearse(bundle, competition, tmp_path / f"{minutes}", options=quickly(minutes=minutes))
        assert not rehearsal.ok and "ran past the time limit" in rehearsal.verdict
        if (tmp_path / f"{minutes}" / "working" / "begun").is_file():
            break
    assert len(rehearsal.submission.read_text().splitlines()) == 4


@pytest.mark.slow
def test_limits_and_the_public_test_set(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    without_models(bundle)
    add_cell(bundle, "print('cpus', len(os.sched_getaffinity(0)), 'limit', os.environ['CASSAVA_KIT_TIME_LIMIT'])")
    rehearsal = rehearse(bundle, competition, tmp_path / "out", options=quickly(images=1, cpus=1, minutes=2))
    assert "cpus 1 limit 113.3" in rehearsal.log
    assert "limits 1 CPU, 2 min" in rehearsal.verdict
    assert rehearsal.submission.read_text() == "image_id,label\n10.jpg,3\n"


@pytest.mark.slow
def test_a_hidden_test_set_of_any_size(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    """More images than there are: the same ones again, under new names, every one of them predicted."""
    rehearsal = rehearse(bundle, competition, tmp_path / "out", layout="old", options=quickly(hidden=1500))
    assert rehearsal.ok, rehearsal.verdict + rehearsal.log
    rows = rehearsal.submission.read_text().splitlines()
    assert len(rows) == 1501 and "1500 images, every one once" in rehearsal.verdict
    labels = {name: label for name, _, label in (row.rpartition(",") for row in rows[1:])}
    assert labels["000000001.jpg"] == labels["10.jpg"], "the same picture has the same label under its new name"


@pytest.mark.parametrize("changes", [True, False])
def test_an_input_that_the_notebook_changed_and_a_secret_that_it_printed(
    bundle: Bundle, competition: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: bool
) -> None:
    """Where the input cannot be mounted read-only, a notebook can write to it."""
    monkeypatch.setenv("MY_PAT", "PLANTED-KEY-OF-ENVIRONMENT")

    def run(asked: NotebookRun, scratch: Path) -> tuple[dict[str, Any], Isolation]:
        if changes:
            (competition / "sample_submission.csv").write_text("image_id,label\n10.jpg,4\nmore.jpg,1\n")
        return {"error": "stopped by PLANTED-KEY-OF-ENVIRONMENT", "log": "PLANTED-KEY-OF-ENVIRONMENT"}, ISOLATIONS[-1]

    monkeypatch.setattr(rehearsal, "run_notebook", run)
    done = rehearse(bundle, competition, tmp_path / "out", options=quickly())
    named = f"the notebook changed its input: {competition / 'sample_submission.csv'}"
    assert (named in done.verdict) == changes and not done.ok
    written = [path.read_text() for path in (tmp_path / "out").glob("*.*")]
    assert done.log == "***" and not [text for text in (done.verdict, *written) if "PLANTED" in text]


def test_limits_are_named_as_they_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert RehearsalOptions(cpus=2, memory=4.5, minutes=30).limits == "limits 2 CPUs, 4.5 GiB, 30 min"
    assert RehearsalOptions(cpus=4).limits == "limits 4 CPUs (there are 2)"
    assert RehearsalOptions(images=1).limits == ""


@pytest.mark.slow
def test_where_they_cannot_be_unpacked_the_wheels_themselves_are_imported(
    bundle: Bundle, competition: Path, tmp_path: Path
) -> None:
    without_models(bundle)
    edit_bootstrap(bundle, "archive.extractall(target)", 'archive.extractall("/dev/full/no-folder")')
    add_cell(bundle, "import ttach; print(cassava_kit.__file__, ttach.__file__)")
    log = rehearse(bundle, competition, tmp_path / "out", options=quickly()).log
    assert "the wheels could not be unpacked, importing from them" in log
    assert ".whl/cassava_kit/__init__.py" in log and ".whl/ttach/__init__.py" in log


@pytest.mark.slow
def test_the_image_is_left_as_it_is(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    """The kit is imported from a private folder, not from this environment, and nothing is installed into it."""
    without_models(bundle)
    add_cell(bundle, "import ttach; print(cassava_kit.__file__, '|', ttach.__file__)")
    import ttach

    site = Path(ttach.__file__).parents[1]

    def installed() -> dict[Path, int]:
        """Files of what the notebook installs, in this environment."""
        return {path: path.stat().st_mtime_ns for name in ("ttach", "cassava_kit") for path in site.glob(f"{name}*/*")}

    before = installed()
    log = rehearse(bundle, competition, tmp_path / "out", options=quickly()).log
    kit, _, views = log.strip().splitlines()[-1].partition(" | ")
    assert "/kit-" in kit and "/kit-" in views
    assert before and installed() == before


@pytest.mark.parametrize("content", ["{}", "[]", '"text"', '{"error": null, "prior_alone": false, "left_out": []}'])
def test_a_run_report_of_another_shape_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run\.json is no report of a submission run"):
        read_run(tmp_path)


def test_two_datasets_with_a_manifest_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    """Old and new version attached at once, or an input that is still empty: the message lists what was found."""
    source = bootstrap(bundle)
    for count, message in ((0, "found none"), (2, "kit0, ")):
        given = tmp_path / f"input{count}"
        given.mkdir()
        for number in range(count):
            shutil.copytree(bundle.kit_dir, given / f"kit{number}")
        code = f"{source}\n{cell(bundle, '# The kit comes')}"
        environment = {"PATH": os.environ["PATH"], "KAGGLE_INPUT_DIR": str(given)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )
        assert "expected one dataset with KIT_MANIFEST.json" in done.stderr and message in done.stderr


@pytest.mark.parametrize(
    ("version", "wanted", "inside"),
    [
        ("2.15.0", ">=2.6,!=2.13.0", True),
        ("2.13.0+cpu", ">=2.6,!=2.13.0", False),
        ("2.0.8", ">=2.0.8,<2.1", True),
        ("2.1", ">=2.0.8,<2.1", False),
        ("0.9.16", ">=1.0.15", False),
        ("1.0.15", "==1.0.15", True),
    ],
)
def test_versions_outside_the_tested_range_are_named(
    bundle: Bundle,
    version: str,
    wanted: str,
    inside: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.metadata

    source = bootstrap(bundle)
    names: dict[str, Any] = {"KIT": {"kit_version": "0", "build_id": "0"}}
    exec(source, names)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    names["print_versions"]({"torch": wanted})
    assert ("WARNING" not in capsys.readouterr().out) == inside


def test_closed_sockets_let_local_ones_through(tmp_path: Path) -> None:
    """Data-parallel training talks to itself over 127.0.0.1."""
    code = (
        "import socket\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    socket.create_connection(server.getsockname()).close()\n"
        "    socket.create_connection(('localhost', server.getsockname()[1])).close()\n"
        "outside = socket.socket()\noutside.settimeout(2)\n"
        "named = lambda: socket.getaddrinfo('www.kaggle.com', 443)\n"
        "for action in (lambda: outside.connect(('192.0.2.1', 80)), named):\n"
        "    try:\n        action()\n"
        "    except OSError as error:\n        print(error)\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(write_start(tmp_path, closed=True))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("the network is closed") == 2


def test_the_private_environment_has_no_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH"):
        monkeypatch.setenv(name, "planted")
    environment = private_environment(tmp_path)
    assert "planted" not in environment.values()
    assert environment["HOME"].startswith(str(tmp_path))


def test_a_third_dataset_in_the_metadata_is_named(bundle: Bundle, competition: Path, tmp_path: Path) -> None:
    path = bundle.kernel_dir / "kernel-metadata.json"
    described = read_json(path)
    path.write_text(json.dumps(described | {"dataset_sources": [*described["dataset_sources"], "me/more"]}))
    with pytest.raises(ValueError, match=r"2 datasets and no other, got .*me/more; package it again"):
        rehearse(bundle, competition, tmp_path / "out", options=quickly())


def test_a_folder_that_is_no_competition_stops_before_the_image_is_made(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "image_environment", lambda *_, **__: pytest.fail("made the environment first"))
    with pytest.raises(FileNotFoundError, match="has no test_images"):
        rehearse_bundle(bundle.home, tmp_path, RehearsalOptions(), image="newest")


def test_an_environment_that_cannot_be_made_is_one_line(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "find_python", lambda _: ("3.13", Path("/bin/false")))
    with pytest.raises(ValueError, match="/bin/false could not make an environment in"):
        image.image_environment(REPOSITORY, tmp_path)


def test_an_unknown_isolation_is_refused() -> None:
    with pytest.raises(ValueError, match="isolation must be one of mounts"):
        find_isolations("hope")


def test_a_kernel_without_weights_can_get_the_whole_folder(competition: Path, tmp_path: Path) -> None:
    bundle: Any = SimpleNamespace(kernel=find_kernel("eda"), competition=CASSAVA)
    options = RehearsalOptions(per_class=None)
    mounts = rehearsal._mount_competition(bundle, competition, tmp_path / "scratch", "new", options)
    assert {mount.source for mount in mounts} >= {competition / "train.csv", competition / "test_images"}
    assert not (tmp_path / "scratch").exists(), "nothing is copied"


def test_a_stopped_rehearsal_leaves_no_process_behind(tmp_path: Path) -> None:
    import nbformat

    notebook = nbformat.v4.new_notebook()
    place = repr(str(tmp_path / "pid"))
    sources = f"import os, pathlib, time\npathlib.Path({place}).write_text(str(os.getpid()))", "time.sleep(600)"
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(notebook, tmp_path / "sleeps.ipynb")

    def stop(*_: int) -> None:
        raise Stopped

    (tmp_path / "out" / "working").mkdir(parents=True)
    options = RehearsalOptions(isolation="sockets", progress=stop)
    mounts = [Mount(tmp_path / "out", Path("data"))]
    run = NotebookRun(tmp_path / "sleeps.ipynb", mounts, tmp_path / "out", "new", options)
    with pytest.raises(Stopped):
        run_notebook(run, tmp_path)
    process = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    assert not process.exists() or process.read_text().rpartition(")")[2].split()[0] == "Z"
