"""Executed copies: which notebook runs with what, where its page goes, and what stops it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cassava_kit.cli import executed
from cassava_kit.cli.parameters import check_parameters
from cassava_kit.competition import CASSAVA, VARIABLE, write_facts
from cassava_kit.errors import UserError
from cassava_kit.kaggle.pack.kernels import KERNEL_NAMES, SUBMISSION_KERNEL, Changes, find_kernel, kernel_parameters

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Rehearsals asked for; each leaves a notebook of one line, and fails where it is told to."""
    asked: list[Any] = []

    def rehearse(bundle: Any, sample: Path, out: Path, *, options: Any) -> Any:
        asked.append(SimpleNamespace(kernel=bundle.kernel.name, options=options))
        out.mkdir(parents=True)
        cells = [{"cell_type": "markdown", "source": f"# {out.name}", "metadata": {}}]
        (out / f"{out.name}.ipynb").write_text(json.dumps({"cells": cells}))
        return SimpleNamespace(ok=out.name != "eda" or not (tmp_path / "fail").exists(), verdict="it FAILED")

    monkeypatch.setattr(executed, "rehearse", rehearse)
    monkeypatch.setattr(executed, "sample_bundle", lambda kernel, *_: SimpleNamespace(kernel=kernel))
    monkeypatch.setattr("cassava_kit.data.sample.make.ensure_sample", lambda _: tmp_path / "sample")
    return asked


def test_every_notebook_gets_its_page(runs: list[Any], tmp_path: Path) -> None:
    written = executed.write_executed(tmp_path, tmp_path / "work")
    assert written == [tmp_path / "kernels" / name / "executed.html" for name in KERNEL_NAMES]
    assert all(f"<h1>{path.parent.name}</h1>" in path.read_text() for path in written)
    assert {run.kernel: run.options.parameters.get("RECIPE") for run in runs}["train-folds"] == "small_resnet"
    assert {run.options.per_class for run in runs} == {None}, "the whole sample"


@pytest.mark.parametrize("name", list(executed.SAMPLE_PARAMETERS))
def test_the_samples_parameters_are_parameters_of_the_notebook(name: str) -> None:
    kernel = find_kernel(name)
    changed = kernel_parameters(kernel, REPOSITORY, Changes(dict(executed.SAMPLE_PARAMETERS[name])))
    check_parameters(kernel, changed)


def test_a_notebook_that_fails_leaves_no_page(runs: list[Any], tmp_path: Path) -> None:
    (tmp_path / "fail").touch()
    with pytest.raises(UserError, match=r"eda: it FAILED; its log is in .*work/eda"):
        executed.write_executed(tmp_path, tmp_path / "work", ["eda"])
    assert len(runs) == 1 and not (tmp_path / "kernels").exists()


def test_what_cannot_be_executed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no .*sample-v1/ensemble\.json, which ens.* needs; run: make demo"):
        executed.sample_bundle(SUBMISSION_KERNEL, tmp_path, tmp_path / "work", Path("sample-v1"))
    with pytest.raises(UserError, match="no kernel 'edaa'"):
        executed.write_executed(tmp_path, tmp_path, ["edaa"])
    write_facts(tmp_path / "c.json", replace(CASSAVA, slug="flowers-2027"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    with pytest.raises(UserError, match=r"made of the embedded sample; call it in a folder without competition\.json"):
        executed.write_executed(tmp_path, tmp_path)
