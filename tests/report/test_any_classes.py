"""Pages are whole for any number of classes, any name, any metric, with and without test images."""

import shutil
from dataclasses import replace

import chrome
import cv2
import numpy as np
import pandas as pd
import pytest
from cells import Cells
from test_report import write_run

from cassava_kit.competition import Competition
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.report.eda_page import write_eda
from cassava_kit.report.runs_page import write_report
from cassava_kit.report.sheet import contact_sheet

NAME = 'Ω класс 健康 {k} <b>&"$x^2$" with a name that is much longer than any place for it on any page, chart or sheet'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    session = chrome.open_chromium(tmp_path_factory.mktemp("profile"))
    yield session
    session.quit()


def competition(n_classes, metric):
    columns = tuple(f"p{k}" for k in range(n_classes)) if metric == "log_loss" else ()
    names = tuple(NAME.format(k=k) for k in range(n_classes))
    return Competition(slug="zoo", title="Zoo <1>", classes=names, metric=metric, probability_columns=columns)


def make_folder(folder, facts, *, n=120):
    """A competition's folder of `n` small pictures, a third of them of the first class, with thirty test images."""
    rng = np.random.default_rng(0)
    for name, count in (("train_images", n), ("test_images", 30)):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            picture = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48))
            cv2.imwrite(str(folder / name / f"{k:03d}.jpg"), picture)
    labels = np.arange(n) % facts.n_classes
    table = pd.DataFrame({"image_id": [f"{k:03d}.jpg" for k in range(n)], "label": labels})
    table.to_csv(folder / "train.csv", index=False)
    return table


@pytest.mark.parametrize(("n_classes", "metric"), [(2, "macro_f1"), (9, "accuracy"), (40, "log_loss")])
def test_pages_of_any_classes(tmp_path, browser, monkeypatch, n_classes, metric):
    monkeypatch.setenv("CASSAVA_KIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cassava_kit.report.charts.png_bytes", lambda figure: b"not looked at")
    facts = competition(n_classes, metric)
    table = make_folder(tmp_path / "data", facts)
    split = replace(split_folds(table, n_splits=3, seed=0), task=facts.task)
    write_folds(tmp_path / "folds.csv", split)
    labels = split.frame["label"].to_numpy()
    scores = np.random.default_rng(1).normal(size=(120, n_classes)) + 2 * np.eye(n_classes)[labels]
    run, out = tmp_path / NAME[:60], tmp_path / "report.html"
    write_run(run, split, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), task=facts.task)
    write_report([run], out, folds=tmp_path / "folds.csv", data=tmp_path / "data", competition=facts)
    # A matrix of forty classes is an overview; the table under it says the same in words.
    chrome.check_page(browser, out, smallest=8.5 if n_classes <= 12 else 2.5)
    page = Cells(out.read_text(encoding="utf-8"))
    assert any(row[0] == f"0 {facts.classes[0]}" for row in page.rows)
    assert ("Most frequent confusions" in page.text) == (n_classes > 12)
    write_eda(tmp_path / "data", tmp_path / "eda.html", competition=facts, progress=False)
    chrome.check_page(browser, tmp_path / "eda.html", smallest=7.5)
    if n_classes == 9:
        shutil.rmtree(tmp_path / "data" / "test_images")
        write_eda(tmp_path / "data", tmp_path / "eda.html", competition=facts, progress=False)
        chrome.check_page(browser, tmp_path / "eda.html")
        assert "There are no test images" in Cells((tmp_path / "eda.html").read_text(encoding="utf-8")).text
    contact_sheet(tmp_path / "data", tmp_path / "sheet.png", columns=2, competition=facts)
