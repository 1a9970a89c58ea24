import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from cassava_kit.competition import CASSAVA
from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.blend import (
    _five_folds,
    blend_report,
    error_correlation,
    leave_one_out,
    read_weighed,
    weigh,
    weigh_files,
)
from cassava_kit.evidence.calibration import ece
from cassava_kit.evidence.compare import compare_files
from cassava_kit.evidence.nested import blend_nested, judge_methods
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.predictions import (
    Header,
    Predictions,
    make_predictions,
    read_predictions,
    write_predictions,
)
from cassava_kit.evidence.weighing import WEIGHT_METHODS, find_weights

K = 5


def member(labels, strength, rng):
    """Probabilities of a model whose logit for the label stands `strength` above noise of unit spread."""
    logits = rng.normal(size=(len(labels), K)) + strength * np.eye(K)[labels]
    e = np.exp(2 * logits)
    return e / e.sum(axis=1, keepdims=True)


def evidence(strengths, n=3000, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(K, n, p=[0.05, 0.1, 0.11, 0.62, 0.12])
    return Evidence(
        names=tuple(f"m{i}" for i in range(len(strengths))),
        image_ids=np.arange(n).astype(str),
        labels=labels,
        fold=rng.integers(0, 5, n),
        pred_probs=np.stack([member(labels, s, rng) for s in strengths]),
        fold_hash="0" * 64,
    )


def weights_of(e, method):
    return find_weights(e.labels, e.pred_probs, method, e.metric)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_weights_lie_on_the_simplex(method):
    w = weights_of(evidence([2, 1, 0]), method)
    assert w.shape == (3,) and w.min() >= 0 and w.sum() == pytest.approx(1)


def test_logloss_weights_equal_a_solver_s():
    e = evidence([2.0, 1.5, 0.5], n=1000)
    p = e.pred_probs[:, np.arange(1000), e.labels]
    solved = minimize(
        lambda w: -np.log(w @ p).mean(),
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-12},
    )
    assert np.abs(weights_of(e, "logloss") - solved.x).max() < 2e-3


def test_stacking_weights_equal_non_negative_least_squares_on_all_rows():
    from scipy.optimize import nnls

    e = evidence([2.0, 1.0, 0.0], n=400)
    w, _ = nnls(e.pred_probs.reshape(3, -1).T, np.eye(K)[e.labels].ravel())
    assert np.abs(weights_of(e, "stack") - w / w.sum()).max() < 1e-5


def test_greedy_selection_is_the_papers_step_by_step():
    """Twenty times the member with which the bag's mean scores best, by accuracy and then log-loss; the best bag."""
    e = evidence([1.0, 0.9, 0.8, -0.5], n=300, seed=4)
    bag, rounds = [], []
    for _ in range(20):
        tried = []
        for m in range(4):
            mean = np.mean([e.pred_probs[k] for k in [*bag, m]], axis=0)
            right = (mean.argmax(axis=1) == e.labels).sum()
            tried.append((right, np.log(mean[np.arange(300), e.labels]).sum(), -m))
        chosen = max(range(4), key=lambda m: tried[m])
        bag.append(chosen)
        rounds.append(tried[chosen][:2])
    n = max(range(20), key=lambda k: (rounds[k][0], round(rounds[k][1], 9), -k)) + 1
    assert n not in (1, 20), "neither the first bag nor the last is the best one here"
    assert weights_of(e, "greedy") == pytest.approx(np.bincount(bag[:n], minlength=4) / n)


def test_greedy_selection_never_scores_below_its_best_member():
    e = evidence([1.5, 1.4, 0.0])
    blended = np.tensordot(weights_of(e, "greedy"), e.pred_probs, axes=1)
    best = max((p.argmax(axis=1) == e.labels).mean() for p in e.pred_probs)
    assert (blended.argmax(axis=1) == e.labels).mean() >= best


def test_every_fold_is_scored_with_weights_found_without_it():
    """Flipping the labels of one fold changes every other fold's blend and leaves its own."""
    e = evidence([2.0, 1.0, 0.5], n=500)
    labels = np.where(e.fold == 2, (e.labels + 1) % K, e.labels)
    changed = Evidence(e.names, e.image_ids, labels, e.fold, e.pred_probs, e.fold_hash)
    before, after = blend_nested(e, "logloss"), blend_nested(changed, "logloss")
    assert np.array_equal(before[e.fold == 2], after[e.fold == 2])
    assert not np.isclose(before[e.fold == 1], after[e.fold == 1]).all()


def test_members_of_one_strength_go_to_the_mean():
    found = judge_methods(evidence([2.0, 2.0, 2.0]))
    assert found.chosen == "mean"
    assert found.weights == pytest.approx([1 / 3] * 3)
    assert "no other weights are proved better" in str(found)


@pytest.mark.parametrize("seed", range(5))
def test_guessing_members_do_not_prove_weights(seed):
    """Five copies of one strength with noise: over seeds the mean must win, or an interval would be too narrow."""
    assert judge_methods(evidence([1.2] * 4, n=400, seed=seed)).chosen == "mean"


def test_a_useless_member_proves_weights_better():
    found = judge_methods(evidence([2.0, 0.0, 0.0, 0.0]))
    assert found.chosen != "mean"
    assert found.weights[0] > 0.7
    assert found.comparisons[found.chosen].difference > 0


def test_proof_of_a_method_is_corrected_for_the_number_of_methods():
    """Holm's first step by hand: of three p-values the least counts three times."""
    found = judge_methods(evidence([2.0, 1.5], n=1500, seed=1)).comparisons.values()
    assert len(found) == 3
    least = min(found, key=lambda c: c.p_value)
    assert 0 < least.p_value < 1 / 3 and least.adjusted_p == pytest.approx(3 * least.p_value)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a", float("nan")), ("b", 1.0)], "the weight of a must be a number of at least 0, got nan"),
        ([("a", float("inf"))], "the weight of a must be a number of at least 0, got inf"),
        ([("a", 1.0), ("b", "x")], "the weight of b must be a number of at least 0, got 'x'"),
        ([("a", True)], "the weight of a must be a number of at least 0, got True"),
        ([("a", None)], "the weight of a must be a number of at least 0, got None"),
        ([("a", -1), ("b", 2)], "the weight of a must be a number of at least 0, got -1"),
        ([("a", 0.5), ("b", 0.6)], r"weights must sum to 1, got 1.1 \(a 0.5, b 0.6\)"),
        ([("a", 0.0)], r"weights must sum to 1, got 0 \(a 0.0\)"),
        ([], r"weights must sum to 1, got 0 \(no member\)"),
    ],
)
def test_weights_that_are_not_weights_are_refused(tmp_path, members, message):
    content = {"members": [{"name": name, "weight": weight, "oof": "o.csv"} for name, weight in members]}
    (tmp_path / "w.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as refused:
        read_weighed(tmp_path / "w.json")
    assert str(refused.value).startswith(str(tmp_path / "w.json"))


@pytest.mark.parametrize("temperatures", [0.5, [0.5, 0], [0.5, -1], [0.5, "x"], [0.5, float("nan")], [True, 1], {}])
def test_temperatures_that_are_not_temperatures_are_refused(tmp_path, temperatures):
    content = {"members": [{"name": "a", "weight": 1.0, "oof": "o.csv"}], "temperatures": temperatures}
    (tmp_path / "w.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"w.json: temperatures must be a number above 0 for each class, got "):
        read_weighed(tmp_path / "w.json")


def test_the_report_says_what_each_member_adds_or_costs():
    e = evidence([1.5, 1.5, -0.5])
    adds = leave_one_out(e)
    assert adds["m0"].difference > 0 and adds["m0"].proved
    assert adds["m2"].difference < 0 and adds["m2"].proved
    text = str(blend_report(e))
    for word in (
        "plain mean",
        "majority",
        "correlation of errors",
        "weights judged by nested",
        "m2",
        "temperatures of the classes: ",
        "calibration by temperatures of the classes: ECE",
    ):
        assert word in text


def test_what_is_not_proved_says_how_many_images_would_prove_it():
    e = evidence([2.5, 2.4], n=60)
    adds = leave_one_out(e)
    assert not any(c.proved for c in adds.values())
    lines = str(blend_report(e)).splitlines()
    first = next(line for line in lines if line.startswith("m0") and "±" in line and ": nothing proved" in line)
    assert f"about {adds['m0'].images_needed:,} images would prove" in first
    strong = str(blend_report(evidence([1.5, 1.5, -0.5])))
    assert ": adds" in strong and ": costs" in strong and "nothing proved" not in strong


def test_errors_correlate_as_numpy_says():
    e = evidence([1.5, 1.0, 0.5])
    assert np.allclose(error_correlation(e.labels, e.pred_probs), np.corrcoef(e.pred_probs.argmax(axis=2) != e.labels))
    perfect = Evidence(
        e.names[:2], e.image_ids, e.labels, e.fold, np.stack([np.eye(K)[e.labels], e.pred_probs[0]]), e.fold_hash
    )
    assert np.array_equal(error_correlation(perfect.labels, perfect.pred_probs), np.eye(2)), (
        "a member without errors has no correlation, not NaN"
    )


def test_one_member_alone_is_reported():
    report = blend_report(evidence([1.0]))
    assert report.judgement.chosen == "mean" and report.judgement.weights == pytest.approx([1.0])
    assert "(one member alone)" in str(report)


def test_an_unknown_method_and_a_split_of_one_fold_are_refused():
    e = evidence([1.0, 2.0], n=50)
    with pytest.raises(ValueError, match="one of mean, logloss, greedy, stack, got 'best'"):
        weights_of(e, "best")
    with pytest.raises(ValueError, match="at least 2 folds"):
        judge_methods(Evidence(e.names, e.image_ids, e.labels, np.zeros(50, int), e.pred_probs, e.fold_hash))


def test_files_go_in_and_weights_come_out(tmp_path):
    e = evidence([2.0, 0.0], n=300)
    split = split_folds(pd.DataFrame({"image_id": e.image_ids, "label": e.labels}), n_splits=3)
    write_folds(tmp_path / "folds.csv", split)
    at = pd.Series(range(300), index=e.image_ids)[split.frame["image_id"]].to_numpy()
    files = [tmp_path / "a" / "oof.csv", tmp_path / "b.csv"]
    for path, p in zip(files, e.pred_probs, strict=True):
        header = Header(name="x", kind="oof", fold_hash=split.hash)
        fold = split.frame["fold"].to_numpy()
        write_predictions(path, make_predictions(split.frame["image_id"].to_numpy(), p[at], header=header, fold=fold))
    text = weigh_files(files, tmp_path / "folds.csv", tmp_path / "weights.json")
    written = json.loads((tmp_path / "weights.json").read_text())
    assert [m["name"] for m in written["members"]] == ["a", "b"] and written["fold_hash"] == split.hash
    assert sum(m["weight"] for m in written["members"]) == pytest.approx(1)
    assert written["metric"] == "accuracy" and "competition" not in written, "no file names one"
    write_folds(tmp_path / "named.csv", replace(split, task=CASSAVA.task))
    weigh_files(files, tmp_path / "named.csv", tmp_path / "weights-of-named.json")
    assert json.loads((tmp_path / "weights-of-named.json").read_text()).items() >= CASSAVA.task.header().items()
    said = written["report"]
    assert said["members"]["a"] == pytest.approx((e.pred_probs[0].argmax(axis=1) == e.labels).mean())
    blended = blend_nested(
        replace(e, fold=split.frame.set_index("image_id")["fold"][e.image_ids].to_numpy()), written["method"]
    )
    assert said["calibration"]["ece"][0] == pytest.approx(ece(e.labels, blended), abs=1e-6)
    assert np.allclose(said["error_correlation"], error_correlation(e.labels, e.pred_probs), atol=1e-5)
    assert set(said["against_mean"]) == {"logloss", "greedy", "stack"} and set(said["adds"]) == {"a", "b"}
    assert f"weights: {written['method']} (" in text
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["a", "b", "plain", "majority"]
    verdict = compare_files(files[1], files[0], tmp_path / "folds.csv")
    assert verdict.names == ("b", "a") and verdict.proved and verdict.difference > 0
    with pytest.raises(UserError, match=r"members must differ, got .*/b more than once"):
        weigh_files([files[1], files[1]], tmp_path / "folds.csv", tmp_path / "weights.json")


def test_two_rounds_of_one_recipe_are_told_apart_and_the_weights_file_serves_from_any_folder(tmp_path, monkeypatch):
    e = evidence([2.0, 1.0], n=100)
    split = split_folds(pd.DataFrame({"image_id": e.image_ids, "label": e.labels}), n_splits=2)
    write_folds(tmp_path / "folds.csv", split)
    at = pd.Series(range(100), index=e.image_ids)[split.frame["image_id"]].to_numpy()
    for n, p in enumerate(e.pred_probs, start=1):
        header = Header(name="x", kind="oof", fold_hash=split.hash)
        path = tmp_path / f"round{n}" / "runs" / "resnet50" / "oof.csv"
        ids, fold = split.frame["image_id"].to_numpy(), split.frame["fold"].to_numpy()
        write_predictions(path, make_predictions(ids, p[at], header=header, fold=fold))
    monkeypatch.chdir(tmp_path)
    oof = [Path(f"round{n}/runs/resnet50/oof.csv") for n in (1, 2)]
    text = weigh_files(oof, Path("folds.csv"), Path("weights/w.json"))
    names = ["round1/runs/resnet50", "round2/runs/resnet50"]
    assert all(name in text for name in names)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    weighed = read_weighed(Path("../weights/w.json"))
    assert list(weighed.weights) == names and sum(weighed.weights.values()) == pytest.approx(1)
    assert [path.resolve() for path in weighed.oof.values()] == [tmp_path / each for each in oof]
    assert [m["oof"] for m in json.loads((tmp_path / "weights" / "w.json").read_text())["members"]] == [
        f"../{each}" for each in oof
    ]
    verdict = compare_files(*(tmp_path / each for each in oof), tmp_path / "folds.csv")
    assert verdict.names == tuple(names)
    assert verdict.notes == () and "note:" not in str(verdict) and "note:" not in text
    header = Header(name="x", kind="oof", fold_hash=split.hash, labels_seen=("rows were cleaned",))
    again = read_predictions(tmp_path / oof[1])
    write_predictions(tmp_path / oof[1], Predictions(again.frame, header))
    noted = compare_files(*(tmp_path / each for each in oof), tmp_path / "folds.csv")
    assert str(noted).endswith("note: round2/runs/resnet50: rows were cleaned")
    text = weigh_files([tmp_path / each for each in oof], tmp_path / "folds.csv", tmp_path / "w2.json")
    assert "note: round2/runs/resnet50: rows were cleaned" in text
    written = json.loads((tmp_path / "w2.json").read_text())
    assert written["labels_seen"][0] == "round2/runs/resnet50: rows were cleaned"


def test_weigh_takes_plain_arrays_and_says_what_the_files_say():
    e = evidence([2.0, 0.0, 0.0, 0.0], n=1000)
    named = dict(zip(e.names, e.pred_probs.tolist(), strict=True))
    report = weigh(e.labels.tolist(), named, folds=e.fold.tolist())
    same = blend_report(e)
    assert str(report) == str(same) and report.best_member == "m0"
    assert report.weights == pytest.approx(dict(zip(e.names, same.judgement.weights, strict=True)))
    assert report.method != "mean" and np.array_equal(report.temperatures, same.temperatures)
    nested = blend_nested(e, report.method, tempered=True).argmax(axis=1)
    assert report.score.value == (nested == e.labels).mean() > (e.pred_probs.mean(axis=0).argmax(1) == e.labels).mean()
    even = weigh(e.labels, [e.pred_probs[0]] * 2)
    assert even.weights == {"member 0": 0.5, "member 1": 0.5} and even.method == "mean"


def test_weighs_own_folds_are_stratified():
    e = evidence([1.0, 0.5], n=203)
    fold = _five_folds(e.labels)
    for k in range(K):
        counts = np.bincount(fold[e.labels == k], minlength=5)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"members": {}}, "at least one array"),
        ({"members": {"a": [[0.5, 0.5]]}}, r"expected labels \(N,\) and a .*\(20,\) and \(1, 2\)"),
        (
            {"members": [np.full((20, 2), 0.5), np.full((20, 3), 1 / 3)]},
            r"same rows and classes, got member 0 \(20, 2\)",
        ),
        ({"members": [np.full((20, 2), 0.7)]}, "row 0 of member 0 must sum to 1"),
        ({"folds": [0, 1]}, "one number for each of 20 rows"),
        ({"folds": [0] * 20}, "at least 2 folds"),
        ({"metric": "auc"}, "metric must be one of accuracy, macro_f1, log_loss, got 'auc'"),
        ({"labels": [0, 1] * 4, "members": [np.full((8, 2), 0.5)]}, "at least 10 rows"),
    ],
)
def test_what_weigh_cannot_use_is_refused(change, message):
    given = {"labels": [0, 1] * 10, "members": [np.full((20, 2), 0.5)]} | change
    with pytest.raises(UserError, match=message):
        weigh(given.pop("labels"), given.pop("members"), **given)


def test_the_report_says_how_far_errors_correlate_beside_each_score():
    e = evidence([1.5, 1.0, 0.5])
    line = next(line for line in str(blend_report(e)).splitlines() if line.startswith("m1"))
    wrong = e.pred_probs.argmax(axis=2) != e.labels
    mean = (np.corrcoef(wrong[1], wrong[0])[0, 1] + np.corrcoef(wrong[1], wrong[2])[0, 1]) / 2
    assert line.endswith(f"errors correlate {mean:.2f} with the others'")
