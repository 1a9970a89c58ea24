"""`doctor --notebook`: what it prints, its exit code, its JSON, and a rehearsal in both layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from foreign_notebooks import METADATA, SLUG, write_notebook

from cassava_kit.cli.app import run_app
from cassava_kit.cli.submit import submit_app
from cassava_kit.kaggle.rehearse.isolation import find_isolations

MOUNTS = any(each.mounts for each in find_isolations())
WRITE = """import os
import pandas as pd
images = next(where for where, _, _ in os.walk("/kaggle/input", followlinks=True) if where.endswith("{name}"))
ids = os.listdir(images)
pd.DataFrame({{"image_id": ids, "label": 3}}).to_csv("submission.csv", index=False)"""


def run(*arguments: object) -> int:
    return run_app(submit_app, [str(argument) for argument in arguments])


def test_a_clean_notebook_ends_with_0_and_a_failing_one_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = write_notebook(tmp_path, "x = 1")
    (tmp_path / "kernel-metadata.json").write_text(json.dumps(METADATA))
    assert run("doctor", "--notebook", clean) == 0
    assert capsys.readouterr().out == f"nothing found in {clean}\n"
    failing = write_notebook(tmp_path, "x = 1", "import torch\nx = torch.load('a')")
    assert run("doctor", "--notebook", failing) == 1
    assert "FAILED cell 2, line 2: torch.load without weights_only: " in capsys.readouterr().out
    other = tmp_path / "other.json"
    other.write_text(json.dumps(METADATA | {"enable_internet": True}, indent=1))
    assert run("doctor", "--notebook", clean, "--kernel-metadata", other, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False and [(found["cell"], found["line"]) for found in said["findings"]] == [(0, 8), (2, 2)]


@pytest.mark.skipif(not MOUNTS, reason="this machine mounts nothing")
@pytest.mark.slow
def test_a_rehearsal_shows_which_layout_a_fixed_path_fails_in(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four runs of a notebook: a fixed path in both layouts, and one that looks for its folder and reads a dataset."""
    monkeypatch.chdir(tmp_path)
    fixed = write_notebook(
        tmp_path, f"import os\nos.listdir('/kaggle/input/{SLUG}/test_images')", WRITE.format(name="test_images")
    )
    assert run("doctor", "--notebook", fixed, "--run", "--data", tiny_dir, "--hidden", 11, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert [each["ok"] for each in said["rehearsals"]] == [False, True]
    assert "FileNotFoundError" in said["rehearsals"][0]["verdict"] and "11 images" in said["rehearsals"][1]["verdict"]
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "a.txt").write_text("3")
    found = "from pathlib import Path\nassert next(Path('/kaggle/input').rglob('a.txt')).read_text() == '3'"
    mended = write_notebook(tmp_path, found, WRITE.format(name="test_images"))
    assert run("doctor", "--notebook", mended, "--run", "--data", tiny_dir, "--dataset", f"me/w={weights}") == 0
    assert capsys.readouterr().out.count("rehearsal passed") == 2
    assert (tmp_path / "build/notebooks/inference-new/working/submission.csv").is_file()


def test_datasets_are_folders_with_an_owner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = write_notebook(tmp_path, "x = 1")
    drawn = "cassava_kit.data.sample.make.ensure_sample"
    monkeypatch.setattr(drawn, lambda folder=None: pytest.fail("the sample was drawn before the options were read"))
    for given, message in (("w=x", "takes OWNER/SLUG=DIR"), ("a/b=/nowhere", "no folder /nowhere")):
        assert run("doctor", "--notebook", notebook, "--run", "--dataset", given) == 2
        assert message in capsys.readouterr().err
