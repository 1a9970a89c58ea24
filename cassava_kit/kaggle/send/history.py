"""Every submission with its build and scores, from Kaggle and the ledger: `read_history`, `compare_public`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cassava_kit.competition import Competition
from cassava_kit.evidence.expected import ExpectedScore, expect_from_folder, short
from cassava_kit.evidence.finals import hold_ledger, read_entries
from cassava_kit.files import write_json
from cassava_kit.kaggle.send.remote import KaggleError, Remote, Submission

BUILD = re.compile(r"Cassava Kit build ([0-9a-f]{12})")
# Fewer pairs of scores have no correlation worth a number.
FEWEST_PAIRS = 3


@dataclass(frozen=True)
class PastSubmission:
    """One submission: what Kaggle says of it, and the build, name and out-of-fold score that the ledger has."""

    ref: int
    date: str
    build: str
    name: str
    status: str
    oof: float | None
    public: float | None
    private: float | None


@dataclass(frozen=True)
class History:
    """Submissions, newest first, the correlation of scores, and what could not be read."""

    submissions: tuple[PastSubmission, ...]
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "submissions": [asdict(each) for each in self.submissions],
            "correlation": {kind: correlate(self.submissions, kind)[0] for kind in ("public", "private")},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("ref", "date", "build", "out of fold", "public", "private", "status", "name")]
        rows += [
            (
                str(each.ref or "-"),
                each.date[:16].replace("T", " ") or "-",
                each.build or "-",
                *(short(score, 4) if score is not None else "-" for score in (each.oof, each.public, each.private)),
                each.status or "-",
                each.name or "-",
            )
            for each in self.submissions
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        said = [f"note: {note}" for note in self.notes]
        if not self.submissions:
            return "\n".join(["no submissions", *said])
        return "\n".join([*lines, *(_say_correlation(self.submissions, kind) for kind in ("public", "private")), *said])


def read_history(ledger: Path, competition: Competition, remote: Remote | None) -> History:
    """Join what Kaggle lists (None: it is not asked) with the ledger; new scores are written into the ledger.

    Raises:
        UserError: The ledger has another shape.
    """
    entries = [
        entry
        for entry in (read_entries(ledger) if ledger.is_file() else [])
        if entry.get("competition") in (None, competition.slug)
    ]
    notes = list[str]() if entries else [f"no submission of {competition.slug} is recorded in {ledger}"]
    listed = list[Submission]()
    if remote is not None:
        try:
            listed = list(remote.submissions())
        except KaggleError as error:
            notes.append(f"Kaggle lists no submissions: {error}")
    taken = [_find_entry(entries, each) for each in listed]
    joined = [_joined(each, entry, ledger) for each, entry in zip(listed, taken, strict=True)]
    left = [entry for entry in entries if not any(entry is each for each in taken)]
    joined += [_joined(_of_entry(entry), entry, ledger) for entry in left]
    _write_scores(ledger, listed, taken)
    order = sorted(joined, key=lambda each: (each.date, each.ref), reverse=True)
    return History(tuple(order), tuple(notes))


def _find_entry(entries: Sequence[dict[str, Any]], listed: Submission) -> dict[str, Any] | None:
    """Return the ledger's entry of a listed submission, by its reference, else by the description."""
    by_ref = (entry for entry in entries if listed.ref and entry.get("ref") == listed.ref)
    by_text = (entry for entry in entries if listed.description and entry.get("description") == listed.description)
    return next(by_ref, next(by_text, None))


def _of_entry(entry: dict[str, Any]) -> Submission:
    said = {name: str(entry.get(name) or "") for name in ("description", "public_score", "private_score", "date")}
    ref = entry.get("ref")
    status = "complete" if said["public_score"] or said["private_score"] else ""
    return Submission(
        ref if isinstance(ref, int) else 0,
        said["description"],
        status,
        said["public_score"],
        "",
        said["private_score"],
        said["date"],
    )


def _joined(listed: Submission, entry: dict[str, Any] | None, ledger: Path) -> PastSubmission:
    entry = entry or {}
    named = BUILD.search(listed.description)
    expected = read_expected(ledger, entry)
    return PastSubmission(
        ref=listed.ref,
        date=listed.date or str(entry.get("date") or ""),
        build=str(entry.get("build_id") or (named[1] if named else ""))[:12],
        name=str(entry.get("name") or listed.description),
        status=listed.status,
        oof=expected.value if expected is not None else None,
        public=_score(listed.score or entry.get("public_score")),
        private=_score(listed.private_score or entry.get("private_score")),
    )


def _score(text: Any) -> float | None:
    """Return a score as a number; None where Kaggle shows none."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def read_expected(ledger: Path, entry: dict[str, Any]) -> ExpectedScore | None:
    """Return what the evidence of a submission lets one expect: as recorded, else from its files."""
    try:
        return ExpectedScore(**entry["oof"])
    except (KeyError, TypeError):
        folder = ledger.parent / entry["evidence"] if entry.get("evidence") else None
        return expect_from_folder(folder) if folder is not None else None


def _write_scores(ledger: Path, listed: Sequence[Submission], taken: Sequence[dict[str, Any] | None]) -> None:
    """Write scores that Kaggle shows by now into their entries of the ledger."""
    news: dict[int, dict[str, str]] = {}
    for each, entry in zip(listed, taken, strict=True):
        shown = {"public_score": each.score, "private_score": each.private_score, "date": each.date}
        new = {name: text for name, text in shown.items() if entry is not None and text and entry.get(name) != text}
        if entry is not None and new and isinstance(entry.get("ref"), int):
            news[entry["ref"]] = new
    if news:
        with hold_ledger(ledger):
            entries = read_entries(ledger)
            write_json(ledger, {"submissions": [entry | news.get(entry.get("ref", 0), {}) for entry in entries]})


def correlate(submissions: Iterable[PastSubmission], kind: str) -> tuple[float | None, int]:
    """Return Pearson's correlation of out-of-fold and public (or private) scores, and how many have both.

    None where fewer than three have both, or all are equal.
    """
    pairs = [(each.oof, getattr(each, kind)) for each in submissions]
    known = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2)
    if len(known) < FEWEST_PAIRS or (np.ptp(known, axis=0) == 0).any():
        return None, len(known)
    return float(np.corrcoef(known.T)[0, 1]), len(known)


def _say_correlation(submissions: Sequence[PastSubmission], kind: str) -> str:
    found, pairs = correlate(submissions, kind)
    what = f"correlation of out-of-fold and {kind} scores"
    if found is None:
        why = f"{pairs} have both, {FEWEST_PAIRS} are needed" if pairs < FEWEST_PAIRS else "they do not differ"
        return f"{what}: not known ({why})"
    return f"{what}: {found:+.2f} over {pairs} submissions"


def compare_public(ledger: Path, entry: dict[str, Any]) -> str:
    """Return a recorded submission's public score beside the interval that its evidence lets one expect."""
    public, expected = _score(entry.get("public_score")), read_expected(ledger, entry)
    if public is None:
        return "public score not shown yet: it is not compared; `history` shows it later"
    if expected is None:
        return f"public {short(public, 4)}: no out-of-fold evidence of this build to compare it with"
    return expected.compare(public)
