"""Where submissions are written down and outputs are kept: beside build/."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cassava_kit.cli.kaggle import OUTPUTS, confirmed, output_folder, send
from cassava_kit.errors import UserError
from cassava_kit.evidence.finals import add_to_ledger, hold_ledger, read_entries
from cassava_kit.files import read_json, write_json
from cassava_kit.inference.ensemble import ENSEMBLE_FILE, Ensemble, EnsembleMember, write_ensemble
from cassava_kit.kaggle.pack.bundle import Bundle
from cassava_kit.kaggle.pack.kernels import find_kernel
from cassava_kit.kaggle.send.history import _write_scores
from cassava_kit.kaggle.send.ledger import LEDGER, OLD_LEDGER, adopt_old_ledger, record_submission
from cassava_kit.kaggle.send.remote import Submission


def test_an_old_ledger_is_copied_once_with_its_evidence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adopt_old_ledger(LEDGER) == LEDGER and not LEDGER.exists(), "there is none"
    Path("build/submissions/7").mkdir(parents=True)
    Path("build/submissions/7/oof.csv").write_text("evidence")
    entries = [{"ref": ref, "name": f"s{ref}", "evidence": f"build/submissions/{ref}"} for ref in (7, 8)]
    write_json(OLD_LEDGER, {"submissions": entries})
    assert adopt_old_ledger(Path("mine.json")) == Path("mine.json") and not LEDGER.exists()
    adopt_old_ledger(LEDGER)
    assert capsys.readouterr().out.count("\n") == 1
    assert [entry["evidence"] for entry in read_json(LEDGER)["submissions"]] == ["submissions/7", "submissions/8"]
    assert Path("submissions/7/oof.csv").read_text() == "evidence" and OLD_LEDGER.is_file()
    write_json(LEDGER, {"submissions": []})
    adopt_old_ledger(LEDGER)
    assert not read_json(LEDGER)["submissions"], "it is there"


@pytest.mark.parametrize("content", [[], {"submissions": {}}, {"submissions": [7]}, {"submissions": [{"ref": 7}]}])
@pytest.mark.parametrize("place", [LEDGER, OLD_LEDGER])
def test_a_ledger_of_another_shape_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, place: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cassava_kit.cli.kaggle.push_bundle", lambda *_, **__: pytest.fail("it was sent"))
    write_json(place, content)
    with pytest.raises(UserError, match=f"{place} has no list of submissions, each with name and evidence"):
        send(None, submit=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"{place} has no list of submissions"):
        add_to_ledger(place, {"ref": 8, "name": "b", "evidence": "8"})
    assert read_json(place) == content


def test_an_old_ledger_without_references_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(OLD_LEDGER, {"submissions": [{"name": "a", "evidence": "a"}]})
    with pytest.raises(UserError, match="has a submission without ref"):
        adopt_old_ledger(LEDGER)


def test_a_submission_is_recorded_with_a_copy_of_its_evidence(tmp_path: Path) -> None:
    home, ledger = tmp_path / "bundle", tmp_path / "project/submissions.json"
    members = tuple(EnsembleMember(name=name, weight=0.5, checkpoints=(f"{name}-fold0.safetensors",)) for name in "ab")
    (home / "weights").mkdir(parents=True)
    (home / "evidence").mkdir()
    write_ensemble(home / "weights" / ENSEMBLE_FILE, Ensemble(members=members, prior=(0.5, 0.5)))
    bundle = Bundle(home / "kit", home / "weights", home / "kernel", "b" * 64, find_kernel("ensemble-submission"))
    for ref, said in ((7, "evidence"), (8, "of a later build")):
        (home / "evidence/oof.csv").write_text(said)
        submission = Submission(ref, "a description", "complete", "0.9", "")
        record_submission(ledger, replace(bundle, build_id=str(ref) * 64), submission)
    first, second = read_json(ledger)["submissions"]
    assert (first["ref"], first["name"], first["public_score"], first["members"]) == (7, "a+b@77777777", "0.9", 2)
    assert (ledger.parent / first["evidence"] / "oof.csv").read_text() == "evidence"
    assert (ledger.parent / second["evidence"] / "oof.csv").read_text() == "of a later build"
    assert not Path(first["evidence"]).is_absolute()


def test_outputs_of_earlier_versions_are_moved_out_of_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "build/kernels"
    trainer = Bundle(home / "kit", home / "weights", home / "kernel", "b" * 64, find_kernel("train-folds"))
    (home / "output-train-folds/runs").mkdir(parents=True)
    assert output_folder(trainer) == OUTPUTS / "train-folds" and (OUTPUTS / "train-folds/runs").is_dir()
    assert "moved" in capsys.readouterr().out
    (home / "output-train-folds/others").mkdir(parents=True)
    assert output_folder(trainer) == OUTPUTS / "train-folds" and not capsys.readouterr().out, "never into another one"
    first, second = (
        Bundle(home / "kit", home / "weights", home / "kernel", build * 64, find_kernel("ensemble-submission"))
        for build in "ab"
    )
    assert output_folder(first) != output_folder(second)


def test_without_a_terminal_the_last_submission_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not confirmed("Make it?")
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    for answer, agreed in (("y", True), ("Yes ", True), ("", False), ("n", False)):
        monkeypatch.setattr("builtins.input", lambda prompt, answer=answer: answer)
        assert confirmed("Make it?") is agreed


LISTED = Submission(1, "a", "complete", "0.9", "")
ADD = """
import sys
from pathlib import Path
from cassava_kit.evidence import finals

ledger, first = Path(sys.argv[1]), int(sys.argv[2])
for number in range(first, first + 8):
    finals.add_to_ledger(ledger, {"ref": number, "name": f"s{number}", "evidence": str(number)})
"""


def test_submissions_of_several_processes_are_all_recorded(tmp_path: Path) -> None:
    ledger = tmp_path / "deep" / "submissions.json"
    adding = [subprocess.Popen([sys.executable, "-c", ADD, str(ledger), str(8 * n)]) for n in range(2)]
    assert [process.wait(timeout=120) for process in adding] == [0, 0]
    assert sorted(entry["ref"] for entry in read_entries(ledger)) == list(range(16))


@pytest.mark.parametrize("write", [add_to_ledger, lambda ledger, entry: _write_scores(ledger, [LISTED], [entry])])
def test_a_ledger_that_another_process_writes_is_waited_for(tmp_path: Path, write: Callable[..., None]) -> None:
    """What was written while the lock was held is there, and is kept."""
    ledger, entry = tmp_path / "submissions.json", {"ref": 1, "name": "a", "evidence": "1"}
    add_to_ledger(ledger, entry)
    waiting = threading.Thread(target=write, args=(ledger, entry))
    with hold_ledger(ledger):
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive(), "it waits"
        other = {"ref": 2, "name": "b", "evidence": "2"}
        write_json(ledger, {"submissions": [entry, other]})
    waiting.join(30)
    assert {each["ref"] for each in read_entries(ledger)} == {1, 2}


def test_an_old_ledger_does_not_replace_one_that_was_written_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(OLD_LEDGER, {"submissions": [{"ref": 1, "name": "old", "evidence": "gone"}]})
    real = shutil.copytree
    (tmp_path / "gone").mkdir()

    def copied(*arguments: Any, **options: Any) -> Any:
        add_to_ledger(LEDGER, {"ref": 2, "name": "new", "evidence": "2"})
        return real(*arguments, **options)

    monkeypatch.setattr(shutil, "copytree", copied)
    assert [entry["name"] for entry in read_entries(adopt_old_ledger(LEDGER))] == ["new"]
