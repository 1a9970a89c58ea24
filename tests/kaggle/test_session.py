"""A session's verbs: within its time, on the GPUs that are free, and going on from what an earlier one left."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cassava_kit.errors import UserError
from cassava_kit.kaggle import session as session_module
from cassava_kit.kaggle.session import Session, are_joinable, share_gpus, train_folds


@pytest.fixture
def session(tmp_path: Path) -> Session:
    (tmp_path / "input").mkdir()
    (tmp_path / "output").mkdir()
    return Session(tmp_path / "input", tmp_path / "output", time.time(), 600.0)


def test_a_verbs_lines_are_printed_with_their_label(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert session.run(["recipes", "small_resnet"], label="fold 1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fold 1 | $ cassava-kit recipes small_resnet" and len(lines) > 3
    assert all(line.startswith("fold 1 | ") for line in lines)


def test_a_verb_does_not_take_the_notebook_for_a_terminal(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's kernel sets these variables, and rich then draws its bars line after line."""
    program = "import os, sys; from rich.console import Console; sys.exit(Console(file=sys.stdout).is_terminal)"
    started = subprocess.Popen
    monkeypatch.setattr(
        session_module.subprocess, "Popen", lambda _, **options: started([sys.executable, "-c", program], **options)
    )
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-color")
    assert session.run(["folds"], gpus=[1])


def test_a_verb_that_fails_or_has_no_time_says_so(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    assert not session.run(["recipes", "no_such_recipe"])
    assert "exit code 2: recipes no_such_recipe (attach this notebook's output" in capsys.readouterr().out
    late = Session(session.input, session.output, time.time() - 100, 99.0)
    assert not late.run(["recipes"])
    assert capsys.readouterr().out == "no time left for: recipes\n"


@pytest.mark.parametrize("place", ["train-folds", "notebooks/me/train-folds"])
def test_an_earlier_output_is_taken_up(session: Session, place: str) -> None:
    earlier = session.input / place / "runs" / "mine"
    earlier.mkdir(parents=True)
    (earlier / "a.txt").write_text("done")
    (session.output / "runs" / "other").mkdir(parents=True)
    session.take_up(session.output / "runs")
    assert (session.output / "runs" / "mine" / "a.txt").read_text() == "done"
    assert (session.output / "runs" / "other").is_dir()


def test_a_file_is_found_by_its_name_in_what_is_attached(session: Session) -> None:
    deep = session.input / "notebooks" / "me" / "pretrain-ssl" / "pretrain-byol"
    deep.mkdir(parents=True)
    (deep / "backbone.safetensors").write_text("w")
    assert session.find_file("") is None
    assert session.find_file("backbone.safetensors") == deep / "backbone.safetensors"
    assert session.find_file("pretrain-byol/backbone.safetensors") == deep / "backbone.safetensors"
    with pytest.raises(FileNotFoundError, match=r"nothing that is attached has b\.safetensors; attach"):
        session.find_file("b.safetensors")
    (session.input / "backbone.safetensors").mkdir()
    (session.input / "other").mkdir()
    (session.input / "other" / "backbone.safetensors").write_text("w")
    with pytest.raises(UserError, match="there more than once, give more of the path"):
        session.find_file("backbone.safetensors")


@pytest.mark.parametrize(
    ("count", "each", "expected"),
    [
        (0, 1, (1, [[]])),
        (0, 2, (2, [[]])),
        (1, 1, (1, [[0]])),
        (1, 2, (1, [[0]])),
        (2, 1, (1, [[0], [1]])),
        (2, 2, (2, [[0, 1]])),
        (4, 2, (2, [[0, 1], [2, 3]])),
        (3, 2, (2, [[0, 1]])),
    ],
)
def test_gpus_are_shared_among_folds(count: int, each: int, expected: tuple[int, list[list[int]]]) -> None:
    assert share_gpus(count, each) == expected


def test_a_gpu_has_one_fold_at_a_time_and_the_watch_is_called(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_work: list[tuple[int, ...]] = []
    seen: list[tuple[Any, ...]] = []
    most, lock, both = [0], threading.Lock(), threading.Barrier(2, timeout=60)

    def run(self: Session, arguments: Any, *, gpus: Any = (), label: str = "") -> bool:
        with lock:
            assert tuple(gpus) not in at_work
            at_work.append(tuple(gpus))
            most[0] = max(most[0], len(at_work))
        both.wait()
        while len(calls) < 2:
            time.sleep(0.001)
        with lock:
            at_work.remove(tuple(gpus))
            seen.append((*arguments, tuple(gpus), label))
        return arguments[-1] != 2

    calls: list[int] = []
    monkeypatch.setattr(Session, "run", run)
    monkeypatch.setattr(session_module, "REDRAW_SECONDS", 0.01)
    ended = train_folds(session, ["train", "r"], [0, 1, 2, 4], gpus=[[0], [1]], watch=lambda: calls.append(1))
    assert ended == {0: True, 1: True, 2: False, 4: True} and most[0] == 2 and len(calls) > 2
    assert sorted(each[3] for each in seen) == [0, 1, 2, 4] and {each[5] for each in seen} >= {"fold 0", "fold 4"}


def write_fold(folder: Path, **changes: Any) -> None:
    done = {"given": {"weights": None}, "fingerprint": {"code": changes.get("code", "c")}}
    header = {"fold_hash": changes.get("split", "s"), "kit_version": changes.get("version", "1")}
    folder.mkdir(parents=True)
    for name, value in (("run.json", done), ("config.json", {"lr": changes.get("lr", 1)}), ("oof.json", header)):
        (folder / name).write_text(json.dumps(value))


@pytest.mark.parametrize("change", [{}, {"code": "d"}, {"split": "t"}, {"version": "2"}, {"lr": 2}])
def test_folds_of_one_kind_alone_are_joined(tmp_path: Path, change: dict[str, Any]) -> None:
    write_fold(tmp_path / "fold0")
    assert not are_joinable(tmp_path, 2), "fold 1 is not there"
    write_fold(tmp_path / "fold1", **change)
    assert are_joinable(tmp_path, 2) == (not change)
