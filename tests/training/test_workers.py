"""Jobs in processes of their own: results, order, failures, and that nothing stays when the program ends."""

import multiprocessing
import os
import signal
import threading
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from jobs import die, double, fail, note_start

from cassava_kit.data.progress import Screen
from cassava_kit.errors import Stopped, UserError
from cassava_kit.training.workers import Job, raise_failed, ready_workers, run_jobs, stopped_after


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for (a zombie) counts too."""
    return Path(f"/proc/{pid}").exists()


# The tests' own server of forked programs lives as long as the session.
EARLIER: set[int | None] = set()


@pytest.fixture(autouse=True)
def _earlier_children():
    EARLIER.clear()
    EARLIER.update(process.pid for process in multiprocessing.active_children())


def children() -> list[BaseProcess]:
    """Return this process's children that the test started."""
    return [process for process in multiprocessing.active_children() if process.pid not in EARLIER]


@pytest.mark.parametrize("at_once", [1, 2])
def test_results_come_by_name_and_what_waits_comes_after(at_once):
    ended: list[str] = []
    jobs = [
        Job("c", double, (3,), after=("a",)),
        Job("a", double, (1,)),
        Job("b", double, (2,)),
        Job("d", double, (4,), after=("c", "b")),
    ]
    found = run_jobs(jobs, at_once, ended=lambda name, _: ended.append(name))
    assert {name: result[0] for name, result in found.items()} == {"a": 2, "b": 4, "c": 6, "d": 8}
    assert ended.index("a") < ended.index("c") < ended.index("d") and ended.index("b") < ended.index("d")
    processes = {result[1] for result in found.values()}
    assert (processes == {os.getpid()}) if at_once == 1 else (os.getpid() not in processes and len(processes) <= 2)
    assert not children() and not any(is_alive(pid) for pid in processes - {os.getpid()})


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_failing_job_is_named_and_the_others_end(at_once, capsys):
    ended: list[str] = []
    jobs = [
        Job("resnet fold0", fail, ("the loss is not a number",)),
        Job("needs it", double, (1,), after=("resnet fold0",)),
        Job("resnet fold1", double, (2,)),
        Job("resnet fold2", double, (3,)),
    ]
    with pytest.raises(UserError) as caught:
        run_jobs(jobs, at_once, ended=lambda name, _: ended.append(name))
    said = str(caught.value)
    assert "resnet fold0 failed: the loss is not a number" in said and "needs it failed: it needs resnet fold0" in said
    assert "the other 2 ended" in said and sorted(ended) == ["resnet fold1", "resnet fold2"]
    assert "resnet fold0 failed: the loss is not a number" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback_and_a_killed_process_is_named():
    jobs = [Job("killed", die), Job("bug", fail, ("unforeseen", KeyError)), Job("well", double, (1,))]
    with pytest.raises(RuntimeError, match="killed failed: its process ended by signal 9") as caught:
        run_jobs(jobs, 2)
    assert "bug failed: 'unforeseen'" in str(caught.value) and 'jobs.py", line' in str(caught.value)
    assert not children()


def test_jobs_that_all_fail_alike_fail_as_one():
    errors = {"fold0": UserError("no such file"), "fold1": UserError("no such file")}
    with pytest.raises(UserError, match=r"^no such file$"):
        raise_failed(errors, 2)
    with pytest.raises(UserError, match="fold0, fold1 failed: no such file; the other 1 ended"):
        raise_failed(errors, 3)


def test_a_stopped_program_leaves_no_process_and_says_after_which_epochs(tmp_path, monkeypatch, interruptible):
    folders = [tmp_path / name for name in ("resnet fold0", "resnet fold1")]
    told = threading.Semaphore(0)
    monkeypatch.setattr(Screen, "tell", lambda screen, text: told.release())
    for folder in folders:
        folder.mkdir()

    def stop_when_both_run() -> None:
        for _ in folders:  # what a job tells comes after its epoch
            told.acquire(timeout=300)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop_when_both_run)
    thread.start()
    with pytest.raises(KeyboardInterrupt, match="resnet fold0 after epoch 3, resnet fold1 after epoch 3; the same com"):
        run_jobs([Job(folder.name, partial(note_start, folder)) for folder in folders], 2)
    thread.join()
    pids = [int(file.name) for folder in folders for file in folder.iterdir()]
    assert len(pids) == 2 and not any(is_alive(pid) for pid in pids) and not children()


def test_what_is_said_of_stopped_jobs():
    assert stopped_after({}) == "stopped; the same command goes on"
    assert (
        stopped_after({"a": 2, "b": 0})
        == "stopped a after epoch 2, b before the first epoch ended; the same command goes on"
    )
    assert (Stopped().code, Stopped(number=15).code) == (130, 143)


def test_waiting_threads_sleep_in_every_process(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert run_jobs([Job(str(k), os.getenv, ("OMP_WAIT_POLICY",)) for k in range(2)], 2) == dict.fromkeys(
        "01", "PASSIVE"
    )


def test_workers_that_are_ready_take_the_jobs_and_none_stays(capfd):
    with ready_workers(2, "no_such_module"):
        started = {process.pid for process in children()}
        found = run_jobs([Job(str(k), double, (k,)) for k in range(4)], 2)
        assert len(started) == 2 and {pid for _, pid in found.values()} <= started
    with ready_workers(2, "json"):
        assert len(children()) == 2  # nothing came to be done
    assert not children() and "Traceback" not in capfd.readouterr().err
