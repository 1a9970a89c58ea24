"""The client's calls against an API that fails as it is told: what is tried again, for how long, and what is said."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from cassava_kit.kaggle.send.client import KaggleClient
from cassava_kit.kaggle.send.official import upload_error
from cassava_kit.kaggle.send.remote import KaggleError, Limits
from cassava_kit.kaggle.send.retry import WaitPolicy, http_status, may_pass

SECRET = "PLANTED-SECRET-0123456789"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def refused(status: int, text: str = "", **headers: str) -> requests.HTTPError:
    """Return the error that the client raises for an answer."""
    response = requests.Response()
    response.status_code, response._content = status, text.encode()
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return requests.HTTPError(f"{status} for url: https://kaggle/data?Signature={SECRET[:6]}&x=1", response=response)


class Api:
    """Answers every method by the outcomes in turn, the last one again and again; errors are raised."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes, self.calls = list(outcomes), list[tuple[Any, ...]]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls.append((name, *arguments))
            outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
            if callable(outcome):
                outcome = outcome()
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return call


def client(api: Any, time: Time | None = None, **limits: float) -> tuple[KaggleClient, list[str]]:
    """Return a client and what it says."""
    time, said = time or Time(), list[str]()
    waits = WaitPolicy(sleep=time.sleep, clock=lambda: time.now, **limits)  # type: ignore[arg-type]
    return KaggleClient("leaves", waits=waits, say=said.append, api=api), said


COMPLETE = SimpleNamespace(status=SimpleNamespace(name="COMPLETE"), failure_message=None)
LOST = requests.ConnectionError("Connection aborted.")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_an_answer_of_4xx_is_not_tried_again(status: int) -> None:
    api = Api(refused(status, "no"))
    with pytest.raises(KaggleError, match=f"status of me/k failed: {status}"):
        client(api)[0].kernel_status("me/k")
    assert len(api.calls) == 1


@pytest.mark.parametrize("failure", [refused(500), refused(503), refused(429), LOST, TimeoutError(110, "timed out")])
def test_what_may_pass_is_tried_again_after_growing_pauses(failure: Exception) -> None:
    time = Time()
    api = Api(failure, failure, failure, COMPLETE)
    assert client(api, time)[0].kernel_status("me/k") == ("complete", "")
    assert len(api.calls) == 4 and time.now == 2 + 4 + 8


def test_kaggle_says_how_long_to_wait() -> None:
    time = Time()
    client(Api(refused(429, Retry_After="17"), COMPLETE), time)[0].kernel_status("me/k")
    assert time.now == 17


@pytest.mark.parametrize("failure", [refused(503), LOST])
def test_a_wait_survives_an_outage_of_an_hour(failure: Exception) -> None:
    """The pauses stay within a minute, so that the end of the outage is noticed."""
    time = Time()
    api = Api(COMPLETE, lambda: failure if time.now < 3600 else COMPLETE)
    remote, said = client(api, time)
    remote.kernel_status("me/k")
    assert remote.kernel_status("me/k") == ("complete", "") and 3600 <= time.now <= 3660
    assert len(said) < 70


def test_an_outage_without_end_ends() -> None:
    time = Time()
    remote, _ = client(Api(COMPLETE, LOST), time)
    remote.kernel_status("me/k")
    with pytest.raises(KaggleError, match="Kaggle does not answer"):
        remote.kernel_status("me/k")
    assert 7200 - 60 <= time.now <= 7200


def test_without_any_answer_so_far_it_gives_up_within_minutes() -> None:
    time = Time()
    with pytest.raises(KaggleError, match="Kaggle does not answer"):
        client(Api(LOST), time)[0].kernel_status("me/k")
    assert time.now < 120


def test_a_call_that_changes_something_is_not_repeated_for_hours_where_kaggle_answers(notebook: Path) -> None:
    """A notebook that makes Kaggle fail would be pushed again and again."""
    time = Time()
    api = Api(COMPLETE, refused(500))
    remote, _ = client(api, time)
    remote.kernel_status("me/k")
    remote.kernel_version = lambda kernel, source: None  # type: ignore[method-assign]
    with pytest.raises(KaggleError, match="pushing me/k failed: 500"):
        remote.push_kernel(notebook)
    assert len(api.calls) == 1 + 6 and time.now < 120


def test_what_a_push_can_do_without_is_not_waited_for() -> None:
    time = Time()
    remote, _ = client(Api(COMPLETE, refused(500)), time)
    remote.kernel_status("me/k")
    assert remote.gpu_hours_left() is None and time.now < 120


def upload(remote: KaggleClient, tmp_path: Path) -> None:
    (tmp_path / "dataset-metadata.json").write_text(json.dumps({"id": "me/d"}))
    remote.create_version(tmp_path, "build", None)


def test_an_upload_that_kaggle_answered_with_500_is_tried_again(tmp_path: Path) -> None:
    api = Api(upload_error("Upload unsuccessful: a", refused(500).response), SimpleNamespace(error="", status="ok"))
    remote, said = client(api)
    remote.dataset_version = lambda dataset: None  # type: ignore[method-assign]
    upload(remote, tmp_path)
    assert len(api.calls) == 2 and "HTTP 500" in said[0]


def test_an_upload_that_kaggle_refused_is_not(tmp_path: Path) -> None:
    api = Api(upload_error("Upload unsuccessful: a", refused(400).response))
    remote, _ = client(api)
    remote.dataset_version = lambda dataset: None  # type: ignore[method-assign]
    with pytest.raises(KaggleError, match="Upload unsuccessful: a: HTTP 400"):
        upload(remote, tmp_path)
    assert len(api.calls) == 1


@pytest.mark.parametrize("answer", [500, 400, None])
def test_the_official_client_is_made_to_say_why_an_upload_failed(
    answer: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against its own code, which raises a ValueError without a cause."""
    for name, value in (("CONFIG_DIR", str(tmp_path)), ("USERNAME", "me"), ("KEY", "a-key-of-no-use")):
        monkeypatch.setenv(f"KAGGLE_{name}", value)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    from kaggle.api.kaggle_api_extended import ResumableUploadContext
    from kagglesdk.blobs.types.blob_api_service import ApiBlobType, ApiStartBlobUploadResponse

    from cassava_kit.kaggle.send.official import make_official_api

    def put(*arguments: Any, **options: Any) -> requests.Response:
        if answer is None:
            raise requests.ConnectionError("reset")
        return refused(answer).response

    started = ApiStartBlobUploadResponse.from_dict({"token": "t", "createUrl": "http://localhost/upload"})
    blobs = SimpleNamespace(blob_api_client=SimpleNamespace(start_blob_upload=lambda request: started))
    api, folder, request = make_official_api(), tmp_path / "data", SimpleNamespace(files=[])
    monkeypatch.setattr(requests.Session, "put", put)
    monkeypatch.setattr(api, "build_kaggle_client", lambda: contextlib.nullcontext(SimpleNamespace(blobs=blobs)))
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"abc")
    with pytest.raises(OSError) as caught, ResumableUploadContext() as context:
        api.upload_files(request, None, str(folder), ApiBlobType.DATASET, context, quiet=True)
    assert http_status(caught.value) == answer and may_pass(caught.value) == (answer != 400)


@pytest.mark.parametrize(
    "failure",
    [
        ValueError(f"refused: key {SECRET}"),
        refused(400, f'{{"message": "the key {SECRET} is wrong"}}'),
        OSError(13, f"Permission denied: {SECRET}"),
        KeyError(SECRET),
        SystemExit(1),
    ],
)
def test_an_error_of_the_client_never_holds_a_secret(failure: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)

    def fails() -> BaseException:
        print(f"Authorization: {SECRET}")
        return failure

    with pytest.raises(KaggleError) as error:
        client(Api(fails))[0].kernel_status("me/k")
    assert SECRET not in str(error.value) and error.value.__cause__ is None
    assert "Signature=" not in str(error.value)


@pytest.mark.parametrize("before", range(180, 420, 20))
def test_nor_a_part_of_one_where_the_text_is_cut(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)

    def exits() -> BaseException:
        print(f"{SECRET}{'-' * before}")
        return SystemExit(1)

    for failure in (refused(400, "-" * before + SECRET), exits, ValueError("-" * before + SECRET)):
        with pytest.raises(KaggleError) as error:
            client(Api(failure))[0].kernel_status("me/k")
        assert not [n for n in range(len(SECRET) - 8) if SECRET[n : n + 9] in str(error.value)]


def test_nor_does_what_is_said_before_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    failure = requests.ConnectionError(f"HTTPSConnection: Bearer {SECRET} to /files/a?X-Sig=abc reset")
    remote, said = client(Api(failure, COMPLETE))
    remote.kernel_status("me/k")
    assert said and not [line for line in said if SECRET in line or "X-Sig" in line]


def test_nor_do_logs_failure_messages_and_fetched_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", SECRET)
    assert client(Api(json.dumps([{"data": f"token {SECRET}\n"}])))[0].kernel_log("me/k") == "token ***\n"
    assert client(Api(f"token {SECRET}"))[0].kernel_log("me/k") == "token ***"
    failed = SimpleNamespace(status=SimpleNamespace(name="ERROR"), failure_message=f"bad {SECRET}")
    assert client(Api(failed))[0].kernel_status("me/k") == ("error", "bad ***")
    (tmp_path / "k.log").write_text(f"token {SECRET}")
    client(Api(([], None)))[0].kernel_output("me/k", tmp_path, ".*")
    assert (tmp_path / "k.log").read_text() == "token ***"


def test_nor_do_they_hold_signed_addresses(tmp_path: Path) -> None:
    signed = "got https://storage/f.csv?Expires=9&Signature=abc/def+g= in 2 s"
    for log in (json.dumps([{"data": signed}]), signed):
        assert client(Api(log))[0].kernel_log("me/k") == "got https://storage/f.csv?*** in 2 s"
    (tmp_path / "k.log").write_text(json.dumps([{"data": f'{signed[:-7]}\n"next" {signed}'}]))
    client(Api(([], None)))[0].kernel_output("me/k", tmp_path, ".*")
    written = json.loads((tmp_path / "k.log").read_text())[0]["data"]
    assert written == 'got https://storage/f.csv?***\n"next" got https://storage/f.csv?*** in 2 s'


def reply(**fields: Any) -> SimpleNamespace:
    """Return an answer of HTTP 200 and exit code 0."""
    return SimpleNamespace(**{"error": "", "status": "ok", "version_number": 4} | fields)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A folder with a notebook to push."""
    (tmp_path / "n.ipynb").write_text('{"cells": []}')
    (tmp_path / "kernel-metadata.json").write_text(json.dumps({"id": "me/k", "code_file": "n.ipynb"}))
    return tmp_path


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (reply(error="Maximum batch GPU session count of 2 reached."), "two GPU sessions are already running"),
        (reply(invalid_dataset_sources=["me/d"]), "dataset source refused: me/d"),
        (reply(invalid_competition_sources=["leaves"]), "competition source refused: leaves: join the competition"),
        (reply(invalid_kernel_sources=["me/k", "me/other"]), "kernel source refused: me/other"),
    ],
)
def test_a_reply_that_complains_is_an_error_although_its_status_is_200(
    notebook: Path, answer: Any, message: str
) -> None:
    with pytest.raises(KaggleError, match=f"pushing me/k failed: .*{message}"):
        client(Api(answer))[0].push_kernel(notebook)
    assert client(Api(reply(invalid_kernel_sources=["me/k"])))[0].push_kernel(notebook) == 4, (
        "its own, before a first run"
    )


def test_a_dataset_whose_creation_failed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "dataset-metadata.json").write_text(json.dumps({"id": "me/d"}))
    for answer, message in (
        (reply(status="error"), "error"),
        (reply(error="Dataset creation error"), "creation error"),
    ):
        remote, _ = client(Api(answer))
        with pytest.raises(KaggleError, match=f"creating me/d failed: .*{message}"):
            remote.create_dataset(tmp_path)
        with pytest.raises(KaggleError, match=f"new version of me/d failed: .*{message}"):
            remote.create_version(tmp_path, "build", 1)
    with pytest.raises(KaggleError, match=r"submitting me/k version 3 failed: .*limit of 5 per day.*after midnight"):
        client(Api(reply(ref=0, message="Submission limit of 5 per day reached")))[0].submit("me/k", 3, "build")


def test_a_call_whose_answer_is_lost_is_not_made_twice(notebook: Path) -> None:
    api = Api(LOST, LOST, reply(version_number=9))
    remote, _ = client(api)
    remote.kernel_version = lambda kernel, source: 7  # type: ignore[method-assign]
    assert remote.push_kernel(notebook, newer_than=6) == 7 and len(api.calls) == 1
    assert remote.push_kernel(notebook, newer_than=7) == 9, "version 7 was there before"


def test_a_version_is_asked_for_by_its_number(tmp_path: Path) -> None:
    api = Api(COMPLETE, "log", ([], None))
    remote, _ = client(api)
    remote.kernel_status("me/k", 3)
    remote.kernel_log("me/k", 3)
    remote.kernel_output("me/k", tmp_path, ".*", version=3)
    assert [call[1] for call in api.calls] == ["me/k/3"] * 3
    remote.kernel_output("me/k", tmp_path, ".*")
    assert api.calls[-1][1] == "me/k"


def test_a_status_that_the_client_does_not_know_is_one_line() -> None:
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelSessionStatusResponse

    unknown = Api(lambda: ApiGetKernelSessionStatusResponse.from_dict({"status": "PREEMPTED"}))
    with pytest.raises(KaggleError, match=r"the reply holds 'PREEMPTED', .*pip install -U kaggle"):
        client(unknown)[0].kernel_status("me/k")
    missing = SimpleNamespace(status=None, failure_message=None)
    with pytest.raises(KaggleError, match="the reply holds none"):
        client(Api(missing))[0].kernel_status("me/k")


@pytest.mark.parametrize(("counts", "left"), [((2, 9, 3), 3), ((5, 9, 0), 0), ((0, 0, 5), 5), ((0, 0, 0), None)])
def test_submissions_left_today(counts: tuple[int, int, int], left: int | None) -> None:
    today, total, allowed = counts
    limits = SimpleNamespace(num_today=today, num_total=total, num_allowed_now=allowed)
    found = client(Api(limits))[0].limits()
    assert (found and found.left) == left


def test_a_client_that_knows_no_limits_tells_none() -> None:
    assert client(SimpleNamespace())[0].limits() is None
    assert client(Api(refused(404)))[0].limits() is None
    assert client(Api(SimpleNamespace(num_allowed_now=2)))[0].limits() == Limits(0, 0, 2), "fields that are missing"


def test_the_files_of_a_dataset_are_listed_over_several_pages() -> None:
    def page(name: str, size: int, token: str) -> SimpleNamespace:
        return SimpleNamespace(files=[SimpleNamespace(name=name, total_bytes=size)], next_page_token=token)

    assert client(Api(page("a", 1, "2"), page("b", 2, "")))[0].dataset_sizes("me/d") == {"a": 1, "b": 2}
    assert client(Api(SimpleNamespace(files=None, next_page_token="")))[0].dataset_sizes("me/d") is None


@pytest.mark.parametrize("joined", [True, False])
def test_whether_the_rules_are_accepted(joined: bool) -> None:
    calls = SimpleNamespace(get_competition=lambda request: SimpleNamespace(user_has_entered=joined))
    sdk = contextlib.nullcontext(SimpleNamespace(competitions=SimpleNamespace(competition_api_client=calls)))
    assert client(SimpleNamespace(build_kaggle_client=lambda: sdk))[0].rules_accepted() is joined
    assert client(Api(refused(403)))[0].rules_accepted() is None


class Submissions:
    """Stands for the client's submissions: 45, newest first, in pages of 20."""

    def __init__(self) -> None:
        self.pages = list[str]()

    @contextlib.contextmanager
    def build_kaggle_client(self) -> Iterator[Any]:
        yield SimpleNamespace(competitions=SimpleNamespace(competition_api_client=self))

    def list_submissions(self, request: Any) -> Any:
        self.pages.append(request.page_token)
        start = int(request.page_token or 0)
        listed = [
            SimpleNamespace(
                ref=n,
                description=f"number {n}",
                status=SimpleNamespace(name="COMPLETE"),
                public_score=".9",
                error_description=None,
            )
            for n in range(start, min(start + 20, 45))
        ]
        return SimpleNamespace(submissions=listed, next_page_token=str(start + 20) if start + 20 < 45 else "")


def test_submissions_of_further_pages_are_found_and_no_page_is_asked_for_in_vain() -> None:
    api = Submissions()
    remote, _ = client(api)
    assert [each.ref for each in remote.submissions()] == list(range(45)) and api.pages == ["", "20", "40"]
    api.pages.clear()
    assert next(each for each in remote.submissions() if each.ref == 21).description == "number 21"
    assert api.pages == ["", "20"]
