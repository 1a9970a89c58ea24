"""The paired report: same rows for every start, and a verdict that follows from paired comparisons."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import binomtest

from cassava_kit.data.stratify import split_folds, split_holdout
from cassava_kit.data.table import TrainTable
from cassava_kit.errors import UserError
from cassava_kit.files import read_json
from cassava_kit.models.network import create_model
from cassava_kit.training.config import RunConfig
from cassava_kit.training.linear import linear_probs
from cassava_kit.training.rows import TrainData, TrainOptions
from cassava_kit.training.run_dir import prepare_run_dir
from cassava_kit.training.ssl.report import (
    compare_starts,
    finetune_oof,
    format_markdown,
    labelled_rows,
    probe_oof,
    score_result,
    ssl_report,
    start_features,
)

PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
CONFIG = RunConfig(
    recipe="tiny",
    model="resnet18",
    model_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    image_size=16,
    epochs=1,
    batch_size=8,
    augmentation="none",
)


@pytest.fixture
def data(tmp_path):
    """60 pictures whose class is the colour channel that is bright."""
    rng, rows = np.random.default_rng(0), []
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(60):
        picture = rng.integers(0, 120, (16, 20, 3))
        picture[:, :, k % 3] += 100
        cv2.imwrite(str(folder / f"{k:02d}.png"), picture.astype(np.uint8))
        rows.append((f"{k:02d}.png", 2 - k % 3))
    frame = pd.DataFrame(rows, columns=["image_id", "label"])
    return TrainData(TrainTable(frame, folder, []), split_folds(frame, n_splits=3, seed=0))


def result(init, answers, labels, how="linear", share=0.1):
    return score_result((init, how, share), labels, np.eye(5)[answers], 10, "accuracy")


def test_the_verdict_follows_from_the_paired_comparison():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 2000)
    half = np.where(rng.random(2000) < 0.5, labels, (labels + 1) % 5)
    better, worse = half.copy(), half.copy()
    better[:300] = labels[:300]
    worse[:300] = (labels[:300] + 1) % 5
    report = compare_starts(
        [result(*row, labels) for row in (("random", half), ("a", better), ("b", worse), ("c", half))], labels
    )
    a, b, c = report.verdict.splitlines()
    assert "a against random weights: better in linear with 10%" in a
    assert "worse in linear" in b and "better" not in b
    assert "no difference proved" in c and "better" not in c and "worse" not in c
    gain = report.comparisons["a", "linear", 0.1].difference
    assert gain == pytest.approx(np.mean(better == labels) - np.mean(half == labels))
    table = report.table().set_index("init")
    assert table.loc["a", "gain"] == pytest.approx(gain)
    assert table.loc["a", "gain_low"] < gain < table.loc["a", "gain_high"]


def test_proved_means_proved_among_all_comparisons_of_the_report():
    """One gain with McNemar's p of .03: proved alone, and not beside seven comparisons in which nothing is."""
    labels = np.zeros(400, int)
    base, lucky = np.ones(400, int), np.ones(400, int)
    base[:5], lucky[5:21] = 0, 0
    assert 0.01 < binomtest(16, 21, 0.5).pvalue < 0.05
    alone = compare_starts([result("random", base, labels), result("a", lucky, labels)], labels)
    assert "better in linear" in alone.verdict and alone.table()["proved"][1]
    rows = [result("random", base, labels, share=s) for s in np.linspace(0.1, 0.8, 8)]
    rows += [result("a", lucky if s == 0.1 else base, labels, share=s) for s in np.linspace(0.1, 0.8, 8)]
    family = compare_starts(rows, labels)
    assert "better" not in family.verdict and not family.table()["proved"].fillna(False).any()


def test_a_start_below_the_majority_is_told_so():
    labels = np.array([3] * 70 + [1] * 30)
    answers = np.array([1] * 100)
    report = compare_starts([result("random", answers, labels), result("a", answers, labels)], labels)
    assert "never beats one answer for every image" in report.verdict


def test_the_competitions_metric_judges_and_probes_are_never_asked_for_log_loss():
    """The same answers, but mild where it errs: better by log loss in finetuning, nothing by a probe's answers."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    answers = np.where(rng.random(300) < 0.7, labels, (labels + 1) % 3)
    sure, mild = 0.997 * np.eye(3)[answers] + 0.001, 0.7 * np.eye(3)[answers] + 0.1
    starts = [("random", sure), ("a", mild)]
    results = [
        score_result((n, how, 1.0), labels, p, 10, "log_loss") for n, p in starts for how in ("linear", "finetune")
    ]
    report = compare_starts(results, labels)
    assert "better in finetune with 100% of the labels" in report.verdict
    assert "no difference proved in linear" in report.verdict
    assert [r.metric for r in report.results] == ["accuracy", "log_loss"] * 2
    page = format_markdown(report)
    assert "| a | finetune | 10 (100%) | log loss 0." in page and "| a | linear | 10 (100%) | accuracy 0." in page
    shares = np.bincount(labels) / 300
    assert report.baselines["log_loss"].value == pytest.approx(-(shares * np.log(shares)).sum())
    by_f1 = compare_starts([score_result((n, "linear", 1.0), labels, p, 10, "macro_f1") for n, p in starts], labels)
    assert by_f1.comparisons["a", "linear", 1.0].metric == "macro_f1"


def test_a_broken_photograph_stops_nothing(data, tmp_path):
    broken = data.table.image_dir / "07.png"
    broken.write_bytes(broken.read_bytes()[:60])
    features = start_features(CONFIG, data, None, tmp_path / "cache")
    at = data.folds.frame["image_id"].tolist().index("07.png")
    others = np.delete(features, at, axis=0)
    assert len(features) == 60 and np.allclose(features[at], others.mean(axis=0), atol=1e-6)


def test_shares_are_of_the_training_rows_and_never_of_the_fold_asked(data):
    for share, expected in ((1.0, 40), (0.5, 20), (0.01, 5)):
        for fold, rows in labelled_rows(data, share):
            assert len(rows) == expected
            assert set(rows["image_id"]).isdisjoint(data.folds.validation(fold)["image_id"])
            again = dict(labelled_rows(data, share))[fold]
            assert again.equals(rows), "every start sees the same rows"


def test_probes_are_out_of_fold(data):
    frame = data.folds.frame
    rng = np.random.default_rng(0)
    good = np.eye(3)[frame["label"]] + rng.normal(0, 0.1, (60, 3))
    probs, n = probe_oof(good, data, 1.0, linear_probs)
    assert n == 40 and np.allclose(probs.sum(axis=1), 1)
    assert np.mean(probs.argmax(axis=1) == frame["label"]) > 0.95
    names = np.eye(60)  # features that tell every row apart and nothing else: only in-sample answers could be right
    memory, _ = probe_oof(names, data, 1.0, linear_probs)
    assert np.mean(memory.argmax(axis=1) == frame["label"]) < 0.6


def test_few_labels_have_every_class(tmp_path):
    """At 1 % a random draw of 12 rows misses the rare classes, of which a probe then knows nothing."""
    labels = np.repeat(np.arange(5), [900, 400, 100, 60, 40])
    frame = pd.DataFrame({"image_id": [f"{k:04d}.png" for k in range(1500)], "label": labels})
    for name in frame["image_id"]:
        (tmp_path / name).write_bytes(PNG)
    data = TrainData(TrainTable(frame, tmp_path, []), split_folds(frame, n_splits=5, seed=0))
    for _, rows in labelled_rows(data, 0.01):
        counts = np.bincount(rows["label"], minlength=5)
        assert counts.sum() == 12 and counts.tolist() in ([7, 2, 1, 1, 1], [6, 3, 1, 1, 1])
    for _, rows in labelled_rows(data, 0.1):
        assert np.bincount(rows["label"]).tolist() == [72, 32, 8, 5, 3]
        assert rows["image_id"].is_monotonic_increasing


def test_a_holdout_split_is_reported_on_its_validation_part(data):
    frame = data.table.frame
    folds = split_holdout(frame, [0.5, 0.25, 0.25], seed=0)
    held = TrainData(data.table, folds)
    probs, n = probe_oof(np.eye(3)[folds.frame["label"]], held, 1.0, linear_probs)
    assert n == 30 and len(probs) == len(folds.scored) == 15
    assert (probs.argmax(axis=1) == folds.scored["label"]).all()


def test_finetuned_runs_of_other_weights_are_replaced_only_if_asked(data, tmp_path):
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    for seed, existing in ((0, "refuse"), (1, "refuse"), (1, "replace")):
        torch.manual_seed(seed)
        save_file(create_model(CONFIG.model, 0, model_args=CONFIG.model_args).state_dict(), weights)
        options = TrainOptions(existing=existing, tell=lambda _: None)
        if (seed, existing) == (1, "refuse"):
            with pytest.raises(UserError, match="--replace"):
                finetune_oof(CONFIG, data, 1.0, out, weights=weights, options=options)
            continue
        probs, n = finetune_oof(CONFIG, data, 1.0, out, weights=weights, options=options)
        assert n == 40 and np.allclose(probs.sum(axis=1), 1, atol=1e-3)


@pytest.mark.slow
def test_the_whole_report(data, tmp_path):
    torch.manual_seed(CONFIG.seed)
    same = create_model(CONFIG.model, 0, model_args=CONFIG.model_args)
    save_file(same.state_dict(), tmp_path / "same.safetensors")
    report = ssl_report(CONFIG, data, {"same": tmp_path / "same.safetensors"}, tmp_path / "out", shares=(0.25, 1.0))
    table = report.table()
    assert len(table) == 2 * 2 * 3
    probes = table[(table["init"] == "same") & (table["evaluation"] != "finetune")]
    assert (probes["gain"] == 0).all(), "the same weights under another name change nothing"
    colours = table[(table["evaluation"] == "linear") & (table["share"] == 1)]
    assert (colours["score"] > 0.6).all()
    assert read_json(tmp_path / "out" / "ssl_report.json")["verdict"] == report.verdict
    assert "| same | linear | 40 (100%) |" in (tmp_path / "out" / "ssl_report.md").read_text()
    assert len(pd.read_csv(tmp_path / "out" / "ssl_report.csv")) == 12
    member = tmp_path / "out" / "finetune" / "same" / "1" / "tiny" / "fold0" / "best.safetensors"
    assert member.is_file()


def test_requests_that_cannot_be_met(data, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    for inits, shares, says in (
        ({}, (1.0,), "at least one start"),
        ({"random": weights}, (1.0,), "always there"),
        ({"a": weights}, (0.0,), "shares"),
        ({"a": tmp_path / "nowhere"}, (1.0,), "no weights file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            ssl_report(CONFIG, data, inits, tmp_path / "out", shares=shares)


def test_other_finetuned_runs_are_refused_before_features_are_taken(data, tmp_path, monkeypatch):
    weights = tmp_path / "w.safetensors"
    args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    save_file(create_model("resnet18", 0, model_args=args).state_dict(), weights)
    run = tmp_path / "out" / "finetune" / "a" / "0.5" / "tiny" / "fold2"
    prepare_run_dir(run, CONFIG, {"settings": "others"})
    (run / "metrics.csv").write_text("epoch\n0\n")
    monkeypatch.setattr("cassava_kit.training.ssl.report.start_features", lambda *given: pytest.fail("features"))
    with pytest.raises(UserError, match=r"a/0\.5/tiny/fold2 holds an unfinished run with other settings"):
        ssl_report(CONFIG, data, {"a": weights}, tmp_path / "out", shares=(0.5, 1.0))
