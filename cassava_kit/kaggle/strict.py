"""The official client, made strict, and what its errors say about trying again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cassava_kit.kaggle.config import METADATA_FILE
from cassava_kit.kaggle.remote import Patience


def checked_api() -> Any:
    """The official client, signed in, stricter than it is in two things.

    It stops where it would go on without a file that failed to upload, and does not by itself make a dataset again
    whose answer was lost: the first one may have been made, which has to be looked at.
    """
    from kaggle.api.kaggle_api_extended import KaggleApi

    class CheckedApi(KaggleApi):
        def upload_files(self, request: Any, resources: Any, folder: str, *arguments: Any, **options: Any) -> None:
            super().upload_files(request, resources, folder, *arguments, **options)
            wanted = [path.name for path in Path(folder).iterdir() if path.name != METADATA_FILE]
            if len(request.files or []) != len(wanted):
                raise OSError(f"connection lost: {len(request.files or [])} of {len(wanted)} files were uploaded")

        def with_retry(self, func: Any, *arguments: Any, **options: Any) -> Any:
            once = getattr(func, "__name__", "") in ("create_dataset", "create_dataset_version")
            return func if once else super().with_retry(func, *arguments, **options)

    api = CheckedApi()
    api.authenticate()
    return api


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error, None where there was no answer."""
    return getattr(getattr(error, "response", None), "status_code", None)


def answer_text(error: BaseException) -> str:
    """The beginning of the answer behind an error."""
    response = getattr(error, "response", None)
    return str(getattr(response, "text", ""))[:300]


def pause_before(error: BaseException, patience: Patience, attempt: int) -> float | None:
    """Seconds to wait before another attempt; None where another would fail the same way."""
    status = http_status(error)
    if not isinstance(error, OSError) or (status is not None and status != 429 and status < 500):
        return None
    if status is None and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return None  # a file or a folder of this machine
    asked = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    wait = float(asked) if str(asked).isdigit() else patience.first * 2 ** (attempt - 1)
    return min(wait, patience.longest)


def code_cells(notebook: dict[str, Any]) -> list[str]:
    """What a notebook's cells say, whichever way their lines are kept."""
    return ["".join(cell["source"]) for cell in notebook["cells"]]
