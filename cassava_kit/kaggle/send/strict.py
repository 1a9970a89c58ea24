"""The official client, made strict, and what its errors say about trying again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cassava_kit.kaggle.pack.config import METADATA_FILE
from cassava_kit.kaggle.send.remote import Patience


def checked_api() -> Any:
    """Return the official client, signed in, with three changes.

    A file that failed to upload stops the upload, with Kaggle's answer in the error: the client's own says no more than
    that it failed (2.2.5), or goes on without the file (2.2.4). A dataset is not made again by the client itself when
    the answer was lost: the first one may have been made.
    """
    from kaggle.api.kaggle_api_extended import KaggleApi

    class CheckedApi(KaggleApi):
        refusal: Any = None  # the answer to the latest upload, where it was an error

        def upload_complete(self, *arguments: Any, **options: Any) -> Any:
            self.refusal = None
            return super().upload_complete(*arguments, **options)

        def _is_upload_successful(self, response: Any) -> bool:
            self.refusal = response if response.status_code >= 400 else None
            return bool(super()._is_upload_successful(response))

        def upload_files(self, request: Any, resources: Any, folder: str, *arguments: Any, **options: Any) -> None:
            wanted = [path.name for path in Path(folder).iterdir() if path.name != METADATA_FILE]
            try:
                super().upload_files(request, resources, folder, *arguments, **options)
            except ValueError as error:
                raise upload_error(str(error), self.refusal) from None
            if len(request.files or []) != len(wanted):
                raise upload_error(f"{len(request.files or [])} of {len(wanted)} files were uploaded", self.refusal)

        def with_retry(self, func: Any, *arguments: Any, **options: Any) -> Any:
            once = getattr(func, "__name__", "") in ("create_dataset", "create_dataset_version")
            return func if once else super().with_retry(func, *arguments, **options)

    api = CheckedApi()
    api.authenticate()
    return api


def upload_error(message: str, response: Any) -> OSError:
    """Return an error that is retried, or not, by the answer to the upload; no answer is a lost connection."""
    from requests import HTTPError

    if response is None:
        return ConnectionError(f"connection lost: {message}")
    return HTTPError(f"{message}: HTTP {response.status_code}", response=response)


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def answer_text(error: BaseException) -> str:
    """The beginning of the answer behind an error."""
    response = getattr(error, "response", None)
    return str(getattr(response, "text", ""))[:300]


def may_pass(error: BaseException) -> bool:
    """Return whether another attempt may succeed: HTTP 429 and 5xx, and connections that are lost or time out."""
    status = http_status(error)
    if not isinstance(error, OSError) or (status is not None and status != 429 and status < 500):
        return False
    # An error number without an answer is one of this machine's files, unless it is a connection's.
    return status is not None or error.errno is None or isinstance(error, ConnectionError | TimeoutError)


def pause_before(error: BaseException, patience: Patience, attempt: int) -> float:
    """Return the seconds to wait before attempt `attempt + 1`: what Kaggle asks for, or twice as long each time."""
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    wait = float(asked) if str(asked).isdigit() else patience.first * 2.0 ** min(attempt - 1, 30)
    return min(wait, patience.longest)


def code_cells(notebook: dict[str, Any]) -> list[str]:
    """What a notebook's cells say, whichever way their lines are kept."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]
