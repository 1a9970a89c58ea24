"""Pushing and submitting against a Kaggle in memory: what is sent once, taken up again, refused, and asked before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cassava_kit.errors import UserError
from cassava_kit.files import read_json, sha256_bytes, write_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA, find_kernel
from cassava_kit.kaggle.pack.manifest import MANIFESTS, write_manifest
from cassava_kit.kaggle.send.datasets import send_dataset
from cassava_kit.kaggle.send.job import JOURNAL, PushJob, one_push
from cassava_kit.kaggle.send.push import push
from cassava_kit.kaggle.send.remote import KaggleError, Limits, Submission
from cassava_kit.kaggle.send.retry import WaitPolicy
from cassava_kit.kaggle.send.submit import submit, wait_for_score, was_submitted

DATASET, KERNEL = "me/kit", "me/kit-ensemble-submission"
ANSWERS = b"image_id,label\n1.jpg,3\n"
# The report of a run that did not use all of its members.
LEFT_OUT = {
    "error": None,
    "prior_alone": False,
    "left_out": {"b": "damaged"},
    "members_used": [{"member": "a"}],
    "images_failed": {},
}


class Killed(BaseException):
    """Ends the program in the middle of a call."""


class Memory:
    """A Kaggle in memory: one dataset, one kernel with its versions, and submissions."""

    def __init__(self) -> None:
        self.calls = list[str]()
        self.kill_after = ""  # the call that is carried out and not answered
        self.status, self.served, self.number = "ready", "old", 1
        self.versions, self.statuses = list[str](), dict[int, list[str]]()
        self.output = {"submission.csv": ANSWERS}
        self.left: int | None = 3
        self.made, self.scored = list[Submission](), "complete"

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name == self.kill_after:
            raise Killed

    def owner(self) -> str:
        return "me"

    def gpu_hours_left(self) -> float | None:
        return 30.0

    def dataset_status(self, dataset: str) -> str | None:
        return self.status

    def dataset_build(self, dataset: str, manifest: str) -> str | None:
        return self.served

    def dataset_sizes(self, dataset: str) -> dict[str, int] | None:
        return None

    def dataset_version(self, dataset: str) -> int | None:
        return self.number

    def create_dataset(self, folder: Path) -> None:
        self._called("create")

    def create_version(self, folder: Path, notes: str, before: int | None) -> None:
        """Kaggle goes on serving the version before while it processes this one."""
        self.number, self.status = self.number + 1, "blobsreceived"
        self._called("version")

    def push_kernel(self, folder: Path, newer_than: int = 0) -> int:
        self.versions.append((folder / "ensemble-submission.ipynb").read_text())
        self._called("push")
        return len(self.versions)

    def kernel_version(self, kernel: str, source: str) -> int | None:
        return len(self.versions) if self.versions and self.versions[-1] == source else None

    def kernel_status(self, kernel: str, version: int | None = None) -> tuple[str, str]:
        """Without a version it is the status of an earlier run, as Kaggle says for a while after a push."""
        self.calls.append(f"status {version}")
        states = self.statuses.setdefault(version or 0, ["complete"])
        return (states.pop(0) if len(states) > 1 else states[0]), ""

    def kernel_log(self, kernel: str, version: int | None = None) -> str:
        return f"log of {version}"

    def kernel_output(self, kernel: str, out: Path, pattern: str, *, version: int | None = None) -> None:
        self.calls.append(f"output {version}")
        for name, content in self.output.items():
            (out / name).write_bytes(content)

    def limits(self) -> Limits | None:
        return None if self.left is None else Limits(2, 9, self.left)

    def submit(self, kernel: str, version: int, description: str) -> int:
        self._called("submit")
        self.made.append(Submission(100 + len(self.made), description, self.scored, "0.9", "Timeout"))
        return self.made[-1].ref

    def submissions(self) -> Iterator[Submission]:
        yield from self.made[::-1]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of one dataset and a notebook, as small as can be."""
    home = tmp_path / "bundle"
    for kind, facts in (("kit", {"wheels": {}, "tested": {}}), ("weights", {})):
        (home / kind).mkdir(parents=True)
        (home / kind / "a.bin").write_bytes(b"abc")
        write_manifest(home / kind, kind, facts)
        write_json(home / kind / METADATA_FILE, {"id": DATASET})
    (home / "kernel").mkdir()
    notebook = {"cells": [{"cell_type": "code", "source": ["a = 1\n", "b = 2"]}], "metadata": {}}
    write_json(home / "kernel" / "ensemble-submission.ipynb", notebook)
    metadata = {
        "id": KERNEL,
        "code_file": "ensemble-submission.ipynb",
        "enable_gpu": True,
        "dataset_sources": [DATASET],
    }
    write_json(home / "kernel" / KERNEL_METADATA, metadata)
    return Bundle(home / "kit", home / "weights", home / "kernel", "b" * 64, find_kernel("ensemble-submission"))


@pytest.fixture
def kaggle() -> Memory:
    return Memory()


class Clock:
    """Time that only sleeping moves; `ready_at` is when the dataset becomes ready and serves `build`."""

    def __init__(self, kaggle: Memory, build: str) -> None:
        self.now, self.ready_at, self.kaggle, self.build = 0.0, float("inf"), kaggle, build

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self.now >= self.ready_at:
            self.kaggle.status, self.kaggle.served = "ready", self.build


@pytest.fixture
def clock(kaggle: Memory, bundle: Bundle) -> Clock:
    return Clock(kaggle, read_json(bundle.kit_dir / MANIFESTS["kit"])["build_id"])


@pytest.fixture
def job(bundle: Bundle, kaggle: Memory, clock: Clock) -> PushJob:
    return PushJob(bundle, kaggle, WaitPolicy(sleep=clock.sleep, clock=lambda: clock.now), say=[].append)  # type: ignore[arg-type]


def send_kit(job: PushJob) -> None:
    send_dataset(job, job.bundle.kit_dir, "kit")


def test_nothing_is_uploaded_twice_while_a_version_is_processed(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    for _ in range(3):
        with pytest.raises(KaggleError, match=r"still processing .*nothing is uploaded twice"):
            send_kit(job)
    assert kaggle.calls == ["version"]
    clock.ready_at = clock.now + 100
    send_kit(job)
    assert kaggle.calls == ["version"]


def test_nor_after_a_kill_right_behind_the_upload(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    kaggle.kill_after = "version"
    with pytest.raises(Killed):
        send_kit(job)
    clock.ready_at = 100
    send_kit(job)
    assert kaggle.calls == ["version"] and kaggle.served == clock.build


@pytest.mark.parametrize("number", [None, 1])
def test_nor_where_kaggle_counts_a_version_only_when_it_is_processed(
    job: PushJob, kaggle: Memory, clock: Clock, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    monkeypatch.setattr(kaggle, "dataset_version", lambda dataset: number)
    kaggle.kill_after = "version"
    with pytest.raises(Killed):
        send_kit(job)
    clock.ready_at = 100
    send_kit(job)
    assert kaggle.calls == ["version"]


def test_nor_where_it_is_ready_and_the_old_manifest_is_still_served(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    kaggle.kill_after = "version"
    with pytest.raises(Killed):
        send_kit(job)
    kaggle.status, clock.ready_at = "ready", 100
    send_kit(job)
    assert kaggle.calls == ["version"]


def test_an_upload_that_was_killed_before_it_arrived_is_made_again(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    kaggle.kill_after = "version"
    with pytest.raises(Killed):
        send_kit(job)
    kaggle.kill_after, kaggle.number, kaggle.status, clock.ready_at = "", 1, "ready", 100  # as if it had not
    send_kit(job)
    assert kaggle.calls == ["version", "version"]


def test_a_version_that_came_after_ours_is_replaced(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    clock.ready_at = 100
    send_kit(job)
    kaggle.number, kaggle.served, clock.ready_at = 3, "somebody's", clock.now + 100
    send_kit(job)
    assert kaggle.calls == ["version", "version"]


def test_a_version_that_kaggle_could_not_process_is_sent_again(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    with pytest.raises(KaggleError, match="still processing"):
        send_kit(job)
    kaggle.status = "failed"
    with pytest.raises(KaggleError, match="could not process"):
        send_kit(job)
    clock.ready_at = clock.now + 10
    send_kit(job)
    assert kaggle.calls == ["version", "version"]


def test_a_version_that_is_never_served_is_sent_again_when_asked(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    with pytest.raises(KaggleError, match="still processing"):
        send_kit(job)
    kaggle.status = "ready"
    with pytest.raises(KaggleError, match=r"serves another build .* --again to upload it once more"):
        send_kit(job)
    assert kaggle.calls == ["version"]
    clock.ready_at = clock.now + 10
    send_kit(replace(job, again=True))
    assert kaggle.calls == ["version", "version"]


def test_the_journal_of_an_earlier_kit_is_believed(job: PushJob, kaggle: Memory, clock: Clock) -> None:
    write_json(job.bundle.home / JOURNAL, {DATASET: clock.build})
    kaggle.status, clock.ready_at = "blobsreceived", 100
    send_kit(job)
    assert not kaggle.calls


@pytest.fixture
def ready(job: PushJob, kaggle: Memory, monkeypatch: pytest.MonkeyPatch) -> PushJob:
    """One whose datasets are there."""
    monkeypatch.setattr("cassava_kit.kaggle.send.push.send_dataset", lambda *given: None)
    return job


def pushes(kaggle: Memory) -> int:
    return kaggle.calls.count("push")


def test_a_notebook_that_says_the_same_is_not_another_one(ready: PushJob, kaggle: Memory) -> None:
    push(ready)
    for name in ("ensemble-submission.ipynb", KERNEL_METADATA):
        path = ready.bundle.kernel_dir / name
        path.write_text(json.dumps(dict(reversed(read_json(path).items())), indent=7))
    notebook = ready.bundle.notebook
    content = read_json(notebook)
    content["cells"][0]["source"] = "a = 1\nb = 2"
    notebook.write_text(json.dumps(content))
    push(ready)
    assert pushes(kaggle) == 1
    content["cells"][0]["source"] = "a = 1\nb = 3"
    notebook.write_text(json.dumps(content))
    push(ready)
    metadata = read_json(ready.bundle.kernel_dir / KERNEL_METADATA)
    write_json(ready.bundle.kernel_dir / KERNEL_METADATA, metadata | {"dataset_sources": []})
    push(ready)
    assert pushes(kaggle) == 3


def test_a_push_that_was_killed_takes_up_the_same_session(ready: PushJob, kaggle: Memory) -> None:
    kaggle.kill_after, kaggle.statuses = "push", {1: ["running", "running", "complete"]}
    with pytest.raises(Killed):
        push(ready)
    assert push(ready).version == 1 and pushes(kaggle) == 1


def test_a_finished_version_before_ours_is_not_taken_for_it(ready: PushJob, kaggle: Memory) -> None:
    """Without a version the status is of the run before: complete."""
    kaggle.statuses = {1: ["queued", "running", "running", "complete"]}
    push(ready)
    assert [call for call in kaggle.calls if call != "push"] == ["status 1"] * 4 + ["output 1"]


@pytest.mark.parametrize("status", ["error", "cancel_requested", "cancel_acknowledged"])
def test_a_run_that_failed_or_was_cancelled_ends_the_wait(ready: PushJob, kaggle: Memory, status: str) -> None:
    kaggle.statuses = {1: ["running", status]}
    with pytest.raises(KaggleError, match=f"ended with {status}: .*push again"):
        push(ready)
    assert kaggle.calls.count("status 1") == 2 and "output 1" not in kaggle.calls
    push(ready)
    assert pushes(kaggle) == 2


def test_a_log_that_cannot_be_fetched_does_not_hide_why_the_run_failed(ready: PushJob, kaggle: Memory) -> None:
    def no_log(kernel: str, version: int | None = None) -> str:
        raise KaggleError("log of me/k failed: 404")

    kaggle.statuses, kaggle.kernel_log = {1: ["error"]}, no_log  # type: ignore[method-assign]
    said = list[str]()
    with pytest.raises(KaggleError, match="ended with error"):
        push(replace(ready, say=said.append))
    assert "log of me/k failed: 404" in said[-1]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"submission.csv": b"image_id,label\n1.jpg,9\n"}, "not submitted: .*got '9'"),
        ({"submission.csv": b"image_id,label\n"}, "has no rows"),
        ({"submission.csv": ANSWERS, "run.json": b'{"members": 3}'}, "no report of a submission run"),
        ({"submission.csv": ANSWERS, "run.json": b"[1, 2]"}, "no report of a submission run"),
        ({"submission.csv": ANSWERS, "run.json": b"<html>"}, "not submitted: .*run.json"),
        ({"run.json": b"{}"}, "left no submission.csv"),
        (
            {"submission.csv": ANSWERS, "run.json": json.dumps(LEFT_OUT).encode()},
            "not submitted: b was left out: damaged",
        ),
    ],
)
def test_a_bad_output_names_the_way_on(
    ready: PushJob, kaggle: Memory, output: dict[str, bytes], message: str, bundle: Bundle
) -> None:
    kaggle.output = output
    for _ in range(2):
        with pytest.raises(KaggleError, match=message) as error:
            push(ready)
        assert "--again" in str(error.value) and "\n" not in str(error.value)
    kaggle.output = {"submission.csv": ANSWERS}
    pushed = push(replace(ready, again=True))
    assert pushed.version == 2 and pushes(kaggle) == 2


def test_after_a_submission_error_again_goes_on(ready: PushJob, kaggle: Memory) -> None:
    kaggle.scored, ready = "error", asked(ready, True)[0]
    for _ in range(2):
        with pytest.raises(KaggleError, match=r"not scored: Timeout; .*submit --again"):
            submit(ready, push(ready))
    kaggle.scored, again = "complete", replace(ready, again=True)
    assert submit(again, push(again)).score == "0.9"
    assert [each.description[-9:] for each in kaggle.made] == ["version 1", "version 2"]


def asked(job: PushJob, answer: bool) -> tuple[PushJob, list[str]]:
    """Return a job whose user answers, and the questions."""
    questions = list[str]()
    return replace(job, confirm=lambda question: questions.append(question) or answer), questions  # type: ignore[func-returns-value]


@pytest.mark.parametrize(("left", "last"), [(None, False), (5, False), (2, False), (1, True)])
def test_a_submission_is_asked_for_once_and_the_last_of_the_day_by_name(
    ready: PushJob, kaggle: Memory, left: int | None, last: bool
) -> None:
    kaggle.left = left
    job, heard = asked(ready, True)
    pushed = push(job)
    submit(job, pushed)
    submit(job, pushed)
    assert len(heard) == len(kaggle.made) == 1 and ("last submission of today" in heard[0]) is last


def test_without_consent_nothing_is_submitted_nor_beyond_the_limit(ready: PushJob, kaggle: Memory) -> None:
    kaggle.left = 1
    pushed = push(ready)
    with pytest.raises(KaggleError, match="not submitted: nobody agreed at a terminal; --yes"):
        submit(asked(ready, False)[0], pushed)
    kaggle.left = 0
    job, heard = asked(ready, True)
    with pytest.raises(KaggleError, match="no submission is left today"):
        submit(job, pushed)
    assert not kaggle.made and not heard


def test_what_is_known_is_said_before_the_question(ready: PushJob, kaggle: Memory, tmp_path: Path) -> None:
    """Limits, what waits, this build and this very file, and what the evidence lets one expect."""
    said = list[str]()
    job = replace(asked(ready, True)[0], say=said.append, ledger=tmp_path / "submissions.json")
    submit(job, push(job))
    first = next(line for line in said if line.startswith("submissions left"))
    assert first.splitlines() == [
        "submissions left today: 3 (2 made today); 9 made in all",
        "waiting for a score: none",
        "scored before: no",
        "expected public score: no out-of-fold evidence in the bundle",
    ]
    kaggle.made.append(Submission(7, "another", "pending", "", ""))
    digest = sha256_bytes(ANSWERS)
    entries = [{"name": "old", "evidence": "x", "ref": 5, "public_score": ".88", "file_sha256": digest}]
    write_json(job.ledger, {"submissions": entries})  # type: ignore[arg-type]
    again, heard = asked(replace(job, again=True), True)
    submit(again, push(again))
    second = [line for line in said if line.startswith("submissions left")][1].splitlines()
    assert second[1] == "waiting for a score: another (ref 7)" and heard[0].startswith("It was scored before. Submit")
    assert "this build, Cassava Kit build bbbbbbbbbbbb, version 1, public 0.9 (ref 100)" in second[2]
    assert "this very file (1 rows, which says little), as old, public .88 (ref 5)" in second[3]


def test_limits_of_all_submissions_are_named(ready: PushJob, kaggle: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "which is all that is left (99 made in all)" in str(Limits(1, 99, 1, by_total=True))
    monkeypatch.setattr(kaggle, "limits", lambda: Limits(0, 100, 0, by_total=True))
    with pytest.raises(KaggleError, match="no submission is left in all"):
        submit(ready, push(ready))


def test_of_two_submissions_with_one_description_ours_is_waited_for(ready: PushJob, kaggle: Memory) -> None:
    """Kaggle's order is not relied on: the reference decides."""
    job = asked(ready, True)[0]
    pushed = push(job)
    first = submit(job, pushed)
    made = kaggle.made[0]
    kaggle.made.insert(0, replace(made, ref=50, score="0.1"))
    kaggle.made.append(replace(made, ref=60, score="0.2"))
    found = wait_for_score(job, replace(first, status="pending", score=""))
    assert (found.ref, found.score) == (100, "0.9")


def test_a_changed_notebook_is_not_pushed_beside_one_that_runs(ready: PushJob, kaggle: Memory) -> None:
    push(ready)
    kaggle.statuses = {1: ["running"]}
    content = read_json(ready.bundle.notebook)
    content["cells"][0]["source"] = "a = 2"
    write_json(ready.bundle.notebook, content)
    with pytest.raises(KaggleError, match=f"not pushed: {KERNEL} version 1, .* is still running; wait for it, or stop"):
        push(ready)
    assert pushes(kaggle) == 1
    agreeing, heard = asked(ready, True)
    assert push(agreeing).version == 2 and "Push this one beside it?" in heard[0]


def test_a_bundle_is_pushed_by_one_process_at_a_time(bundle: Bundle) -> None:
    program = (
        "import sys; from pathlib import Path; from cassava_kit.kaggle.send.job import one_push\n"
        "from cassava_kit.kaggle.pack.bundle import Bundle; from cassava_kit.kaggle.pack.kernels import find_kernel\n"
        "home = Path(sys.argv[1]); b = Bundle(home / 'kit', home / 'weights', home / 'kernel', 'b', "
        "find_kernel('ensemble-submission'))\n"
        "with one_push(b):\n    print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(bundle.home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        message = rf"is being pushed already \(process {other.pid} on .*\); wait for it"
        with pytest.raises(UserError, match=message), one_push(bundle):
            pytest.fail("both hold it")
        other.kill()
        other.wait()
        with one_push(bundle), pytest.raises(UserError, match=f"process {os.getpid()}"), one_push(bundle):
            pytest.fail("both hold it")
    with one_push(bundle):
        pass


def test_a_submission_of_this_build_is_not_asked_for_again(ready: PushJob, kaggle: Memory) -> None:
    ready = asked(ready, True)[0]
    assert not was_submitted(ready)
    submit(ready, push(ready))
    assert was_submitted(ready) and not was_submitted(replace(ready, again=True))
    kaggle.made.clear()
    assert was_submitted(ready), "the journal says so"
    assert submit(ready, push(ready)).ref == 100 and not kaggle.made, "not made again, although no longer listed"
    (ready.bundle.home / JOURNAL).unlink()
    assert not was_submitted(ready)
