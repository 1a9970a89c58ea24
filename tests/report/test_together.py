"""The runs of a report as one ensemble: figures are numpy's and those of the verb `ensemble`."""

import chrome
import numpy as np
import pytest
from test_report import guesses, joined, write_run

from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.evidence.blend import weigh_files
from cassava_kit.files import read_json
from cassava_kit.report.runs_gather import gather_report
from cassava_kit.report.runs_page import write_report
from cassava_kit.report.runs_together import MOST_MEMBERS, together_values


@pytest.fixture(scope="module")
def material(tiny_table, tmp_path_factory):
    """runs/good, runs/fair, runs/bad over all folds, runs/part over one."""
    root = tmp_path_factory.mktemp("together")
    split = split_folds(tiny_table.frame, n_splits=3, seed=0)
    write_folds(root / "folds.csv", split)
    labels = split.frame["label"].to_numpy()
    for seed, (name, skill) in enumerate({"good": 3.0, "fair": 2.0, "bad": -1.0}.items()):
        write_run(root / "runs" / name, split, guesses(labels, skill, seed))
    write_run(root / "runs" / "part", split, guesses(labels, 3.0, 3), folds=[0])
    return root, split


def test_the_page_says_what_the_members_are_worth_together(material, tmp_path):
    root, split = material
    out = root / "page" / "report.html"
    write_report([root / "runs"], out, folds=root / "folds.csv")
    text = " ".join(out.read_text(encoding="utf-8").split())
    found = together_values(gather_report([root / "runs"], folds=root / "folds.csv"))["together"]
    assert found["names"] == ["good", "fair", "bad"], "runs that hold out every row, the best first"
    wrong = []
    for name in found["names"]:
        labels, probabilities = joined(root, name, split)
        wrong.append(probabilities.argmax(axis=1) != labels)
    assert found["correlations"] == [
        [name, *(f"{value:.2f}" for value in row)] for name, row in zip(found["names"], np.corrcoef(wrong), strict=True)
    ]
    alike = (np.corrcoef(wrong).sum(axis=1) - 1) / 2
    assert [row[2] for row in found["rows"]] == [f"{value:.2f}" for value in alike]
    for words in ('id="together"', 'href="#together"', "Leave bad out: +", found["score"], found["rows"][2][3]):
        assert words in text, words
    browser = chrome.open_chromium(tmp_path / "profile")
    try:
        chrome.check_page(browser, out)
    finally:
        browser.quit()


def test_it_is_the_judgement_of_the_verb_ensemble(material):
    root, _ = material
    files = []
    for name in ("good", "fair", "bad"):
        whole = root / f"{name}.csv"
        frames = [(root / "runs" / name / f"fold{k}" / "oof.csv").read_text().splitlines() for k in range(3)]
        whole.write_text("\n".join([frames[0][0], *(line for lines in frames for line in lines[1:])]) + "\n")
        files.append(whole)
    weigh_files(files, root / "folds.csv", root / "weights.json")
    said = read_json(root / "weights.json")["report"]["advice"]["sentence"]
    assert together_values(gather_report([root / "runs"], folds=root / "folds.csv"))["together"]["advice"] == said


def test_one_run_or_too_many_have_no_such_section(material, tmp_path, tiny_table):
    root, split = material
    alone = gather_report([root / "runs" / "good"], folds=root / "folds.csv")
    assert together_values(alone) == {"together": None}
    labels = split.frame["label"].to_numpy()
    for n in range(MOST_MEMBERS + 1):
        write_run(tmp_path / f"run{n}", split, guesses(labels, 2.0, n))
    assert together_values(gather_report([tmp_path], folds=root / "folds.csv")) == {"together": None}
    out = tmp_path / "page" / "report.html"
    write_report([root / "runs" / "good"], out, folds=root / "folds.csv")
    assert "together" not in out.read_text(encoding="utf-8")
