"""The ledger of submissions, from which finals are chosen: `record_submission`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cassava_kit.errors import UserError
from cassava_kit.evidence.expected import expect_from_folder
from cassava_kit.evidence.finals import add_to_ledger, hold_ledger, read_entries
from cassava_kit.files import LEDGER_FILE, sha256_file, write_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, read_ensemble
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.selection import EVIDENCE
from cassava_kit.kaggle.send.remote import Submission

# Where earlier versions wrote the ledger.
LEDGER, OLD_LEDGER = Path(LEDGER_FILE), Path("build") / LEDGER_FILE


def adopt_old_ledger(ledger: Path) -> Path:
    """Return `ledger`; a missing default one is first copied from its old place in build/, with the evidence.

    Raises:
        UserError: The ledger, or the old one, has another shape; said before a submission that could not be recorded.
    """
    if ledger.is_file():
        read_entries(ledger)
    if ledger != LEDGER or ledger.is_file() or not OLD_LEDGER.is_file():
        return ledger
    entries = read_entries(OLD_LEDGER)
    if not all("ref" in entry for entry in entries):
        raise UserError(f"{OLD_LEDGER} has a submission without ref; mend it, or move it away")
    for entry in entries:
        folder = evidence_folder(ledger, entry["ref"])
        if Path(entry["evidence"]).is_dir():
            shutil.copytree(entry["evidence"], ledger.parent / folder, dirs_exist_ok=True)
        entry["evidence"] = folder.as_posix()
    with hold_ledger(ledger):
        if ledger.is_file():  # another process was faster
            return ledger
        write_json(ledger, {"submissions": entries})
    print(f"copied {len(entries)} submissions from {OLD_LEDGER} to {ledger}, where they are kept")
    return ledger


def evidence_folder(ledger: Path, ref: int) -> Path:
    """Return the folder of a submission's evidence, relative to the ledger's."""
    return Path(ledger.stem, str(ref))


def record_submission(
    ledger: Path, bundle: Bundle, submission: Submission, *, file: Path | None = None
) -> dict[str, Any]:
    """Record a submission, copy its evidence beside the ledger, as the bundle may be packed again; return its entry.

    `file` is the `submission.csv` of its public run; its hash tells whether the same file is submitted again.
    """
    ensemble = read_ensemble(bundle.weights_dir / ENSEMBLE_FILE)
    names = "+".join(member.name for member in ensemble.members)
    folder = evidence_folder(ledger, submission.ref)
    (ledger.parent / folder).mkdir(parents=True, exist_ok=True)
    for path in sorted((bundle.home / EVIDENCE).glob("*")):
        shutil.copyfile(path, ledger.parent / folder / path.name)
    entry: dict[str, Any] = {
        "ref": submission.ref,
        "name": f"{names}@{bundle.build_id[:8]}",
        "build_id": bundle.build_id,
        "competition": bundle.competition.slug,
        "description": submission.description,
        "public_score": submission.score,
        "private_score": submission.private_score,
        "date": submission.date,
        "members": len(ensemble.members),
        "evidence": folder.as_posix(),
    }
    expected = expect_from_folder(ledger.parent / folder)
    entry |= {"oof": expected.values()} if expected is not None else {}
    entry |= {"file_sha256": sha256_file(file)} if file is not None and file.is_file() else {}
    add_to_ledger(ledger, entry)
    return entry
