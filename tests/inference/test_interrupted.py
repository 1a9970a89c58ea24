"""The first file, the best file so far, the deadline, and kill -9."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ROOT, full_ensemble, submit

from cassava_kit.files import read_json
from cassava_kit.inference import run as run_module
from cassava_kit.inference.forward import Forward
from cassava_kit.submission import check_submission


def test_the_first_file_is_there_before_any_member_is_read(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object, **__: object) -> None:
        assert check_submission(tmp_path / "s.csv", images).class_counts == (0, 0, 0, 21, 0)
        raise RuntimeError("no luck today")

    monkeypatch.setattr(run_module, "load_members", look)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert report.error == "RuntimeError: no luck today" and set(labels) == {3}
    assert read_json(tmp_path / "run.json")["error"] == report.error


def test_the_file_only_gets_better_member_by_member(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    real = run_module.write_submission

    def write(path: Path, names: list[str], labels: list[int], competition: object) -> None:
        real(path, names, labels, competition)
        check_submission(path, images)
        seen.append(np.asarray(labels))

    monkeypatch.setattr(run_module, "write_submission", write)
    final, _ = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(seen) > 10 and set(seen[0]) == {3}
    agreement = [float(np.mean(labels == final.to_numpy())) for labels in seen]
    assert agreement[0] < agreement[-1] == 1
    assert agreement[len(agreement) // 2] > agreement[0]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = Forward.start

    def start(self: Forward, pixels: object, view: object) -> object:
        time.sleep(seconds)
        return real(self, pixels, view)

    monkeypatch.setattr(Forward, "start", start)


@pytest.mark.parametrize("limit", [1.5, 2.5])
def test_the_deadline_is_kept_with_a_complete_file(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    slow(monkeypatch, 0.1)  # the whole ensemble would take 16 units x 6 batches x .1 s
    start = time.time()
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=limit, started=start, early_stop="off")
    assert time.time() - start < limit + 1.5
    assert report.early_stop["work_done"] < 1 and not report.prior_alone
    assert len(labels) == 21


def test_a_limit_that_is_already_over_leaves_the_prior(images: Path, weights: Path, tmp_path: Path) -> None:
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=5.0, started=time.time() - 60)
    assert set(labels) == {3} and report.prior_alone and report.error is None


def test_time_saved_by_stopping_early_brings_dropped_units_back(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import session

    real = session.arranged

    def hurried(plan: object) -> object:
        plan.left = 1e-6  # type: ignore[attr-defined]
        return real(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "arranged", hurried)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert sum(unit["kept"] for unit in report.plan["units"]) == 1
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_valid_file(images: Path, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cassava_kit.inference.report import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "run_submission(*sys.argv[1:4], options=RunOptions(device='cpu', batch_size=2, early_stop='off'))\n"
    )
    rng = np.random.default_rng(0)
    for trial in range(6):
        out = tmp_path / f"out{trial}" / "s.csv"
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(images), str(weights), str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )
        deadline = time.monotonic() + 60
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0, 6)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert check_submission(out, images).n_images == 21
