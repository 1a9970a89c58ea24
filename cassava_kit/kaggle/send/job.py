"""One push of a bundle and its journal: `PushJob`; `adopt_owner` puts the user's name into the bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.files import read_json, write_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.send.remote import KaggleError, Remote, Say
from cassava_kit.kaggle.send.retry import WaitPolicy

# In the bundle's folder: what Kaggle has accepted, by build id.
JOURNAL = "push.json"


@dataclass(frozen=True)
class PushJob:
    """One way to Kaggle and back: the bundle, who does the calls, and how long to wait."""

    bundle: Bundle
    remote: Remote
    waits: WaitPolicy
    say: Say = print
    # Whether what was done already is done once more.
    again: bool = False
    # Where the output is put; None: in the bundle's folder.
    output: Path | None = None
    # Answers a question before the last submission of the day is made; `asked`: it was answered, or need not be.
    confirm: Callable[[str], bool] = lambda question: False
    asked: bool = False

    @property
    def journal(self) -> Path:
        """The file that remembers what was accepted."""
        return self.bundle.home / JOURNAL

    def remember(self, **facts: Any) -> None:
        """Add facts to the journal."""
        write_json(self.journal, self.known() | facts)

    def known(self) -> dict[str, Any]:
        """What the journal holds."""
        return dict(read_json(self.journal)) if self.journal.is_file() else {}


def adopt_owner(bundle: Bundle, owner: str) -> None:
    """Put the user's name where the bundle still has a placeholder; ValueError where it names somebody else."""
    for path in (*(folder / METADATA_FILE for _, folder in bundle.datasets), bundle.kernel_dir / KERNEL_METADATA):
        metadata = read_json(path)
        written = metadata["id"].partition("/")[0]
        if written not in (owner, PLACEHOLDER_OWNER):
            raise KaggleError(
                f"wrong owner: the bundle is for {written}, the credentials are {owner}'s; "
                "change the id in dataset-metadata.json and package again"
            )
        renamed = _with_owner(metadata, f"{PLACEHOLDER_OWNER}/", f"{owner}/")
        if renamed != metadata:
            write_json(path, renamed)


def _with_owner(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new + value.removeprefix(old) if value.startswith(old) else value
    if isinstance(value, dict):
        return {key: _with_owner(item, old, new) for key, item in value.items()}
    return [_with_owner(item, old, new) for item in value] if isinstance(value, list) else value
