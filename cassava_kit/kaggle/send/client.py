"""The calls to Kaggle by its official client: `KaggleClient`.

Success is decided by the content of a reply, never by an exit code. `import kaggle` signs in and creates a folder, so
it is imported late. What the client prints is discarded: it may hold request headers, and says "successfully" where
the reply says otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.pack.credentials import collect_secrets, redact, strip_queries
from cassava_kit.kaggle.send.advice import NO_CREDENTIALS, with_advice
from cassava_kit.kaggle.send.notebook import code_cells
from cassava_kit.kaggle.send.official import make_official_api
from cassava_kit.kaggle.send.remote import KaggleError, Say, Submission
from cassava_kit.kaggle.send.retry import WaitPolicy, answer_text, http_status, may_pass, pause_before

T = TypeVar("T")
GONE = (403, 404)  # the answers for what does not exist or belongs to someone else
PAGE = 100  # submissions asked for at once
ARRIVED = object()  # replaces the lost answer of a call that was carried out


class KaggleClient:
    """Kaggle over the network. Every call retries HTTP 429, 5xx and lost connections; other errors are a KaggleError.

    `waits` says how long, `say` prints a line, `api` replaces the official client in tests.
    """

    def __init__(self, competition: str, *, waits: WaitPolicy | None = None, say: Say = print, api: Any = None) -> None:
        self.competition, self.waits, self.say = competition, waits or WaitPolicy(), say
        self._secrets = collect_secrets()
        self._api = api or self._sign_in()
        self._answered = False  # before the first answer a lost connection is no outage

    def _sign_in(self) -> Any:
        with self._quietly():
            try:
                return make_official_api()
            except ImportError as error:
                raise KaggleError(f"the Kaggle client does not start ({error}); run: pip install kaggle six") from None
            except SystemExit:
                raise KaggleError(NO_CREDENTIALS) from None
            except OSError as error:
                raise KaggleError(f"signing in failed: {self._explained(str(error))}") from None

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[io.StringIO]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said

    def _call(self, what: str, function: Callable[[], T], *, done: Callable[[], T | None] | None = None) -> T:
        """Return the answer of a call, repeated while its failure may pass.

        Calls that change something have a `done`: it returns the answer of a call that was carried out although the
        answer was lost, else None. Such a call is not repeated for hours where Kaggle answers with an error.
        """
        began = self.waits.clock()
        for attempt in count(1):
            with self._quietly() as said:
                try:
                    answer = function()
                    self._answered = True
                    return answer
                except KeyError as error:
                    unknown = self._cleaned(str(error))
                    raise KaggleError(
                        f"{what}: the reply holds {unknown}, which this version of the client does not know; "
                        "run: pip install -U kaggle, and call again: nothing is done twice"
                    ) from None
                except (OSError, ValueError, SystemExit) as error:  # requests' errors are OSErrors
                    failure = error
            pause = pause_before(failure, self.waits, attempt)
            waited = self.waits.clock() - began + pause
            if not may_pass(failure) or not self._goes_on(attempt, waited, failure, reads=done is None):
                break
            if done is not None and (found := done()) is not None:
                return found
            self.say(f"{what}: {self._said(failure)}; again in {pause:.0f} s")
            self.waits.sleep(pause)
        reason = f"{failure} {answer_text(failure)} {said.getvalue()[-300:] if isinstance(failure, SystemExit) else ''}"
        raise KaggleError(f"{what} failed: {self._explained(reason)}") from None

    def _goes_on(self, attempt: int, waited: float, failure: BaseException, *, reads: bool) -> bool:
        """Return whether to try again after `attempt` tries and `waited` seconds."""
        if attempt < self.waits.attempts:
            return True
        outlasts = self._answered and (reads or http_status(failure) is None)
        return outlasts and waited <= self.waits.outage

    def _said(self, error: BaseException) -> str:
        return " ".join(self._cleaned(str(error)).split())[:200]

    def _explained(self, reason: str) -> str:
        return with_advice(self._cleaned(reason), self.competition)

    def _cleaned(self, text: str) -> str:
        """Return the text without secrets and signed addresses; call it before the text is cut."""
        return redact(strip_queries(text), self._secrets)

    def _unless_gone(self, what: str, function: Callable[[], T]) -> T | None:
        """Return the answer, or None where the thing asked for does not exist."""

        def ask() -> T | None:
            try:
                return function()
            except OSError as error:
                if http_status(error) in GONE:
                    return None
                raise

        return self._call(what, ask)

    def owner(self) -> str:
        """Return the user name of the credentials."""
        name = self._api.get_config_value("username")
        if not name:
            raise KaggleError(NO_CREDENTIALS)
        return str(name)

    def gpu_hours_left(self) -> float | None:
        """Return the GPU hours left this week; None where Kaggle does not say."""
        try:
            with self._quietly():
                quota = self._api.quota_view().gpu_quota
            return max(0.0, (quota.total_time_allowed - quota.time_used).total_seconds() / 3600)
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def dataset_status(self, dataset: str) -> str | None:
        """Return `ready`, `failed`, or a step before them; None if the dataset does not exist."""
        return self._unless_gone(f"status of dataset {dataset}", lambda: str(self._api.dataset_status(dataset)))

    def dataset_build(self, dataset: str, manifest: str) -> str | None:
        """Return the build id in the manifest that Kaggle serves; None where it cannot be fetched."""

        def fetch() -> str | None:
            with tempfile.TemporaryDirectory() as folder:
                self._api.dataset_download_file(dataset, manifest, path=folder, force=True, quiet=True)
                found = next(Path(folder).iterdir(), None)
                return read_json(found).get("build_id") if found else None

        try:
            return self._unless_gone(f"manifest of {dataset}", fetch)
        except (KaggleError, AttributeError):
            return None

    def dataset_sizes(self, dataset: str) -> dict[str, int] | None:
        """Return name -> bytes of the files that Kaggle lists; None where it lists no file."""

        def ask() -> dict[str, int] | None:
            sizes: dict[str, int] = {}
            token = None
            while True:
                page = self._api.dataset_list_files(dataset, page_token=token, page_size=200)
                sizes |= {file.name: int(file.total_bytes) for file in page.files or []}
                token = page.next_page_token
                if not token:
                    return sizes or None

        try:
            return self._unless_gone(f"files of {dataset}", ask)
        except (KaggleError, AttributeError):
            return None

    def create_dataset(self, folder: Path) -> None:
        """Upload a new private dataset."""
        dataset = read_json(folder / METADATA_FILE)["id"]

        def done() -> Any:
            return ARRIVED if self.dataset_status(dataset) is not None else None

        what = f"creating {dataset}"
        reply = self._call(what, lambda: self._api.dataset_create_new(str(folder), quiet=True), done=done)
        self._believe(what, reply)

    def create_version(self, folder: Path, notes: str, before: int | None) -> None:
        """Upload a new version of a dataset, whose latest was `before`; older versions stay."""
        dataset = read_json(folder / METADATA_FILE)["id"]

        def done() -> Any:
            now = self.dataset_version(dataset)
            return ARRIVED if before is not None and now is not None and now > before else None

        what = f"new version of {dataset}"
        reply = self._call(what, lambda: self._api.dataset_create_version(str(folder), notes, quiet=True), done=done)
        self._believe(what, reply)

    def dataset_version(self, dataset: str) -> int | None:
        """Return the number of a dataset's latest version; None where Kaggle does not say."""

        def ask() -> int | None:
            from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

            request = ApiGetDatasetRequest()
            request.owner_slug, request.dataset_slug = dataset.split("/")
            with self._api.build_kaggle_client() as client:
                found = client.datasets.dataset_api_client.get_dataset(request)
            return int(found.current_version_number) or None

        try:
            return self._unless_gone(f"version of {dataset}", ask)
        except (KaggleError, AttributeError, TypeError):
            return None

    def _believe(self, what: str, reply: Any, *, forgiven: str = "") -> None:
        """Raise the error that a reply holds; its HTTP status may be 200 all the same.

        `forgiven` is a source that may be missing: a kernel's own output, before its first run.
        """
        listed = {
            name.removeprefix("invalid_").replace("_", " ")[:-1]: getattr(reply, name, None) or []
            for name in ("invalid_dataset_sources", "invalid_competition_sources", "invalid_kernel_sources")
        }
        refused = {kind: left for kind, names in listed.items() if (left := [n for n in names if n != forgiven])}
        error = getattr(reply, "error", None) or (
            "" if str(getattr(reply, "status", "")).lower() != "error" else "error"
        )
        if error or refused:
            parts = [error, *(f"{kind} refused: {', '.join(map(str, names))}" for kind, names in refused.items())]
            raise KaggleError(f"{what} failed: {self._explained('; '.join(filter(None, parts)))}")

    def push_kernel(self, folder: Path, newer_than: int = 0) -> int:
        """Save and run a kernel; return its version number (0 where Kaggle does not say).

        If the answer is lost, a version with this source and a number above `newer_than` is the one that was pushed.
        """
        metadata = read_json(folder / "kernel-metadata.json")
        kernel, source = metadata["id"], (folder / metadata["code_file"]).read_text(encoding="utf-8")
        what = f"pushing {kernel}"
        found: list[int] = []

        def done() -> Any:
            version = self.kernel_version(kernel, source)
            if version is None or version <= newer_than:
                return None
            found.append(version)
            return ARRIVED

        reply = self._call(what, lambda: self._api.kernels_push(str(folder)), done=done)
        if found:
            return found[0]
        self._believe(what, reply, forgiven=kernel)
        return int(reply.version_number or 0)

    def kernel_version(self, kernel: str, source: str) -> int | None:
        """Return the number of Kaggle's latest version if it has this source; None otherwise."""

        def ask() -> int | None:
            from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

            request = ApiGetKernelRequest()
            request.user_name, request.kernel_slug = kernel.split("/")
            with self._api.build_kaggle_client() as client:
                held = client.kernels.kernels_api_client.get_kernel(request)
            same = held.blob is not None and code_cells(json.loads(held.blob.source)) == code_cells(json.loads(source))
            return int(held.metadata.current_version_number) if same else None

        try:
            return self._unless_gone(f"source of {kernel}", ask)
        except (KaggleError, AttributeError, TypeError):
            return None

    def kernel_status(self, kernel: str, version: int | None = None) -> tuple[str, str]:
        """Return the status of a version's run (default: the latest), and the message of a failure.

        The status is queued, running, complete, error, cancel_requested or cancel_acknowledged.
        """
        run = versioned(kernel, version)
        reply = self._call(f"status of {run}", lambda: self._api.kernels_status(run))
        if reply.status is None:
            raise KaggleError(f"status of {run}: the reply holds none; look at kaggle.com/code/{kernel}")
        return reply.status.name.lower(), self._cleaned(reply.failure_message or "")

    def kernel_log(self, kernel: str, version: int | None = None) -> str:
        """Return what a version's run printed (default: the latest)."""
        run = versioned(kernel, version)
        log = self._call(f"log of {run}", lambda: self._api.kernels_logs(run))
        try:
            text = "".join(str(line.get("data", "")) for line in json.loads(log))
        except (json.JSONDecodeError, AttributeError, TypeError):
            text = log
        return redact(text, self._secrets)

    def kernel_output(self, kernel: str, out: Path, pattern: str, *, version: int | None = None) -> None:
        """Fetch the output files of a version's run (default: the latest) whose name matches a regular expression."""
        run = versioned(kernel, version)

        def fetch() -> Any:
            return self._api.kernels_output(run, str(out), file_pattern=pattern, force=True)

        self._call(f"output of {run}", fetch)
        for log in out.glob("*.log"):  # the client writes the run's log beside its files
            log.write_text(redact(log.read_text(encoding="utf-8"), self._secrets), encoding="utf-8")

    def submissions_left(self) -> int | None:
        """Return how many submissions are left today; None where Kaggle does not say, or knows no team of yours."""
        try:
            limits = self._call(
                "submission limits", lambda: self._api.competition_get_submission_limits(self.competition)
            )
            counts = (int(limits.num_today), int(limits.num_total), int(limits.num_allowed_now))
        except (KaggleError, AttributeError, TypeError):
            return None
        return counts[2] if any(counts) else None

    def rules_accepted(self) -> bool | None:
        """Return whether the user has joined the competition and accepted its rules; None where Kaggle does not say."""

        def ask() -> Any:
            from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

            request = ApiGetCompetitionRequest()
            request.competition_name = self.competition
            with self._api.build_kaggle_client() as client:
                return client.competitions.competition_api_client.get_competition(request).user_has_entered

        try:
            return bool(self._call("rules of the competition", ask))
        except (ImportError, KaggleError, AttributeError, TypeError):
            return None

    def submit(self, kernel: str, version: int, description: str) -> int:
        """Submit a kernel's `submission.csv` and return the reference; never twice with the same description."""

        def make() -> int:
            reply = self._api.competition_submit_code(
                "submission.csv", description, self.competition, kernel, version, True
            )
            if not reply.ref:
                raise ValueError(reply.message or "no reference in the reply")
            return int(reply.ref)

        def done() -> int | None:
            return next((each.ref for each in self.submissions() if each.description == description), None)

        return self._call(f"submitting {kernel} version {version}", make, done=done)

    def submissions(self) -> Iterator[Submission]:
        """Yield the submissions to the competition, newest first; pages are fetched when they are needed."""
        from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

        token = ""

        def ask() -> Any:
            request = ApiListSubmissionsRequest()
            request.competition_name, request.page_token, request.page_size = self.competition, token, PAGE
            with self._api.build_kaggle_client() as client:
                return client.competitions.competition_api_client.list_submissions(request)

        while True:
            page = self._call("list of submissions", ask)
            for each in page.submissions or []:
                yield Submission(
                    int(each.ref or 0),
                    each.description or "",
                    each.status.name.lower(),
                    each.public_score or "",
                    self._cleaned(each.error_description or ""),
                )
            if not page.next_page_token or page.next_page_token == token:
                return
            token = page.next_page_token


def versioned(kernel: str, version: int | None) -> str:
    """Return the client's name for one version of a kernel, owner/slug/number; without a number the latest one."""
    return f"{kernel}/{version}" if version else kernel
