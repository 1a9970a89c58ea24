"""The page on runs: its numbers are those of `oof`, `compare` and `calibration`; what may not be scored is refused."""

import json
import re
import shutil
from dataclasses import replace

import chrome
import numpy as np
import pandas as pd
import pytest
from cells import Cells
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, f1_score, recall_score

from cassava_kit.cli.app import run_app
from cassava_kit.cli.verbs import app
from cassava_kit.competition import CASSAVA, Task
from cassava_kit.data.folds import read_folds, write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.data.table import TrainTable
from cassava_kit.evidence.calibration import ece, logloss
from cassava_kit.evidence.compare import compare
from cassava_kit.evidence.metrics import accuracy, majority
from cassava_kit.evidence.metrics import score as score_of
from cassava_kit.evidence.predictions import Header, Source, make_predictions, read_predictions, write_predictions
from cassava_kit.report import charts
from cassava_kit.report.charts import INK, chart
from cassava_kit.report.runs import differing_settings, find_runs, findings
from cassava_kit.report.runs_gather import gather_report
from cassava_kit.report.runs_page import unique_slugs, write_report
from cassava_kit.report.runs_scores import ScoredRun, compare_pairs, majority_of, recalls, worst_mistakes
from cassava_kit.report.runs_words import confusion_rows, find_warnings, headline
from cassava_kit.training.baseline import train_baseline
from cassava_kit.training.rows import TrainData

NOTE = "predicts class 3 (Cassava Mosaic Disease (CMD)) for 98% of <the> validation images"


def guesses(labels, skill, seed):
    """Probabilities (N, 5) of a model that is right as often as its skill says, by chance."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(len(labels), 5)) + skill * np.eye(5)[labels]
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)


def write_run(folder, split, probabilities, *, folds=None, epochs=4, note=NOTE, task=None, **config):
    """A run folder as training leaves it; `probabilities` (N, K) are in the split's row order; the note is fold 1's."""
    labels, numbers = split.frame["label"].to_numpy(), split.frame["fold"].to_numpy()
    for k in range(split.n_splits) if folds is None else folds:
        path, mine = folder / f"fold{k}", numbers == k
        path.mkdir(parents=True)
        source = Source(name=f"{folder.name}-fold{k}", fold=k, fold_hash=split.hash)
        fields = {"name": source.name, "kind": "oof", "fold_hash": split.hash, "sources": (source,)}
        header = Header(**fields, **(task.header() if task else {}))
        ids = split.frame["image_id"].to_numpy()[mine]
        part = make_predictions(ids, probabilities[mine], header=header, fold=numbers[mine])
        write_predictions(path / "oof.csv", part)
        settings = {"recipe": folder.name, "about": f"About {folder.name}.", "lr": 0.001, "epochs": epochs, **config}
        (path / "config.json").write_text(json.dumps(settings))
        score = accuracy(labels[mine], part.probabilities)
        done = {"oof_accuracy": score.accuracy, "oof_standard_error": score.standard_error, "oof_rows": score.n}
        (path / "run.json").write_text(json.dumps({**done, "labels": "given", "seconds": 90.0}))
        metrics(epochs, note=note if k == 1 else "").to_csv(path / "metrics.csv", index=False)


def metrics(epochs, note=""):
    """Rows of a `metrics.csv`; the note is the last epoch's."""
    epoch = np.arange(epochs)
    return pd.DataFrame(
        {
            "epoch": epoch,
            "train_loss": 1.5 - 0.1 * epoch,
            "train_accuracy": 0.5 + 0.05 * epoch,
            "val_loss": 1.6 - 0.08 * epoch,
            "val_accuracy": 0.5 + 0.04 * epoch,
            "note": [""] * (epochs - 1) + [note],
        }
    )


@pytest.fixture(scope="module")
def material(tiny_table, tmp_path_factory):
    """Folder with a fold file of three folds, runs/good, runs/fair, and runs/part (fold 0 alone)."""
    root = tmp_path_factory.mktemp("material")
    split = split_folds(tiny_table.frame, n_splits=3, seed=0)
    write_folds(root / "folds.csv", split)
    labels = split.frame["label"].to_numpy()
    write_run(root / "runs" / "good", split, guesses(labels, 4.0, 1))
    write_run(root / "runs" / "fair", split, guesses(labels, 2.0, 2), lr=0.01)
    write_run(root / "runs" / "part", split, guesses(labels, 3.0, 3), folds=[0], epochs=6)
    return root, split


@pytest.fixture(scope="module")
def written(material, tiny_dir):
    """The page of all three runs with pictures, and its cells."""
    root, split = material
    out = root / "page" / "report.html"
    write_report([root / "runs"], out, folds=root / "folds.csv", data=tiny_dir)
    return out, split, Cells(out.read_text(encoding="utf-8"))


def joined(root, name, split):
    """A run's labels and probabilities in the split's row order, read here and not by the kit's report."""
    frame = pd.concat([pd.read_csv(path) for path in sorted((root / "runs" / name).glob("fold*/oof.csv"))])
    frame = split.frame.merge(frame.drop(columns="fold"), on="image_id")
    return frame["label"].to_numpy(), frame[[f"p{k}" for k in range(5)]].to_numpy()


def test_scores_are_those_of_the_rows(material, written):
    root, split = material
    cells = written[2]
    for name, rows, folds in (("good", 120, "0, 1, 2"), ("fair", 120, "0, 1, 2"), ("part", 40, "0")):
        labels, probabilities = joined(root, name, split)
        recall = recall_score(labels, probabilities.argmax(axis=1), average="macro")
        told = cells.row(name, str(accuracy(labels, probabilities)))
        figures = [f"{logloss(labels, probabilities):.4f}", f"{ece(labels, probabilities):.4f}", f"{recall:.4f}"]
        assert told[:5] == [*figures, str(rows), folds]
    assert cells.row("majority", str(majority(split.frame["label"].to_numpy())))
    assert cells.row("good", str(accuracy(*joined(root, "good", split))))[-1] == "4.5 min"


def test_every_pair_is_compared_as_by_the_verb(material, written):
    root, split = material
    cells = written[2]
    (a, wrong), (_, right) = joined(root, "fair", split), joined(root, "good", split)
    result = compare(a, wrong.argmax(axis=1), right.argmax(axis=1))
    low, high = result.interval
    told = cells.row("good against fair")
    assert told[:4] == [
        f"{result.difference:+.4f}",
        f"{low:+.4f} to {high:+.4f}",
        f"{result.only_b} : {result.only_a}",
        f"{result.p_value:.3g}",
    ]
    assert told[5:] == ["120", "proved", "–"]
    pairs = [row[0] for row in cells.rows if row and " against " in row[0]]
    assert pairs == [
        "good against fair",
        "good against part",
        "fair against part",
        "good against majority",
        "fair against majority",
        "part against majority",
    ]


def test_a_part_run_is_compared_on_its_own_rows(material, written):
    root, split = material
    held = (split.frame["fold"] == 0).to_numpy()
    labels, good = joined(root, "good", split)
    part_labels, part = joined(root, "part", split)
    assert (part_labels == labels[held]).all()
    result = compare(part_labels, good[held].argmax(axis=1), part.argmax(axis=1))
    told = written[2].row("good against part")
    assert told[0] == f"{-result.difference:+.4f}" and told[5:7] == ["40", "proved" if result.proved else "not proved"]
    assert told[7] == ("–" if result.proved else f"{result.images_needed:,}")
    assert "It holds out 1 of 3 folds" in written[2].text
    for given in (["part", "good"], ["good", "part"]):
        report = gather_report([root / "runs" / name for name in given], folds=root / "folds.csv")
        pair = report.pairs[0]
        assert (pair.names, pair.only_a, pair.only_b) == (("part", "good"), result.only_b, result.only_a)
        assert [run.name for run in report.runs] == [one.name for one in report.scored] == ["good", "part"]


def test_recall_and_confusion(material, written):
    root, split = material
    for name in ("good", "fair"):
        labels, probabilities = joined(root, name, split)
        answers = probabilities.argmax(axis=1)
        one = gather_report([root / "runs" / name], folds=root / "folds.csv").scored[0]
        assert (one.confusion == confusion_matrix(labels, answers)).all()
        for k in range(5):
            hits, rows = int(((labels == k) & (answers == k)).sum()), int((labels == k).sum())
            interval = binomtest(hits, rows).proportion_ci(method="wilson")
            assert recalls(one)[k] == pytest.approx((hits / rows, interval.low, interval.high))
    shown = f"{recalls(one)[3][0]:.3f} ({recalls(one)[3][1]:.3f} to {recalls(one)[3][2]:.3f})"
    assert any(row[:2] == ["3 CMD", shown] for row in written[2].rows)


def test_a_class_without_rows_has_no_recall():
    one = ScoredRun("a", np.arange(2), np.array([0, 1]), np.zeros(2), np.array([[1.0, 0, 0], [0, 1, 0]]))
    assert np.isnan(recalls(one)[2]).all() and recalls(one)[:2, 0].tolist() == [1, 1]


def test_worst_mistakes_are_the_least_probable_labels(material):
    root, split = material
    report = gather_report([root / "runs" / "fair"], folds=root / "folds.csv")
    labels, probabilities = joined(root, "fair", split)
    worst = worst_mistakes(report.scored[0], split, 5)
    given = probabilities[np.arange(len(labels)), labels]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    expected = split.frame["image_id"].to_numpy()[wrong[np.argsort(given[wrong])][:5]]
    assert worst["image_id"].tolist() == expected.tolist()
    assert (worst["p_label"] <= worst["p_predicted"]).all()


def test_settings_that_differ(material):
    root, _ = material
    runs = find_runs([root / "runs"])
    assert [run.name for run in runs] == ["fair", "good", "part"]
    assert dict(differing_settings(runs)) == {"lr": ["0.01", "0.001", "0.001"], "epochs": ["4", "4", "6"]}
    assert differing_settings(runs[:1]) == []


def test_folds_that_differ_within_a_run_are_shown(material, tmp_path):
    root, _ = material
    shutil.copytree(root / "runs" / "good", tmp_path / "good")
    path = tmp_path / "good" / "fold2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lr": 0.5}))
    assert differing_settings(find_runs([tmp_path / "good"])) == [("lr", ["0.001 | 0.5"])]


def test_what_a_run_was_given_is_a_difference_too(material, tmp_path):
    _, split = material
    labels = split.frame["label"].to_numpy()
    for name, clean in (("plain", None), ("cleaned", "clean.csv 0123456789ab")):
        write_run(tmp_path / name, split, guesses(labels, 1, 0))
        for k in range(split.n_splits):
            done = tmp_path / name / f"fold{k}" / "run.json"
            content = json.loads(done.read_text()) if done.is_file() else {}
            done.write_text(json.dumps({**content, "given": {"clean": clean, "limit": None}}))
    runs = find_runs([tmp_path / "plain", tmp_path / "cleaned"])
    assert differing_settings(runs) == [("clean", ["none", "clean.csv 0123456789ab"])]


def test_findings_of_the_doctor_are_shown_and_escaped(material, written):
    root, _ = material
    assert findings(find_runs([root / "runs" / "good"])[0]) == [(1, 4, NOTE)]
    assert f"Fold 1, epoch 4: {NOTE}" in written[2].text
    assert "<the>" not in written[0].read_text(encoding="utf-8")


def test_curves_have_every_fold_for_train_and_validation(written):
    html = written[0].read_text(encoding="utf-8")
    for what in ("Loss", "Accuracy"):
        figure = html[html.index(f"{what} of good by epoch.") :]
        figure = figure[: figure.index("</svg>")]
        assert figure.count("stroke-dasharray") == 3 + 1  # training: three folds, and the legend
        assert all(text in figure for text in ("fold 0", "fold 1", "fold 2", "validation", "training"))
    assert written[2].rows.count(["fold 2", "4", "1.2000", "1.3600", "0.6500", "0.6200"]) == 2


def test_a_loss_that_is_not_finite_stops_nothing(material, tmp_path, undrawn):
    root, _ = material
    shutil.copytree(root / "runs" / "good", tmp_path / "good")
    table = metrics(4, note="the loss is not finite").assign(train_loss=[1.0, 2.0, np.inf, np.nan], val_loss=np.nan)
    table.drop(columns=["train_accuracy", "val_accuracy"]).to_csv(tmp_path / "good/fold0/metrics.csv", index=False)
    write_report([tmp_path / "good"], tmp_path / "r.html", folds=root / "folds.csv")
    cells = Cells((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert cells.row("fold 0") == ["4", "nan", "nan", "–", "–"]
    assert "Fold 0, epoch 4: the loss is not finite" in cells.text


def told(folder, split):
    """The text of the page on a folder's runs, with plain spaces."""
    write_folds(folder / "folds.csv", split)
    write_report([folder], folder / "r.html", folds=folder / "folds.csv")
    return Cells((folder / "r.html").read_text(encoding="utf-8")).text.replace("\u00a0", " ")


def blind(labels, skill, *classes):
    """Guesses of a model that never predicts these classes."""
    answers = guesses(labels, skill, 1)
    answers[:, classes] = 0
    return answers / answers.sum(axis=1, keepdims=True)


AMISS = "Nothing was found amiss"


def test_a_run_stuck_on_one_class_is_told_so(material, tmp_path, undrawn):
    _, split = material
    write_run(tmp_path / "stuck", split, np.tile([0.1, 0.1, 0.1, 0.6, 0.1], (120, 1)), note="")
    text = told(tmp_path, split)
    assert "1 run stuck predicts 3 CMD for 100 % of its rows. stuck has the best accuracy" in text
    assert "It predicts 3 CMD for 100 % of the rows. It never predicts 0 CBB" in text
    assert "is never predicted" not in text, "that is said once, by the line before"
    assert AMISS not in text


def test_a_class_that_is_never_predicted_is_said_first(material, tmp_path, undrawn):
    _, split = material
    labels = split.frame["label"].to_numpy()
    rows = int((labels == 2).sum())
    write_run(tmp_path / "blind", split, blind(labels, 4.0, 2), note="")
    text = told(tmp_path, split)
    assert f"1 run 2 CGM ({rows} rows) is never predicted. blind has the best accuracy" in text
    assert f"It never predicts 2 CGM ({rows} rows)." in text
    assert AMISS not in text


def test_a_class_that_several_runs_never_predict_is_said_once(material, tmp_path):
    _, split = material
    labels = split.frame["label"].to_numpy()
    n = [int((labels == k).sum()) for k in range(5)]
    for name, skill, classes in (("a", 5.0, [2]), ("b", 4.0, [2, 4]), ("c", 3.0, [2, 0])):
        write_run(tmp_path / name, split, blind(labels, skill, *classes))
    write_folds(tmp_path / "folds.csv", split)
    report = gather_report([tmp_path], folds=tmp_path / "folds.csv")
    assert find_warnings(report) == [
        f"0 CBB ({n[0]} rows) is never predicted by c.",
        f"No run predicts 2 CGM ({n[2]} rows).",
        f"4 Healthy ({n[4]} rows) is never predicted by b.",
    ]
    assert headline(report).startswith("a has the best accuracy")


def test_nothing_amiss_is_said_only_where_it_is_true(material, tmp_path, undrawn):
    _, split = material
    labels = split.frame["label"].to_numpy()
    write_run(tmp_path / "fine" / "one", split, guesses(labels, 6.0, 1), note="")
    assert set(guesses(labels, 6.0, 1).argmax(axis=1)) == set(range(5))
    text = told(tmp_path / "fine", split)
    assert f"{AMISS}: the curves have no finding, and every class is predicted." in text
    write_run(tmp_path / "noted" / "one", split, guesses(labels, 6.0, 1), note=NOTE)
    assert AMISS not in told(tmp_path / "noted", split)
    write_report([tmp_path / "fine"], tmp_path / "r.html")
    text = Cells((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert f"{AMISS} in the curves; without labels the predictions are not examined." in text


def test_runs_are_ordered_by_score_and_the_winner_comes_first(material, tmp_path, undrawn):
    """By hand: names in the order of the alphabet, skills in another, and one run of a single fold that is best."""
    _, split = material
    labels = split.frame["label"].to_numpy()
    for name, skill in (("a", 1.0), ("b", 5.0), ("c", 3.0)):
        write_run(tmp_path / name, split, guesses(labels, skill, 5))
    write_run(tmp_path / "d", split, guesses(labels, 30.0, 5), folds=[1])
    (tmp_path / "e" / "fold0").mkdir(parents=True)
    (tmp_path / "e" / "fold0" / "config.json").write_text("{}")
    write_folds(tmp_path / "folds.csv", split)
    write_report([tmp_path], tmp_path / "r.html", folds=tmp_path / "folds.csv")
    cells = Cells((tmp_path / "r.html").read_text(encoding="utf-8"))
    start = cells.rows.index(next(row for row in cells.rows if row[0] == "run"))
    assert [row[0] for row in cells.rows[start + 1 : start + 6]] == ["b", "c", "a", "d", "majority"]
    assert "Scores What is proved Together Settings b c a d e" in cells.text
    assert "b has the best accuracy" in cells.text
    assert re.findall(r'<h2 id="run-(.)"', (tmp_path / "r.html").read_text(encoding="utf-8")) == list("bcade")


def test_many_pairs_show_the_winners_first(material, tmp_path, undrawn):
    _, split = material
    labels = split.frame["label"].to_numpy()
    for k in range(6):
        write_run(tmp_path / f"m{k}", split, guesses(labels, 1.0 + k, 5))
    text = told(tmp_path, split)
    assert "15 more pairs, without the best run" in text and "p of 21" in text


def test_the_most_frequent_confusions(material):
    root, split = material
    report = gather_report([root / "runs" / "fair"], folds=root / "folds.csv")
    labels, probabilities = joined(root, "fair", split)
    answers = probabilities.argmax(axis=1)
    wrong = pd.DataFrame({"given": labels, "said": answers})[labels != answers].value_counts()
    rows = confusion_rows(report, report.scored[0])
    assert [int(row[2]) for row in rows] == sorted(wrong, reverse=True)[:10]
    for given, said, n, share in rows:
        k, j = int(given[0]), int(said[0])
        assert wrong[k, j] == int(n) and share == f"{100 * wrong[k, j] / (labels == k).sum():.1f}\u00a0%"


def test_metric_and_classes_are_the_files_own(material, tmp_path, monkeypatch):
    _, split = material
    task = Task("zoo", "macro_f1", tuple("abcde"))
    split = replace(split, task=task)
    write_folds(tmp_path / "folds.csv", split)
    labels = split.frame["label"].to_numpy()
    write_run(tmp_path / "one", split, guesses(labels, 2.0, 1))
    monkeypatch.chdir(tmp_path)
    report = gather_report([tmp_path / "one"], folds=tmp_path / "folds.csv")
    answers = report.scored[0].probabilities.argmax(axis=1)
    expected = f1_score(report.scored[0].labels, answers, average="macro")
    assert report.scored[0].score.value == pytest.approx(expected)
    assert (report.title, report.metric_name) == ("zoo", "macro F1")


def test_without_the_fold_file_it_is_made_from_a_whole_run(material, tiny_dir):
    root, split = material
    report = gather_report([root / "runs"], data=tiny_dir)
    assert report.folds.hash == split.hash
    with pytest.raises(ValueError, match="give --folds FILE"):
        gather_report([root / "runs" / "part"], data=tiny_dir)


def test_without_labels_the_page_has_what_the_runs_say(material, tmp_path):
    root, _ = material
    write_report([root / "runs"], tmp_path / "r.html")
    cells = Cells((tmp_path / "r.html").read_text(encoding="utf-8"))
    done = json.loads((root / "runs" / "good" / "fold1" / "run.json").read_text())
    assert cells.row("good", "1")[0] == f"{done['oof_accuracy']:.4f} ± {done['oof_standard_error']:.4f}"
    assert "No labels were given" in cells.text and "McNemar" not in cells.text
    assert (tmp_path / "r-good-loss.png").is_file() and not (tmp_path / "r-scores.png").exists()


def test_a_run_in_progress_shows_its_curves(material, tmp_path, undrawn):
    root, split = material
    write_run(tmp_path / "early", split, guesses(split.frame["label"].to_numpy(), 1.0, 5), folds=[0, 1])
    for name in ("oof.csv", "oof.json", "run.json"):
        (tmp_path / "early" / "fold1" / name).unlink()
    write_report([tmp_path / "early"], tmp_path / "r.html", folds=root / "folds.csv")
    assert "1 of 2 folds are not finished" in Cells((tmp_path / "r.html").read_text(encoding="utf-8")).text
    for name in ("oof.csv", "oof.json", "run.json"):
        (tmp_path / "early" / "fold0" / name).unlink()
    write_report([tmp_path / "early"], tmp_path / "r.html", folds=root / "folds.csv")
    assert "No fold is finished" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_baseline_and_foreign_files_are_members_too(material, tiny_table, tmp_path, undrawn):
    root, split = material
    train_baseline(
        TrainData(TrainTable(tiny_table.frame, tiny_table.image_dir, ()), split), tmp_path / "runs", progress=False
    )
    whole = read_predictions(tmp_path / "runs" / "logreg" / "oof.csv")
    write_predictions(
        tmp_path / "theirs.csv",
        make_predictions(whole.ids, whole.probabilities, header=whole.header, fold=whole.frame["fold"].to_numpy()),
    )
    given = [root / "runs" / "good", tmp_path / "runs" / "logreg", tmp_path / "theirs.csv"]
    write_report(given, tmp_path / "r.html", folds=root / "folds.csv")
    cells = Cells((tmp_path / "r.html").read_text(encoding="utf-8"))
    order = split.frame[["image_id"]].merge(whole.frame, on="image_id")[[f"p{k}" for k in range(5)]].to_numpy()
    score = str(accuracy(split.frame["label"].to_numpy(), order))
    assert cells.row("logreg", score)[:3] == cells.row("theirs", score)[:3]
    assert "No setting differs between these runs" in cells.text  # each has its own alone
    assert cells.text.count("This model has no epochs to show") == 2


def sure_and_mild(labels):
    """Probabilities of a run that is often right and very sure of its errors, and of one that errs more, mildly."""
    wrong = (labels + 1) % 5
    sure = np.eye(5)[np.where(np.arange(len(labels)) % 5 == 0, wrong, labels)] * 0.9998 + 0.00004
    mild = np.eye(5)[np.where(np.arange(len(labels)) % 4 == 1, wrong, labels)] * 0.6 + 0.08
    return sure, mild


def test_the_competitions_metric_ranks_charts_and_proves(material, tmp_path, undrawn):
    root, split = material
    labels = split.frame["label"].to_numpy()
    columns = tuple(f"c{k}" for k in range(5))
    by_loss = replace(CASSAVA, metric="log_loss", probability_columns=columns)
    sure, mild = sure_and_mild(labels)
    write_run(tmp_path / "sure", split, sure)
    write_run(tmp_path / "mild", split, mild)
    runs, folds = [tmp_path / "sure", tmp_path / "mild"], root / "folds.csv"
    report = gather_report(runs, folds=folds, competition=by_loss)
    pair = next(pair for pair in report.pairs if set(pair.names) == {"sure", "mild"})
    expected = compare(labels, sure, mild, metric="log_loss")
    assert pair.names == ("sure", "mild") and pair.proved
    assert pair.difference == pytest.approx(expected.difference, rel=1e-3)
    write_report(runs, tmp_path / "r.html", folds=folds, competition=by_loss)
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    page, score = Cells(html), score_of(labels, mild, "log_loss")
    assert page.row("mild", f"{score.value:.4f} ± {score.standard_error:.4f}")[0] == f"{score.accuracy:.4f}"
    assert "mild has the best log loss, " in page.text
    assert page.row("mild against sure")[-3:] == ["120", "proved", "–"]
    assert f"Out of fold {score} on 120 rows" in page.text and "always answers the class shares" in page.text
    assert "Out-of-fold log loss with 95 % intervals, less is better" in page.text
    assert not any(word in page.text for word in ("McNemar", "binomial", "right alone", "more rows"))
    write_report(runs, tmp_path / "a.html", folds=folds)
    assert "sure has the best accuracy, " in Cells((tmp_path / "a.html").read_text(encoding="utf-8")).text


def test_macro_f1_stands_beside_accuracy_and_log_loss(material, tmp_path, undrawn):
    root, split = material
    competition = replace(CASSAVA, metric="macro_f1")
    write_report([root / "runs"], tmp_path / "r.html", folds=root / "folds.csv", competition=competition)
    page = Cells((tmp_path / "r.html").read_text(encoding="utf-8"))
    labels, probabilities = joined(root, "good", split)
    score = score_of(labels, probabilities, "macro_f1")
    assert [
        "run",
        "macro F1 ± s.e.",
        "accuracy",
        "log loss",
        "ECE",
        "mean recall",
        "rows",
        "folds",
        "training",
    ] in page.rows
    told = page.row("good", f"{score.value:.4f} ± {score.standard_error:.4f}")
    assert told[:2] == [f"{score.accuracy:.4f}", f"{logloss(labels, probabilities):.4f}"]
    assert "good has the best macro F1" in page.text


def test_a_pair_keeps_the_order_given_and_pairs_without_rows_are_left_out(material):
    _, split = material
    labels, fold = split.frame["label"].to_numpy(), split.frame["fold"].to_numpy()
    parts = []
    for name, skill, k in (("a", 9.0, 0), ("b", 0.0, 0), ("c", 1.0, 1)):
        rows = np.flatnonzero(fold == k)
        parts.append(ScoredRun(name, rows, labels[rows], fold[rows], guesses(labels[rows], skill, 7)))
    assert [pair.names for pair in compare_pairs(parts)] == [("a", "b")]
    assert compare_pairs(parts)[0].difference < 0 < compare_pairs(parts[1::-1])[0].difference


def test_the_page_says_how_labels_came_into_a_run(material, tmp_path, undrawn):
    root, split = material
    write_run(tmp_path / "cleaned", split, guesses(split.frame["label"].to_numpy(), 2.0, 3))
    for path in (tmp_path / "cleaned").glob("fold*/oof.json"):
        header = json.loads(path.read_text()) | {"labels_seen": ["rows were cleaned"]}
        path.write_text(json.dumps(header))
    write_report([tmp_path / "cleaned"], tmp_path / "r.html", folds=root / "folds.csv")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("Note: cleaned: rows were cleaned.") == 1
    write_report([root / "runs" / "good"], tmp_path / "g.html", folds=root / "folds.csv")
    assert "Note:" not in (tmp_path / "g.html").read_text(encoding="utf-8")


def test_every_pair_is_corrected_for_all(material):
    """Ten runs that differ by chance from one another: the best of them looks proved alone, and is not."""
    _, split = material
    labels, fold, rows = split.frame["label"].to_numpy(), split.frame["fold"].to_numpy(), np.arange(120)
    runs = [ScoredRun(str(k), rows, labels, fold, guesses(labels, 1.0, 50 + k)) for k in range(14)]
    pairs = compare_pairs(runs)
    assert len(pairs) == 91 and any(pair.proved_alone for pair in pairs) and not any(pair.proved for pair in pairs)
    first = min(pairs, key=lambda pair: pair.p_value)
    assert first.adjusted_p == pytest.approx(min(1, 91 * first.p_value))


def test_majority_answers_the_most_frequent_class(material):
    _, split = material
    one = majority_of(split, np.arange(120), 5, "accuracy")
    assert one.score == majority(split.frame["label"].to_numpy()) and set(one.predicted) == {CASSAVA.majority}


def test_names():
    assert unique_slugs(["a/x", "a x", "ä"]) == ["a-x", "a-x-2", "run"]


def test_two_runs_of_one_name_are_told_apart(material, tmp_path):
    root, split = material
    write_run(tmp_path / "second" / "good", split, guesses(split.frame["label"].to_numpy(), 1.0, 5))
    report = gather_report([root / "runs" / "good", tmp_path / "second" / "good"], folds=root / "folds.csv")
    assert [one.name for one in report.scored] == ["runs/good", "second/good"]


def test_same_runs_same_bytes(material, written, tiny_dir, tmp_path):
    root, _ = material
    out = written[0]
    write_report([root / "runs"], tmp_path / "report.html", folds=root / "folds.csv", data=tiny_dir)
    names = sorted(path.name for path in out.parent.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir()) and len(names) == 1 + 1 + 3 * 5
    for name in names:
        assert (tmp_path / name).read_bytes() == (out.parent / name).read_bytes(), name


def test_charts_leave_the_ink_to_the_page():
    from matplotlib.figure import Figure

    figure = Figure()
    figure.text(0.5, 0.5, "a<b", color=INK)
    one = chart("x", 'say "a<b"', figure)
    assert "currentColor" in one.svg and INK not in one.svg
    assert 'aria-label="say &quot;a&lt;b&quot;"' in one.svg and one.png.startswith(b"\x89PNG")


def test_the_settings_are_stacked_on_a_small_screen(written):
    text = written[0].read_text(encoding="utf-8")
    assert re.search(r'<div class="settings">\s*<div class="scroll"><table class="wide">', text)


def test_a_class_name_is_no_formula():
    assert r"$\frac$" in charts.bars("a", "b", [r"$\frac$"], [1]).svg


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nothing"], "no run folder"),
        (["{empty}"], "has no runs"),
        (["{root}/runs/good/fold0"], "one fold of a run; give the run's folder"),
        (["{root}/folds.json"], "out-of-fold prediction file"),
        (["{root}/runs", "--folds", "{root}/none.csv"], "no fold file"),
        (["{root}/runs", "--folds", "{other}"], "made on another split"),
        (["{root}/runs", "--folds", "{root}/folds.csv", "--data", "{empty}"], "no folder"),
        (["{root}/runs", "--out", "{empty}/x.txt"], "must be an .html file"),
        (["{root}/runs", "--out", "{empty}/x.htm"], "must be an .html file"),
    ],
)
def test_errors_are_one_line(material, tmp_path, capsys, arguments, message):
    root, split = material
    empty, other = tmp_path / "empty", tmp_path / "other.csv"
    empty.mkdir()
    write_folds(other, split_folds(split.frame[["image_id", "label"]], n_splits=3, seed=9))
    filled = [text.format(root=root, empty=empty, other=other) for text in arguments]
    out = [] if "--out" in filled else ["--out", str(tmp_path / "r.html")]
    assert run_app(app, ["report", *filled, *out]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[1]", "must hold a JSON object, got list"),
        ("config.json", "{", "not valid JSON"),
        ("metrics.csv", "a,b\n1,2\n", "must have the columns epoch"),
        ("oof.csv", "image_id,p0\n", "must have the columns"),
    ],
)
def test_broken_files_are_named(material, tmp_path, capsys, name, content, message):
    root, _ = material
    shutil.copytree(root / "runs" / "good", tmp_path / "good")
    (tmp_path / "good" / "fold1" / name).write_text(content)
    assert run_app(app, ["report", str(tmp_path / "good"), "--out", str(tmp_path / "r.html")]) == 2
    told = capsys.readouterr().err
    assert message in told and name in told


def test_rows_of_another_fold_are_refused(material, tmp_path):
    root, _ = material
    shutil.copytree(root / "runs" / "good", tmp_path / "good")
    for name in ("oof.csv", "oof.json"):
        shutil.copy(tmp_path / "good" / "fold0" / name, tmp_path / "good" / "fold1" / name)
    with pytest.raises(ValueError, match="good fold 1"):
        gather_report([tmp_path / "good"], folds=root / "folds.csv")


@pytest.fixture
def two_splits(material, tmp_path):
    """Folder of good (the material's split) and odd (another split), and the fold file of the other split."""
    root, split = material
    other = split_folds(split.frame[["image_id", "label"]], n_splits=3, seed=9)
    write_folds(tmp_path / "other.csv", other)
    shutil.copytree(root / "runs" / "good", tmp_path / "runs" / "good")
    write_run(tmp_path / "runs" / "odd", other, guesses(other.frame["label"].to_numpy(), 3.0, 4), lr=0.1)
    return tmp_path / "runs", root / "folds.csv", tmp_path / "other.csv"


def test_runs_of_another_split_are_left_out_and_named(two_splits, tmp_path, capsys):
    runs, folds, other = two_splits
    for file, kept, left in ((folds, "good", "odd"), (other, "odd", "good")):
        page = tmp_path / f"{kept}.html"
        assert run_app(app, ["report", str(runs), "--folds", str(file), "--out", str(page)]) == 0
        told = f"eft out, made on another split than this fold file ({read_folds(file).hash[:12]}): {left}"
        assert f"l{told}\n" in capsys.readouterr().out
        text = page.read_text(encoding="utf-8")
        assert f"L{told}." in text and f'id="run-{kept}"' in text and f'id="run-{left}"' not in text


def test_runs_of_two_splits_without_a_fold_file_are_told_apart(two_splits, tiny_dir, tmp_path, capsys):
    runs, folds, other = two_splits
    out = ["--out", str(tmp_path / "r.html")]
    told = (
        f"2 splits: good ({read_folds(folds).hash[:12]}); odd ({read_folds(other).hash[:12]}); name the runs of one "
        f"(report {runs / 'good'}), or give --folds FILE"
    )
    assert run_app(app, ["report", str(runs), "--data", str(tiny_dir), *out]) == 2
    assert told in capsys.readouterr().err
    assert run_app(app, ["report", str(runs), *out]) == 0 and told in capsys.readouterr().out
    assert run_app(app, ["report", str(runs / "good"), *out]) == 0 and "2 splits" not in capsys.readouterr().out


def test_verb_makes_the_page(material, tiny_dir, tmp_path, capsys):
    root, _ = material
    arguments = ["report", str(root / "runs" / "good"), "--folds", str(root / "folds.csv"), "--data", str(tiny_dir)]
    assert run_app(app, [*arguments, "--out", str(tmp_path / "x.html")]) == 0
    assert "x.html" in capsys.readouterr().out
    assert "All folds of good were trained with the same settings" in (tmp_path / "x.html").read_text("utf-8")


def test_in_the_browser(written, tmp_path):
    out = written[0]
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", out.read_text(encoding="utf-8"))
    browser = chrome.open_chromium(tmp_path / "profile")
    try:
        chrome.check_page(browser, out)
        headings = [h.text for h in browser.find_elements("css selector", "h2")]
        assert headings == ["Scores", "What is proved", "Together", "Settings", "good", "fair", "part"]
        assert len(browser.find_elements("css selector", "figure.chart svg")) == 1 + 3 * 5
        assert len(browser.find_elements("css selector", "section.run")) == 3
        pictures = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
        assert len(pictures) >= 10 and min(pictures) > 40
        broken = (
            "return [...document.querySelectorAll('use')].filter(u => !document.querySelector(u.href.baseVal)).length"
        )
        assert browser.execute_script(broken) == 0
    finally:
        browser.quit()
