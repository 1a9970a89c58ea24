"""What a submission costs and what is known before it: limits, what waits, what was scored before: `read_budget`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cassava_kit.evidence.expected import expect_from_folder
from cassava_kit.evidence.finals import read_entries
from cassava_kit.files import sha256_file
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.selection import EVIDENCE
from cassava_kit.kaggle.send.job import PushJob
from cassava_kit.kaggle.send.remote import KaggleError, Limits, Submission

MOST_SHOWN = 3


@dataclass(frozen=True)
class SubmissionBudget:
    """Limits (None: Kaggle does not say), submissions that wait for a score, and lines on what was scored before."""

    limits: Limits | None
    waiting: tuple[Submission, ...]
    before: tuple[str, ...]
    expected: str

    def __str__(self) -> str:
        left = str(self.limits) if self.limits is not None else "submissions left: Kaggle does not say"
        named = [f"{each.description or 'without a description'} (ref {each.ref})" for each in self.waiting]
        more = f" and {len(named) - MOST_SHOWN} more" if len(named) > MOST_SHOWN else ""
        waiting = (
            f"waiting for a score: {'; '.join(named[:MOST_SHOWN])}{more}" if named else "waiting for a score: none"
        )
        return "\n".join([left, waiting, *(self.before or ("scored before: no",)), self.expected])


def read_budget(job: PushJob) -> SubmissionBudget:
    """Ask Kaggle and the ledger what is known before a submission; what Kaggle does not say is left out."""
    try:
        listed = list(job.remote.submissions())
    except KaggleError as error:
        job.say(f"submissions are not listed: {error}")
        listed = []
    begins = f"{describe_build(job.bundle)},"
    before = [
        f"scored before: this build, {each.description}, public {each.score or 'not shown'} (ref {each.ref})"
        for each in listed
        if each.description.startswith(begins) and each.status == "complete"
    ]
    made = job.bundle.home / "output" if job.output is None else job.output
    before += same_file_before(job, made / "submission.csv")
    expected = expect_from_folder(job.bundle.home / EVIDENCE)
    return SubmissionBudget(
        job.remote.limits(),
        tuple(each for each in listed if each.status == "pending"),
        tuple(before),
        str(expected) if expected is not None else "expected public score: no out-of-fold evidence in the bundle",
    )


def same_file_before(job: PushJob, path: Path) -> list[str]:
    """Return a line for each submission in the ledger whose public run left this very file."""
    if job.ledger is None or not job.ledger.is_file() or not path.is_file():
        return []
    digest, rows = sha256_file(path), max(0, len(path.read_bytes().splitlines()) - 1)
    few = ", which says little" if rows < 2 else ""
    return [
        f"scored before: this very file ({rows} rows{few}), as {entry['name']}, public "
        f"{entry.get('public_score') or 'not shown'} (ref {entry.get('ref')})"
        for entry in read_entries(job.ledger)
        if entry.get("file_sha256") == digest
    ]


def describe_build(bundle: Bundle) -> str:
    """Return how the description of a build's submissions begins."""
    return f"Cassava Kit build {bundle.build_id[:12]}"
