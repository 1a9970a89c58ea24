"""Pages call classes as the competition's own labels do: names alone, or numbers and names where labels are numbers."""

import re
from dataclasses import replace

import pandas as pd
import pytest
from cells import Cells
from test_any_classes import make_folder
from test_report import guesses, write_run
from test_review import page_data

from cassava_kit.competition import CASSAVA, VARIABLE, Competition, Task, labels_are_numbers, write_facts
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.evidence.noise.clean import clean_labels
from cassava_kit.evidence.noise.decisions import write_noise_report
from cassava_kit.evidence.oof import Evidence
from cassava_kit.report.eda_page import write_eda
from cassava_kit.report.fonts import wrap
from cassava_kit.report.page import name_classes
from cassava_kit.report.review import write_review
from cassava_kit.report.runs_page import write_report

NAMES = ("Brûlure bactérienne", "Striure brune (« streak »)", "Marbrure (CGM)", "Mosaïque", "Feuille saine")
SHORT = ("Brûlure bactérienne", "Striure brune (« streak »)", "CGM", "Mosaïque", "Feuille saine")


@pytest.mark.parametrize(
    ("classes", "numbered", "short"),
    [
        (NAMES, False, SHORT),
        (NAMES[2:4], True, ("0 CGM", "1 Mosaïque")),
        (("left (A1)", "right (A1)"), False, ("left (A1)", "right (A1)")),  # one abbreviation for two
        (("leaf (1)", "leaf (2)"), False, ("leaf (1)", "leaf (2)")),  # a number is no abbreviation
        (("0", "1"), True, ("0", "1")),
    ],
)
def test_short_names(classes, numbered, short):
    assert name_classes(classes, numbered=numbered).short == short


def test_labels_are_numbers_only_where_the_data_call_them_so(monkeypatch, tmp_path):
    assert labels_are_numbers(CASSAVA.task) and labels_are_numbers(None)
    assert not labels_are_numbers(Task("elsewhere", "accuracy", NAMES)), "its facts are not at hand"
    for named in ({"label_values": NAMES}, {"label_columns": NAMES}):
        facts = Competition(slug="zoo", title="Zoo", classes=NAMES, **named)
        assert not labels_are_numbers(facts.task, facts)
        write_facts(tmp_path / "zoo.json", facts)
        monkeypatch.setenv(VARIABLE, str(tmp_path / "zoo.json"))
        assert not labels_are_numbers(facts.task) and not labels_are_numbers(None)
        assert labels_are_numbers(CASSAVA.task)


@pytest.mark.parametrize("named", [True, False])
def test_pages_and_lines_show_numbers_for_labels_that_are_numbers_alone(tmp_path, monkeypatch, undrawn, named):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))
    facts = Competition(slug="zoo", title="Zoo", classes=NAMES, label_values=NAMES if named else ())
    write_facts(tmp_path / "zoo.json", facts)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "zoo.json"))
    data = tmp_path / "data"
    table = make_folder(data, facts, n=60)
    if named:
        written = table.assign(label=[NAMES[k] for k in table["label"]])
        written.to_csv(data / "train.csv", index=False)
    split = replace(split_folds(table, n_splits=2, seed=0), task=facts.task)
    write_folds(tmp_path / "folds.csv", split)
    labels = split.frame["label"].to_numpy()
    probabilities = guesses(labels, 1.0, 0)
    write_run(tmp_path / "run", split, probabilities, note="", task=facts.task)
    write_report([tmp_path / "run"], tmp_path / "report.html", folds=tmp_path / "folds.csv", data=data)
    write_eda(data, tmp_path / "eda.html", progress=False)
    ids, fold = split.frame["image_id"].to_numpy(), split.frame["fold"].to_numpy()
    evidence = Evidence(("run",), ids, labels, fold, probabilities[None], split.hash, task=facts.task)
    cleaning = clean_labels(evidence)
    write_noise_report(tmp_path / "clean.csv", cleaning.report)
    write_review(tmp_path / "clean.csv", data, tmp_path / "review.html")
    report, eda = (Cells((tmp_path / f"{page}.html").read_text(encoding="utf-8")) for page in ("report", "eda"))
    first = f"{'' if named else '0 '}{NAMES[0]}"
    assert any(row[:1] == [first] for row in report.rows) and any(row[:1] == [first] for row in eda.rows)
    numbered = re.compile(rf"\b\d ({'|'.join(map(re.escape, (*NAMES, *SHORT)))})")
    assert bool(numbered.search(report.text)) is bool(numbered.search(eda.text)) is not named
    assert (["class", "label", "rows", "share"] in eda.rows) is not named
    shown = page_data(tmp_path / "review.html")
    assert shown["classes"][0] == shown["brief"][0] == first and shown["numbered"] is not named
    assert ("\n0  Brûlure" in re.sub(" +", "  ", str(cleaning))) is not named


def test_a_class_that_no_member_knows_is_named():
    labels = pd.Series([0, 1, 2, 3] * 10).to_numpy()
    probabilities = guesses(labels, 3.0, 0)
    probabilities[:, 2] = 1e-6
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    ids = pd.Series(range(40)).astype(str).to_numpy()
    task = Task("zoo", "accuracy", NAMES)
    said = str(clean_labels(Evidence(("run",), ids, labels, labels % 2, probabilities[None], "", task=task)))
    assert "no row is predicted as Marbrure (CGM): the members do not know it" in said


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("Mosaïque africaine à très grande étendue", 3, "Mosaïque\nafricaine à très\ngrande étendue"),
        ("Mosaïque africaine à très grande étendue", 2, "Mosaïque\nafricaine à trè…"),
        ("Mosaïque africaine à très grande étendue", 1, "Mosaïque africa…"),
        ("x" * 20, 2, "x" * 16 + "\nxxxx"),
        ("Healthy", 3, "Healthy"),
        ("", 3, ""),
    ],
)
def test_long_names_are_wrapped_before_they_are_cut(text, lines, shown):
    assert wrap(text, 16, lines) == shown
