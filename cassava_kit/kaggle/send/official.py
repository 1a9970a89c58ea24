"""The official Kaggle client, corrected where it hides a failed upload: `make_official_api`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cassava_kit.kaggle.pack.config import METADATA_FILE


def make_official_api() -> Any:
    """Return the official client, signed in, with three changes.

    A failed upload raises an error that holds Kaggle's answer; the client's own says only that the upload failed. A
    file that the client leaves out (its ignore patterns) is an error. The client does not repeat the creation of a
    dataset when the answer is lost: the first call may have created it.
    """
    from kaggle.api.kaggle_api_extended import KaggleApi

    class CheckedApi(KaggleApi):
        refusal: Any = None  # the answer to the latest upload, if it was an error

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
    """Return the error of a failed upload; `response` decides whether it is retried (None: the connection was lost)."""
    from requests import HTTPError

    if response is None:
        return ConnectionError(f"connection lost: {message}")
    return HTTPError(f"{message}: HTTP {response.status_code}", response=response)
