"""The first file, the best file so far, the deadline, and kill -9."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import start_python
from tiny_runs import FakeClock, full_ensemble, read_labels, submit

from cassava_kit.files import read_json
from cassava_kit.inference import run as run_module
from cassava_kit.inference.forward import Forward, Started
from cassava_kit.inference.submission import check_answers
from cassava_kit.inference.tta import View


def test_the_first_file_is_there_before_any_member_is_read(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object, **__: object) -> None:
        assert check_answers(tmp_path / "s.csv", images).class_counts == (0, 0, 0, 21, 0)
        raise RuntimeError("no luck today")

    monkeypatch.setattr(run_module, "load_members", look)
    labels, report = submit(images, weights, tmp_path / "s.csv")
    assert report.error == "RuntimeError: no luck today" and set(labels) == {3}
    assert read_json(tmp_path / "run.json")["error"] == report.error


def test_the_file_only_gets_better_member_by_member(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    real = run_module.write_answers

    def write(path: Path, names: list[str], labels: list[int], competition: object) -> None:
        real(path, names, labels, competition)
        check_answers(path, images)
        seen.append(np.asarray(labels))

    monkeypatch.setattr(run_module, "write_answers", write)
    final, _ = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(seen) >= 7 and set(seen[0]) == {3}  # the prior's, one measured batch, four checkpoints, the last one
    agreement = [float(np.mean(labels == final.to_numpy())) for labels in seen]
    assert agreement[0] < agreement[-1] == 1
    assert agreement[len(agreement) // 2] > agreement[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The run's clock, on which every view of a batch takes a tenth of a second and nothing else any time."""
    clock, real = FakeClock(), Forward.start

    def make(limit: float | None, started: float) -> FakeClock:
        clock.limit = limit
        return clock

    def start(self: Forward, pixels: torch.Tensor, views: Sequence[View]) -> Started:
        clock.now += 0.1 * len(views)
        return real(self, pixels, views)

    monkeypatch.setattr(run_module, "Clock", make)
    monkeypatch.setattr(Forward, "start", start)
    return clock


@pytest.mark.parametrize(("limit", "least"), [(1.0, 0.01), (1.05, 0.01), (2.55, 0.1), (6.05, 0.4)])
def test_the_deadline_is_kept_with_a_complete_file(
    images: Path, weights: Path, tmp_path: Path, clock: FakeClock, limit: float, least: float
) -> None:
    # The whole ensemble takes 16 units x 6 batches x .1 s, measured batches of some units twice.
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=limit, early_stop="off")
    assert clock.now <= limit - 0.5 + 1e-9  # the reserve is kept: no batch was begun that would end in it
    assert least < report.early_stop["work_done"] < 1 and not report.prior_alone
    assert len(labels) == 21


@pytest.mark.parametrize("limit", [3.35, 4.05, 5.25])
def test_no_checkpoint_is_loaded_that_there_is_no_time_for(
    images: Path, weights: Path, tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    from cassava_kit.inference import runner

    real = runner.place

    def load(*arguments: object) -> Forward:
        clock.now += 1.0
        return real(*arguments)

    monkeypatch.setattr(runner, "place", load)
    _, report = submit(images, weights, tmp_path / "s.csv", time_limit=limit, early_stop="off")
    assert clock.now <= limit - 0.5 + 1e-9 and 0 < report.early_stop["work_done"] < 1


def test_with_time_enough_all_work_is_done(images: Path, weights: Path, tmp_path: Path, clock: FakeClock) -> None:
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=60.0, early_stop="off")
    assert report.early_stop["work_done"] == 1 and 9.6 <= clock.now < 12
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


def test_a_limit_that_is_already_over_leaves_the_prior(images: Path, weights: Path, tmp_path: Path) -> None:
    labels, report = submit(images, weights, tmp_path / "s.csv", time_limit=5.0, started=time.time() - 60)
    assert set(labels) == {3} and report.prior_alone and report.error is None


def test_time_saved_by_stopping_early_brings_dropped_units_back(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import ensemble_run

    real = ensemble_run.order_units

    def hurried(plan: object) -> object:
        plan.left = 1e-6  # type: ignore[attr-defined]
        return real(plan)  # type: ignore[arg-type]

    monkeypatch.setattr(ensemble_run, "order_units", hurried)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert sum(unit["kept"] for unit in report.plan["units"]) == 1
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()


def test_the_first_votes_are_on_disk_before_anything_is_timed(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference.ensemble_run import EnsembleRun

    seen: list[set[int]] = []
    real = EnsembleRun.time_reading

    def time_reading(self: EnsembleRun, rows: np.ndarray) -> float:
        seen.append(set(read_labels(tmp_path / "s.csv")))
        return real(self, rows)

    monkeypatch.setattr(EnsembleRun, "time_reading", time_reading)
    submit(images, weights, tmp_path / "s.csv")
    (labels,) = seen
    assert len(labels) > 1  # the prior alone would be one class


@pytest.mark.parametrize("after", [0, 1])
def test_a_report_that_cannot_be_written_costs_no_vote(
    images: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: int,
) -> None:
    from cassava_kit.inference import report as report_module

    real, calls = report_module.write_json, []

    def write_json(*arguments: object) -> None:
        calls.append(1)
        if len(calls) > after:
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(report_module, "write_json", write_json)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(calls) == 2 and report.error is None
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist()
    assert "run.json could not be written: [Errno 28]" in capsys.readouterr().err


def test_a_first_file_that_cannot_be_replaced_does_not_end_the_run(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = run_module.write_answers, []

    def write(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(*arguments)

    submit(images, weights, tmp_path / "s.csv")
    monkeypatch.setattr(run_module, "write_answers", write)
    labels, report = submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert labels.tolist() == full_ensemble(images, weights).argmax(1).tolist() and report.error is None
    calls.clear()
    with pytest.raises(OSError, match="No space left"):  # where no file stands there is nothing to fall back to
        run_module.run_submission(images, weights, tmp_path / "none" / "s.csv")


def test_a_file_is_written_inside_a_long_unit(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import ensemble_run
    from cassava_kit.inference.ensemble_run import EnsembleRun

    monkeypatch.setattr(ensemble_run, "WRITE_EVERY_SECONDS", 0.0)
    inside: list[int] = []
    running: list[bool] = []
    real_run, real_save = EnsembleRun.run_views, EnsembleRun.try_save

    def run_views(self: EnsembleRun, own: list[int], rows: np.ndarray, **options: bool) -> float | None:
        running.append(True)
        try:
            return real_run(self, own, rows, **options)
        finally:
            running.clear()

    def save(self: EnsembleRun) -> OSError | None:
        inside.extend([1] * bool(running))
        return real_save(self)

    monkeypatch.setattr(EnsembleRun, "run_views", run_views)
    monkeypatch.setattr(EnsembleRun, "try_save", save)
    submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(inside) >= 16 * 5  # every view of every batch of four

    inside.clear()
    monkeypatch.setattr(ensemble_run, "WRITE_EVERY_SECONDS", 3600.0)
    submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert inside == []


def test_dropped_units_come_back_the_most_valuable_first(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cassava_kit.inference import ensemble_run
    from cassava_kit.inference.ensemble_run import EnsembleRun

    real, real_readmit = ensemble_run.order_units, EnsembleRun.restore_unit
    came_back: list[int] = []
    values: list[float] = []

    def hurried(plan: object) -> object:
        plan.left = 1e-6  # type: ignore[attr-defined]
        return real(plan)  # type: ignore[arg-type]

    def restore_unit(self: EnsembleRun) -> bool:
        known = set(self.plan.order)
        found = real_readmit(self)
        came_back.extend(set(self.plan.order) - known)
        values[:] = [unit.worth / max(s, 1e-9) for unit, s in zip(self.units, self.plan.seconds, strict=True)]
        return found

    monkeypatch.setattr(ensemble_run, "order_units", hurried)
    monkeypatch.setattr(EnsembleRun, "restore_unit", restore_unit)
    submit(images, weights, tmp_path / "s.csv", early_stop="off")
    assert len(came_back) == 15
    order = [values[u] for u in came_back]
    assert order == sorted(order, reverse=True) and order[0] > order[-1]


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_valid_file(images: Path, weights: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cassava_kit.inference.options import RunOptions\n"
        "from cassava_kit.inference.run import run_submission\n"
        "run_submission(*sys.argv[1:4], options=RunOptions(device='cpu', batch_size=2, early_stop='off'))\n"
    )
    rng = np.random.default_rng(0)
    for n_writes in range(6):
        out = tmp_path / f"out{n_writes}" / "s.csv"
        process = start_python(["-c", code, images, weights, out])
        process.wait_until(out.exists)
        for _ in range(n_writes):  # until the file was replaced that often
            before = out.stat().st_mtime_ns
            process.wait_until(lambda out=out, before=before: out.stat().st_mtime_ns != before)
        time.sleep(float(rng.uniform(0, 0.1)))
        process.kill()
        assert check_answers(out, images).n_images == 21
