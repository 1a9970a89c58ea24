"""`--json`: the document alone on standard output, with values that come from elsewhere; lines go to standard error."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from cassava_kit.cli.app import run_app
from cassava_kit.cli.output import Result, print_result
from cassava_kit.cli.verbs import app
from cassava_kit.data.folds import Folds, write_folds
from cassava_kit.evidence.predictions import Header, make_predictions, write_predictions
from cassava_kit.training.recipes import recipe_names

PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
N = 120
LABELS = np.arange(N) % 5
# Rows that each member has wrong: `a` 12 of 120, `b` 30, of which 6 are those of `a`.
WRONG = {"a": np.arange(N) < 12, "b": (np.arange(N) >= 6) & (np.arange(N) < 36)}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with a split and two members' out-of-fold files, in which the command runs."""
    names = [f"{i:03d}.jpg" for i in range(N)]
    split = Folds(pd.DataFrame({"image_id": names, "label": LABELS, "fold": np.arange(N) // 5 % 3}))
    write_folds(tmp_path / "folds.csv", split)
    for name, wrong in WRONG.items():
        given = np.eye(5)[np.where(wrong, (LABELS + 1) % 5, LABELS)] * 0.6 + 0.08
        header = Header(name=name, kind="oof", fold_hash=split.hash, labels_seen=("rows were cleaned",))
        fold = split.frame["fold"].to_numpy()
        write_predictions(tmp_path / f"{name}.csv", make_predictions(np.array(names), given, header=header, fold=fold))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(capsys, *arguments: str, code: int = 0):
    """What the command writes to standard output, which must be one document, and to standard error.

    Its keys must be on the page on formats.
    """
    assert run_app(app, [*arguments, "--json"]) == code
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    command = " ".join(word for word in arguments if word in ("compare", "ensemble", "recipes", "doctor", "finals"))
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{command}` |"))
    if arguments[:2] != ("recipes", "small_resnet"):
        assert [key for key in found if f"`{key}`" not in row] == [], row
    return found, shown.err


def test_compare_says_what_counting_and_scipy_say(home, capsys):
    found, said = ask(capsys, "compare", "b.csv", "a.csv", "--folds", "folds.csv")
    assert said == ""
    assert found["names"] == ["b", "a"] and found["only_right"] == [6, 24] and found["metric"] == "accuracy"
    assert [each["value"] for each in found["scores"]] == pytest.approx([90 / 120, 108 / 120])
    assert [each["n"] for each in found["scores"]] == [120, 120]
    assert found["difference"] == pytest.approx(18 / 120)
    assert found["p_value"] == pytest.approx(binomtest(6, 30, 0.5).pvalue)
    low, high = found["interval"]
    assert 0 < low < 18 / 120 < high and found["proved"] is True and found["level"] == 0.95
    assert found["notes"] == ["b: rows were cleaned", "a: rows were cleaned"]


def test_ensemble_prints_the_file_that_it_writes(home, capsys):
    found, _ = ask(capsys, "ensemble", "--oof", "a.csv", "--oof", "b.csv", "--folds", "folds.csv", "--out", "w.json")
    assert found.pop("file") == "w.json"
    assert found == json.loads((home / "w.json").read_text())
    assert found["report"]["members"] == pytest.approx({"a": 108 / 120, "b": 90 / 120})
    assert [each["name"] for each in found["members"]] == ["a", "b"]


def test_finals_name_the_two_and_what_is_left_out_goes_beside(home, capsys, monkeypatch):
    candidates = ["--candidate", "x=a.csv", "--candidate", "y=b.csv"]
    found, _ = ask(capsys, "submit", "finals", "--folds", "folds.csv", *candidates)
    assert found["finals"] == ["x", "y"] and found["left_out"] == []
    assert [each["score"]["value"] for each in found["submissions"]] == pytest.approx([0.9, 0.75])
    assert sum(each["best_of_all"] for each in found["submissions"]) == pytest.approx(1)
    assert found["differ"] == pytest.approx((6 + 24) / 120)
    assert found["against_best"][0]["difference"] == pytest.approx(-18 / 120)
    # A ledger: the evidence of each in a folder, and one without.
    for name in WRONG:
        (home / name).mkdir()
        for end in (".csv", ".json"):
            (home / f"{name}/folds{end}").write_bytes((home / f"folds{end}").read_bytes())
            (home / f"{name}/oof{end}").write_bytes((home / f"{name}{end}").read_bytes())
    entries = [{"name": name, "evidence": name, "build_id": name} for name in ("gone", "a", "b")]
    (home / "submissions.json").write_text(json.dumps({"submissions": entries}))
    found, said = ask(capsys, "submit", "finals")
    assert found["finals"] == ["a", "b"]
    assert found["left_out"] == ["gone has no out-of-fold evidence in gone"]
    assert said == "left out: gone has no out-of-fold evidence in gone\n"


def test_recipes_are_the_table_and_hours_the_line(home, capsys):
    found, _ = ask(capsys, "recipes")
    assert [each["name"] for each in found["train"]] == ["logreg", *recipe_names()]
    assert all(each["about"] and "hours" not in each for rows in found.values() for each in rows)
    assert run_app(app, ["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "train:",
        *(each["name"] for each in found["train"]),
        "pretrain:",
    ] + [each["name"] for each in found["pretrain"]]
    found, _ = ask(capsys, "recipes", "small_resnet", "--hours", "--n-images", "1000", "--n-splits", "3")
    assert run_app(app, ["recipes", "small_resnet", "--hours", "--n-images", "1000", "--n-splits", "3"]) == 0
    assert capsys.readouterr().out.startswith(f"small_resnet: {found['hours']:.1f} h of two T4s, with an assumed speed")
    settings, _ = ask(capsys, "recipes", "small_resnet")
    assert settings["recipe"] == "small_resnet" and settings["model"]


def test_a_damaged_bundle_is_one_failed_check_and_exit_code_1(home, capsys):
    (home / "empty").mkdir()
    found, said = ask(capsys, "submit", "doctor", "--bundle", "empty", code=1)
    assert said == "" and found["ok"] is False and found["bundle"] == "empty"
    assert [(each["cause"], each["status"]) for each in found["checks"]] == [("bundle", "failed")]
    assert "empty" in found["checks"][0]["detail"]


def test_a_mistake_leaves_standard_output_empty(home, capsys):
    assert run_app(app, ["compare", "a.csv", "none.csv", "--folds", "folds.csv", "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("error: ") and shown.err.count("\n") == 1


def test_what_is_printed_on_the_way_is_not_in_the_document(capsys):
    def make():
        print("on the way")
        return Result("text", {"rows": 3})

    print_result(make, as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"rows": 3} and shown.err == "on the way\n"
    print_result(make, as_json=False)
    assert capsys.readouterr().out == "on the way\ntext\n"
