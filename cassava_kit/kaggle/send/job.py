"""One push of a bundle and its journal: `PushJob`; `adopt_owner` puts the user's name into the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.files import hold_lock, read_json, write_json
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.config import METADATA_FILE, PLACEHOLDER_OWNER
from cassava_kit.kaggle.pack.kernels import KERNEL_METADATA
from cassava_kit.kaggle.send.remote import KaggleError, Remote, Say
from cassava_kit.kaggle.send.retry import WaitPolicy

# In the bundle's folder: what Kaggle has accepted, by build id.
JOURNAL = "push.json"
# Beside it: held while a process pushes the bundle.
LOCK = "push.lock"


@dataclass(frozen=True)
class PushJob:
    """One push of a bundle: its settings, and the journal of what Kaggle has accepted.

    `again` repeats what was done before. `output` is the folder for fetched files (None: in the bundle's folder).
    `confirm` answers a question before something that costs; `asked` is true once the submission was agreed to.
    `ledger` is the file in which submissions are recorded (None: it is not read).
    """

    bundle: Bundle
    remote: Remote
    waits: WaitPolicy
    say: Say = print
    again: bool = False
    output: Path | None = None
    confirm: Callable[[str], bool] = lambda question: False
    asked: bool = False
    ledger: Path | None = None

    @property
    def journal(self) -> Path:
        """The path of the journal."""
        return self.bundle.home / JOURNAL

    def remember(self, **facts: Any) -> None:
        """Add facts to the journal."""
        write_json(self.journal, self.known() | facts)

    def known(self) -> dict[str, Any]:
        """Return the facts in the journal."""
        return dict(read_json(self.journal)) if self.journal.is_file() else {}


@contextmanager
def one_push(bundle: Bundle) -> Iterator[None]:
    """Hold the bundle for this process: a second push of it would upload and run everything twice.

    The hold ends with the process, however it ends.

    Raises:
        UserError: Another process pushes this bundle.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(bundle.home / LOCK, wait=False))
        except BlockingIOError as held:
            raise UserError(
                f"{bundle.home} is being pushed already ({held}); wait for it, or stop it: nothing is done twice "
                "when this is called again"
            ) from None
        yield


def adopt_owner(bundle: Bundle, owner: str) -> None:
    """Replace the placeholder owner in the bundle's metadata by `owner`.

    Raises:
        KaggleError: The bundle names another owner.
    """
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
