"""`submit.py history`: Kaggle and the ledger joined, its correlation, and what it does without one of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from cassava_kit.cli.app import run_app
from cassava_kit.cli.submit import submit_app
from cassava_kit.competition import CASSAVA
from cassava_kit.files import read_json, write_json
from cassava_kit.kaggle.send.client import KaggleClient
from cassava_kit.kaggle.send.history import compare_public, read_history
from cassava_kit.kaggle.send.remote import KaggleError, Submission

OOF = {"low": 0.8, "high": 0.95, "metric": "accuracy", "rows": 100, "public_rows": 50}
SCORES = [(0.90, "0.9012", "0.8950"), (0.91, "0.9050", "0.9001"), (0.88, "0.8801", "0.8790"), (0.89, "", "")]


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """The ledger's entry of one submission."""
    value, public, private = SCORES[number]
    return {
        "ref": 100 + number,
        "name": f"s{number}",
        "evidence": f"submissions/{100 + number}",
        "build_id": f"{number}" * 64,
        "competition": CASSAVA.slug,
        "description": f"Cassava Kit build {str(number) * 12}, version 1",
        "public_score": public,
        "private_score": private,
        "date": f"2026-11-2{number}T10:00:00",
        "oof": OOF | {"value": value},
    } | changes


class Kaggle:
    """A Kaggle that lists submissions, or refuses to."""

    def __init__(self, *listed: Submission, refusal: str = "") -> None:
        self.listed, self.refusal = listed, refusal

    def submissions(self) -> Iterator[Submission]:
        if self.refusal:
            raise KaggleError(self.refusal)
        yield from self.listed


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    write_json(tmp_path / "submissions.json", {"submissions": [entry(number) for number in range(4)]})
    return tmp_path / "submissions.json"


def test_offline_it_is_the_ledger_newest_first(ledger: Path) -> None:
    found = read_history(ledger, CASSAVA, None)
    assert [each.ref for each in found.submissions] == [103, 102, 101, 100] and not found.notes
    lines = str(found).splitlines()
    assert lines[0].split() == ["ref", "date", "build", "out", "of", "fold", "public", "private", "status", "name"]
    assert lines[4].split() == ["100", "2026-11-20", "10:00", "0" * 12, ".9000", ".9012", ".8950", "complete", "s0"]
    assert lines[1].split()[4:] == [".8900", "-", "-", "-", "s3"]
    for kind, line in zip(("public", "private"), lines[-2:], strict=True):
        column = 1 if kind == "public" else 2
        pairs = np.array([(row[0], float(row[column])) for row in SCORES if row[column]])
        expected = pearsonr(*pairs.T).statistic
        assert line == f"correlation of out-of-fold and {kind} scores: {expected:+.2f} over 3 submissions"
        assert found.values()["correlation"][kind] == pytest.approx(expected)


def test_kaggle_and_the_ledger_are_joined_and_new_scores_are_kept(ledger: Path) -> None:
    """By reference, else by description, in any order; others' submissions are shown, and those no longer listed."""
    listed = [
        Submission(1, "by hand", "complete", "0.7", "", "0.71", "2026-11-01T00:00:00"),
        Submission(103, "renamed", "complete", "0.8890", "", "0.8880", "2026-11-23T10:00:00"),
        Submission(0, entry(2)["description"], "complete", "0.8802", "", "", ""),
        Submission(900, "Cassava Kit build abcdefabcdef, version 2", "error", "", "Timeout", "", "2026-11-27T00:00:00"),
    ]
    found = read_history(ledger, CASSAVA, Kaggle(*listed))  # type: ignore[arg-type]
    by_ref = {each.ref: each for each in found.submissions}
    assert len(found.submissions) == 6 and by_ref[1].name == "by hand" and by_ref[1].oof is None
    assert (by_ref[103].name, by_ref[103].public, by_ref[103].private, by_ref[103].oof) == ("s3", 0.889, 0.888, 0.89)
    assert (by_ref[900].build, by_ref[900].status) == ("abcdefabcdef", "error")
    assert by_ref[0].name == "s2" and by_ref[0].public == 0.8802 and by_ref[0].private == 0.879
    kept = {each["ref"]: each for each in read_json(ledger)["submissions"]}
    assert (kept[103]["public_score"], kept[103]["private_score"], kept[102]["public_score"]) == (
        "0.8890",
        "0.8880",
        "0.8802",
    )
    assert kept[100] == entry(0)


def test_a_kaggle_that_refuses_leaves_the_ledger(ledger: Path) -> None:
    found = read_history(ledger, CASSAVA, Kaggle(refusal="503"))  # type: ignore[arg-type]
    assert len(found.submissions) == 4 and found.notes == ("Kaggle lists no submissions: 503",)


def test_few_or_equal_scores_have_no_correlation(tmp_path: Path) -> None:
    ledger = tmp_path / "submissions.json"
    write_json(ledger, {"submissions": [entry(0), entry(1, competition="another")]})
    assert "not known (1 have both, 3 are needed)" in str(read_history(ledger, CASSAVA, None))
    write_json(ledger, {"submissions": [entry(0, ref=number, public_score=".9") for number in range(3)]})
    assert "not known (they do not differ)" in str(read_history(ledger, CASSAVA, None))
    nothing = read_history(tmp_path / "none.json", CASSAVA, None)
    assert str(nothing).startswith("no submissions") and "is recorded in" in nothing.notes[0]


def test_the_evidence_is_read_where_the_ledger_has_no_score(tmp_path: Path) -> None:
    """400 rows, 360 right: .9; an older ledger keeps the files alone."""
    labels = np.arange(400) % 5
    answers = np.where(np.arange(400) < 360, labels, (labels + 1) % 5)
    ids = [f"{n}.jpg" for n in range(400)]
    frame = pd.DataFrame({"image_id": ids, "label": labels, "fold": np.arange(400) % 2})
    folder = tmp_path / "submissions/100"
    folder.mkdir(parents=True)
    frame.to_csv(folder / "folds.csv", index=False)
    (folder / "oof.csv").write_text(
        "image_id,fold,p0,p1,p2,p3,p4\n"
        + "".join(
            f"{name},{n % 2},{','.join('1' if answers[n] == k else '0' for k in range(5))}\n"
            for n, name in enumerate(ids)
        )
    )
    old = {key: value for key, value in entry(0).items() if key != "oof"}
    write_json(tmp_path / "submissions.json", {"submissions": [old]})
    (found,) = read_history(tmp_path / "submissions.json", CASSAVA, None).submissions
    assert found.oof == pytest.approx(0.9)
    assert compare_public(tmp_path / "submissions.json", old).startswith("public .9012 inside .86")


def test_a_score_is_compared_with_what_was_recorded(ledger: Path) -> None:
    assert compare_public(ledger, entry(0)) == "public .9012 inside .800 to .950"
    assert "outside .800 to .950: worse" in compare_public(ledger, entry(0, public_score="0.5"))
    assert "not shown yet" in compare_public(ledger, entry(3))
    assert "no out-of-fold evidence" in compare_public(ledger, entry(0, oof=None))


def test_the_command_prints_a_table_or_json(
    ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_app(submit_app, ["history", "--offline", "--ledger", str(ledger)]) == 0
    assert "over 3 submissions" in capsys.readouterr().out
    monkeypatch.setattr(
        "cassava_kit.kaggle.send.client.KaggleClient",
        lambda slug, waits: (_ for _ in ()).throw(KaggleError("no credentials")),
    )
    assert run_app(submit_app, ["history", "--ledger", str(ledger), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["notes"] == ["Kaggle is not asked: no credentials"] and len(said["submissions"]) == 4


class Api:
    """A client without the SDK's tokens: numbered pages, missing fields, numbers for text."""

    def __init__(self, pages: list[list[Any]]) -> None:
        self.pages, self.asked = pages, list[int]()

    def competition_submissions(self, competition: str, page_number: int = -1, page_size: int = 20) -> list[Any] | None:
        self.asked.append(page_number)
        return self.pages[page_number - 1] if page_number <= len(self.pages) else None


def test_another_client_is_read_with_what_it_leaves_out() -> None:
    full = SimpleNamespace(ref="7", description="a", status="SubmissionStatus.COMPLETE", public_score=0.9, date="2026")
    pages = [[full, None], [SimpleNamespace(description="b"), SimpleNamespace(ref=9, status="error")]]
    api = Api(pages)
    found = list(KaggleClient("c", api=api, say=print).submissions())
    assert [(each.ref, each.description, each.status, each.score, each.date) for each in found] == [
        (7, "a", "complete", "0.9", "2026"),
        (0, "b", "pending", "", ""),
        (9, "", "error", "", ""),
    ]
    assert api.asked == [1, 2, 3]
    same = Api([[full]] * 50)
    assert len(list(KaggleClient("c", api=same, say=print).submissions())) == 1, "one that knows no pages ends"
    with pytest.raises(KaggleError, match="lists no submissions"):
        list(KaggleClient("c", api=SimpleNamespace(), say=print).submissions())
