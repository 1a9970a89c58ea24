"""What was submitted, and what to choose of it: `history` and `finals`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cassava_kit.cli.output import Result, print_result
from cassava_kit.competition import current
from cassava_kit.kaggle.send.ledger import adopt_old_ledger
from cassava_kit.kaggle.send.remote import KaggleError
from cassava_kit.kaggle.send.retry import WaitPolicy


def finals(ledger: Path, folds: Path | None, candidates: Sequence[str], *, as_json: bool = False) -> int:
    """Propose two different finals among the submissions of the ledger, or among those that are given."""
    from cassava_kit.evidence.finals import parse_candidates, propose_finals, read_ledger

    def proposed() -> Result:
        if folds is not None:
            found, left_out = parse_candidates(candidates, folds), tuple[str, ...]()
        else:
            found, left_out = read_ledger(adopt_old_ledger(ledger))
        for reason in left_out:
            print(f"left out: {reason}")
        proposal = propose_finals(found)
        return Result(str(proposal), {**proposal.values(), "left_out": list(left_out)})

    print_result(proposed, as_json=as_json)
    return 0


def history(ledger: Path, *, offline: bool = False, as_json: bool = False) -> int:
    """Print every submission with its build and scores, and how well the out-of-fold score predicts the others."""
    from cassava_kit.kaggle.send.client import KaggleClient
    from cassava_kit.kaggle.send.history import read_history

    def found() -> Result:
        remote, note = None, ""
        try:
            remote = None if offline else KaggleClient(current().slug, waits=WaitPolicy(attempts=3))
        except KaggleError as error:
            note = f"Kaggle is not asked: {error}"
        made = read_history(adopt_old_ledger(ledger), current(), remote)
        notes = tuple(filter(None, (note, *made.notes)))
        return Result(str(replace(made, notes=notes)), replace(made, notes=notes).values())

    print_result(found, as_json=as_json)
    return 0
