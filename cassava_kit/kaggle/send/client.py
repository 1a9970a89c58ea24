"""The calls to Kaggle by its official client: `KaggleClient`.

Success is decided by the content of a reply, never by an exit code.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from cassava_kit.files import read_json
from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.send.advice import NO_CREDENTIALS
from cassava_kit.kaggle.send.calls import RetriedCalls
from cassava_kit.kaggle.send.notebook import code_cells
from cassava_kit.kaggle.send.remote import KaggleError, Limits, Submission

PAGE = 100  # submissions asked for at once
ARRIVED = object()  # replaces the lost answer of a call that was carried out


class KaggleClient(RetriedCalls):
    """Kaggle over the network."""

    def owner(self) -> str:
        """Return the user name of the credentials."""
        name = self.api.get_config_value("username")
        if not name:
            raise KaggleError(NO_CREDENTIALS)
        return str(name)

    def gpu_hours_left(self) -> float | None:
        """Return the GPU hours left this week; None where Kaggle does not say."""

        def hours() -> float:
            quota = self.api.quota_view().gpu_quota
            return max(0.0, (quota.total_time_allowed - quota.time_used).total_seconds() / 3600)

        return self.ask("GPU quota", hours)

    def dataset_status(self, dataset: str) -> str | None:
        """Return `ready`, `failed`, or a step before them; None if the dataset does not exist."""
        return self.call_unless_gone(f"status of dataset {dataset}", lambda: str(self.api.dataset_status(dataset)))

    def dataset_build(self, dataset: str, manifest: str) -> str | None:
        """Return the build id in the manifest that Kaggle serves; None where it cannot be fetched."""

        def fetch() -> str | None:
            with tempfile.TemporaryDirectory() as folder:
                self.api.dataset_download_file(dataset, manifest, path=folder, force=True, quiet=True)
                found = next(Path(folder).iterdir(), None)
                return read_json(found).get("build_id") if found else None

        return self.ask(f"manifest of {dataset}", fetch)

    def dataset_sizes(self, dataset: str) -> dict[str, int] | None:
        """Return name -> bytes of the files that Kaggle lists; None where it lists no file."""

        def sizes() -> dict[str, int] | None:
            found: dict[str, int] = {}
            token = None
            while True:
                page = self.api.dataset_list_files(dataset, page_token=token, page_size=200)
                found |= {file.name: int(file.total_bytes) for file in page.files or []}
                token = page.next_page_token
                if not token:
                    return found or None

        return self.ask(f"files of {dataset}", sizes)

    def create_dataset(self, folder: Path) -> None:
        """Upload a new private dataset."""
        dataset = read_json(folder / METADATA_FILE)["id"]

        def done() -> Any:
            return ARRIVED if self.dataset_status(dataset) is not None else None

        what = f"creating {dataset}"
        reply = self.call(what, lambda: self.api.dataset_create_new(str(folder), quiet=True), done=done)
        self._believe(what, reply)

    def create_version(self, folder: Path, notes: str, before: int | None) -> None:
        """Upload a new version of a dataset, whose latest was `before`; older versions stay."""
        dataset = read_json(folder / METADATA_FILE)["id"]

        def done() -> Any:
            now = self.dataset_version(dataset)
            return ARRIVED if before is not None and now is not None and now > before else None

        what = f"new version of {dataset}"
        reply = self.call(what, lambda: self.api.dataset_create_version(str(folder), notes, quiet=True), done=done)
        self._believe(what, reply)

    def dataset_version(self, dataset: str) -> int | None:
        """Return the number of a dataset's latest version; None where Kaggle does not say."""

        def number() -> int | None:
            from kagglesdk.datasets.types.dataset_api_service import ApiGetDatasetRequest

            request = ApiGetDatasetRequest()
            request.owner_slug, request.dataset_slug = dataset.split("/")
            with self.api.build_kaggle_client() as client:
                found = client.datasets.dataset_api_client.get_dataset(request)
            return int(found.current_version_number) or None

        return self.ask(f"version of {dataset}", number)

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
            raise KaggleError(f"{what} failed: {self.advise('; '.join(filter(None, parts)))}")

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

        reply = self.call(what, lambda: self.api.kernels_push(str(folder)), done=done)
        if found:
            return found[0]
        self._believe(what, reply, forgiven=kernel)
        return int(reply.version_number or 0)

    def kernel_version(self, kernel: str, source: str) -> int | None:
        """Return the number of Kaggle's latest version if it has this source; None otherwise."""

        def number() -> int | None:
            from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

            request = ApiGetKernelRequest()
            request.user_name, request.kernel_slug = kernel.split("/")
            with self.api.build_kaggle_client() as client:
                held = client.kernels.kernels_api_client.get_kernel(request)
            same = held.blob is not None and code_cells(json.loads(held.blob.source)) == code_cells(json.loads(source))
            return int(held.metadata.current_version_number) if same else None

        return self.ask(f"source of {kernel}", number)

    def kernel_status(self, kernel: str, version: int | None = None) -> tuple[str, str]:
        """Return the status of a version's run (default: the latest), and the message of a failure.

        The status is queued, running, complete, error, cancel_requested or cancel_acknowledged.
        """
        run = versioned(kernel, version)
        reply = self.call(f"status of {run}", lambda: self.api.kernels_status(run))
        if reply.status is None:
            raise KaggleError(f"status of {run}: the reply holds none; look at kaggle.com/code/{kernel}")
        return reply.status.name.lower(), self.clean(reply.failure_message or "")

    def kernel_log(self, kernel: str, version: int | None = None) -> str:
        """Return what a version's run printed (default: the latest)."""
        run = versioned(kernel, version)
        log = self.call(f"log of {run}", lambda: self.api.kernels_logs(run))
        try:
            text = "".join(str(line.get("data", "")) for line in json.loads(log))
        except (json.JSONDecodeError, AttributeError, TypeError):
            text = log
        return self.clean(text)

    def kernel_output(self, kernel: str, out: Path, pattern: str, *, version: int | None = None) -> None:
        """Fetch the output files of a version's run (default: the latest) whose name matches a regular expression."""
        run = versioned(kernel, version)

        def fetch() -> Any:
            return self.api.kernels_output(run, str(out), file_pattern=pattern, force=True)

        self.call(f"output of {run}", fetch)
        for log in out.glob("*.log"):  # the client writes the run's log beside its files
            log.write_text(self.clean(log.read_text(encoding="utf-8")), encoding="utf-8")

    def limits(self) -> Limits | None:
        """Return how many submissions are made and left; None where Kaggle does not say, or knows no team of yours."""

        def found() -> Limits | None:
            said = self.api.competition_get_submission_limits(self.competition)
            today, total, left = (
                _number(getattr(said, f"num_{name}", 0)) for name in ("today", "total", "allowed_now")
            )
            by_total = getattr(said, "limited_by_total", False) is True
            return Limits(today, total, left, by_total) if any((today, total, left)) else None

        return self.ask("submission limits", found)

    def rules_accepted(self) -> bool | None:
        """Return whether the user has joined the competition and accepted its rules; None where Kaggle does not say."""

        def joined() -> bool:
            from kagglesdk.competitions.types.competition_api_service import ApiGetCompetitionRequest

            request = ApiGetCompetitionRequest()
            request.competition_name = self.competition
            with self.api.build_kaggle_client() as client:
                return bool(client.competitions.competition_api_client.get_competition(request).user_has_entered)

        return self.ask("rules of the competition", joined)

    def submit(self, kernel: str, version: int, description: str) -> int:
        """Submit a kernel's `submission.csv` and return the reference; never twice with the same description."""

        def make() -> int:
            reply = self.api.competition_submit_code(
                "submission.csv", description, self.competition, kernel, version, True
            )
            ref, message = _number(getattr(reply, "ref", 0)), _text(getattr(reply, "message", ""))
            if not ref and message.lower().startswith("success"):
                ref = done() or 0
            if not ref:
                raise ValueError(message or "no reference in the reply")
            return ref

        def done() -> int | None:
            return next((each.ref for each in self.submissions() if each.description == description), None)

        return self.call(f"submitting {kernel} version {version}", make, done=done)

    def submissions(self) -> Iterator[Submission]:
        """Yield the submissions to the competition, each once, in Kaggle's order; pages are fetched when needed."""
        token, seen, page = "", set[tuple[int, str]](), 1
        while True:
            listed, following = self.call("list of submissions", partial(self._page, token, page))
            fresh = [each for each in map(self._submission, listed) if (each.ref, each.description) not in seen]
            yield from fresh
            seen |= {(each.ref, each.description) for each in fresh}
            if not fresh or following in ("", token):
                return
            token, page = following, page + 1

    def _page(self, token: str, page: int) -> tuple[list[Any], str]:
        """Return one page of submissions, and the token of the next; a client without tokens numbers its pages."""
        try:
            from kagglesdk.competitions.types.competition_api_service import ApiListSubmissionsRequest

            request = ApiListSubmissionsRequest()
            request.competition_name, request.page_token, request.page_size = self.competition, token, PAGE
            with self.api.build_kaggle_client() as client:
                answer = client.competitions.competition_api_client.list_submissions(request)
            listed, following = answer.submissions, str(getattr(answer, "next_page_token", "") or "")
        except (ImportError, AttributeError):
            ask = getattr(self.api, "competition_submissions", None)
            if ask is None:
                raise KaggleError("this Kaggle client lists no submissions; run: pip install -U kaggle") from None
            listed, following = ask(self.competition, page_number=page, page_size=PAGE), f"page {page + 1}"
        return [each for each in listed or [] if each is not None], following

    def _submission(self, listed: Any) -> Submission:
        """Return one submission; a field that Kaggle leaves out is empty."""
        status, date = getattr(listed, "status", None), getattr(listed, "date", None)
        when = date.isoformat(timespec="seconds") if isinstance(date, datetime) else _text(date)
        return Submission(
            ref=_number(getattr(listed, "ref", 0)),
            description=_text(getattr(listed, "description", "")),
            status=_text(getattr(status, "name", status)).rpartition(".")[2].lower() or "pending",
            score=_text(getattr(listed, "public_score", "")),
            error=self.clean(_text(getattr(listed, "error_description", ""))),
            private_score=_text(getattr(listed, "private_score", "")),
            date=when,
        )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _number(value: Any) -> int:
    """Return a whole number; 0 for anything else."""
    return int(value) if str(value).strip().isdigit() else 0


def versioned(kernel: str, version: int | None) -> str:
    """Return the client's name for one version of a kernel, owner/slug/number; without a number the latest one."""
    return f"{kernel}/{version}" if version else kernel
