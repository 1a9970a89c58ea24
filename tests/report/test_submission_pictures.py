"""What a submission's notebook shows: it reads the file and no more, ends in time, and raises nothing."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from cassava_kit.competition import CASSAVA, VARIABLE, write_facts
from cassava_kit.inference.report import RunReport
from cassava_kit.inference.submission import write_submission
from cassava_kit.report.charts import Chart
from cassava_kit.report.notebook import show, submission_pictures

NAMES = [f"{k}.jpg" for k in range(6)]
LABELS = [3, 3, 0, 4, 3, 2]


@pytest.fixture
def done(tmp_path: Path) -> tuple[RunReport, dict[str, Any]]:
    """A run's report over six images, and the other arguments of `show_submission`."""
    images = tmp_path / "test_images"
    images.mkdir()
    for k, name in enumerate(NAMES):
        cv2.imwrite(str(images / name), np.full((30, 40, 3), 40 * k, np.uint8))
    out = tmp_path / "submission.csv"
    write_submission(out, NAMES, LABELS)
    report = RunReport(str(out), len(NAMES), finished=True, prior_alone=False, names=list(NAMES), devices=["cpu"])
    report.probabilities = np.full((6, 5), 0.1)
    report.probabilities[np.arange(6), LABELS] = [0.6, 0.5, 0.9, 0.3, 0.8, 0.7]
    files = [f"{member}-fold{k}.safetensors" for member in ("a", "b") for k in (0, 1)]
    report.members_used = [{"file": file, "member": file[0], "weight": 0.25} for file in files]
    report.plan = {
        "units": [
            {"unit": f"{file} {view}", "seconds_per_image": 0.002, "weight": 0.125}
            for file in files
            for view in ("plain", "hflip")
        ]
    }
    units = [{"unit": unit["unit"], "images": 6, "seconds": 0.5} for unit in report.plan["units"][:6]]
    report.timings = {"first_file": 2.0, "loading": 1.0, "units": units, "total": 7.5}
    return report, {"images_dir": images, "weights": tmp_path, "out": out, "n": 4}


def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that is displayed from now on; a slow machine gets more time to draw than a submission does."""
    parts: list[Any] = []
    monkeypatch.setattr(submission_pictures, "LONGEST_SECONDS", 120.0)
    monkeypatch.setattr(show, "display_part", parts.append)
    monkeypatch.setattr(submission_pictures, "display_part", parts.append)
    return parts


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_it_shows_plan_images_classes_times_and_the_head(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report, arguments = done
    before, parts = arguments["out"].read_bytes(), displayed(monkeypatch)
    submission_pictures.show_submission(report, arguments.pop("images_dir"), **arguments)
    alts = [one.alt for part in parts if isinstance(part, tuple) for one in part]
    assert alts == [
        "Test images (random test images) with predicted class and confidence",
        "Test images (the least sure) with predicted class and confidence",
        "Predicted classes beside the training shares",
        "Seconds of each part of the run",
    ]
    plan = parts[1]
    assert plan.loc["a"].to_dict() == {
        "checkpoints": 2, "views": 2, "weight": "0.500", "ms an image": "8.0", "votes needed": "100%", "seconds": "2.0"
    }  # fmt: skip
    assert plan.loc["b", "votes needed"] == "50%"
    assert parts[-1].to_dict()["label"]["2.jpg"] == "0" and len(parts[-1]) == 5
    assert arguments["out"].read_bytes() == before


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time; time.sleep(10_000)", "drawing took longer than its time"),
        ("while True: pass", "drawing took longer than its time"),
        ("raise RuntimeError('no fonts')", "RuntimeError: no fonts"),
        ("import os; os.abort()", "exit code -6"),
        ("import sys; open(sys.argv[1] + '/0-x.picture', 'wb').write(b'x')", ""),
    ],
)
def test_drawing_that_hangs_or_dies_is_ended_and_named(
    done: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    report, arguments = done
    before, parts = arguments["out"].read_bytes(), displayed(monkeypatch)
    monkeypatch.setattr(submission_pictures, "CHILD", child(code))
    if "longer" in said:  # what dies has the time that it needs to come so far
        monkeypatch.setattr(submission_pictures, "LEAST_SECONDS", 0.1)
        monkeypatch.setattr(submission_pictures, "LONGEST_SECONDS", 0.5)
    started = time.monotonic()
    submission_pictures.show_submission(report, arguments.pop("images_dir"), **arguments)
    assert time.monotonic() - started < 5000, "not half of what the child would take"
    out = capsys.readouterr().out
    assert (f"pictures are left out: {said}; the submission is not touched by this" in out) == bool(said)
    assert arguments["out"].read_bytes() == before and len(parts[-1]) == 5, "the head is shown all the same"


def test_pictures_that_were_done_in_time_are_shown(done: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick ones are drawn first: photographs that end the drawing cost the rest nothing."""
    report, arguments = done
    parts = displayed(monkeypatch)
    module = "cassava_kit.report.notebook.submission_pictures"
    slow = f"import os, sys, {module} as m; from pathlib import Path; m.read_photo = lambda *_: os._exit(3); "
    monkeypatch.setattr(submission_pictures, "CHILD", child(slow + "m.draw_pictures(Path(sys.argv[1]))"))
    submission_pictures.show_submission(report, arguments.pop("images_dir"), **arguments)
    assert [one.alt for part in parts if isinstance(part, tuple) for one in part] == [
        "Predicted classes beside the training shares",
        "Seconds of each part of the run",
    ]


def test_a_child_that_has_children_is_ended_with_them(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    grandchild = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(10_000)"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(10_000)"
    for seconds in (0.5, 5, 50, 500):  # a busy machine takes longer to start both
        assert submission_pictures.draw_within(child(code), seconds) == "drawing took longer than its time"
        if note.exists() and note.read_text():
            break
    deadline = time.monotonic() + 600
    while Path("/proc", note.read_text(), "cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert time.monotonic() < deadline, "the child's child is still there"


def test_nothing_is_drawn_where_the_session_is_short_or_no_picture_is_wanted(
    done: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report, arguments = done
    monkeypatch.setattr(submission_pictures, "draw_within", lambda *_: pytest.fail("drew"))
    displayed(monkeypatch)
    images = arguments.pop("images_dir")
    submission_pictures.show_submission(report, images, **arguments | {"n": 0})
    report.time_limit = 30.0
    submission_pictures.show_submission(report, images, **arguments)
    assert "no pictures: a session of 30 s leaves no time for them" in capsys.readouterr().out


def test_a_report_of_nothing_and_a_file_that_is_gone_raise_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission_pictures.show_submission(RunReport("x"), tmp_path, weights=tmp_path, out=tmp_path / "x.csv", n=4)
    out = capsys.readouterr().out
    assert "no plan: no member ran" in out and "FileNotFoundError" in out


def test_the_least_sure_are_apart_from_the_random_ones() -> None:
    sure = np.array([0.9, 0.2, 0.8, 0.3, 0.7, 0.6])
    chosen = submission_pictures.choose_images(6, sure, 4)
    assert chosen["the least sure"] == [1, 3] and len(chosen["random test images"]) == 2
    assert not {1, 3} & set(chosen["random test images"])
    assert submission_pictures.choose_images(3, sure[:3], 4) == {"test images": [0, 1, 2]}
    assert submission_pictures.choose_images(0, None, 4) == {}


def test_the_times_add_up_to_the_run(done: Any) -> None:
    used = submission_pictures.used_seconds(done[0])
    assert used == {"set-up": 2.0, "loading checkpoints": 1.0, "a": 2.0, "b": 1.0, "everything else": 1.5}


def test_facts_of_a_submission_of_probabilities(done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most probable class counts, and 40 names fit."""
    report, arguments = done
    columns = tuple(f"p{k}" for k in range(40))
    competition = replace(
        CASSAVA, slug="many", classes=tuple(f"class {k}" for k in range(40)), class_shares=(), metric="log_loss",
        probability_columns=columns,
    )  # fmt: skip
    write_facts(tmp_path / "c.json", competition)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    answers = np.full((6, 40), 0.01)
    answers[np.arange(6), [39, 39, 1, 2, 3, 39]] = 0.61
    write_submission(arguments["out"], NAMES, answers, columns=columns)
    report.probabilities = answers
    facts = submission_pictures.picture_facts(report, arguments.pop("images_dir"), **arguments)
    assert facts["counts"][39] == 3 and sum(facts["counts"]) == 6 and len(facts["counts"]) == 40
    assert {image[2] for rows in facts["rows"].values() for image in rows} == {0.61}
    json.dumps(facts)
    chart = submission_pictures.draw_classes(facts["classes"], facts["counts"], facts["shares"])
    assert isinstance(chart, Chart) and len(chart.png) > 1000


def test_names_and_probabilities_are_not_in_the_runs_file(done: Any, tmp_path: Path) -> None:
    report, _ = done
    report.write(tmp_path)
    written = json.loads((tmp_path / "run.json").read_text())
    assert asdict(report).keys() - written.keys() == {"names", "probabilities"}
