"""Temperatures of an ensemble: found on the other folds, applied on proof alone, and the same in every file."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from cassava_kit.data.folds import write_folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.evidence.blend import blend_report, leave_one_out, weigh, weigh_files
from cassava_kit.evidence.calibration import logloss
from cassava_kit.evidence.finals import parse_candidates
from cassava_kit.evidence.nested import (
    TEMPERATURES_SEEN,
    blend_nested,
    judge_methods,
    judge_temperatures,
)
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.predictions import Header, make_predictions, write_predictions
from cassava_kit.evidence.subset import select_members, select_nested
from cassava_kit.evidence.weighing import find_weights

K = 3
TILT = (1.0, 2.5, 0.6)  # powers that members' probabilities are off by, by class


def tilted(n=900, powers=TILT, members=2, seed=0):
    """Members that are calibrated but for a power of each class, with labels drawn from the common truth."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(K, 0.7), n)
    labels = (rng.random((n, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, K - 1)
    q = np.stack([p ** np.asarray(powers) * np.exp(rng.normal(0, 0.1, p.shape)) for _ in range(members)])
    q /= q.sum(axis=2, keepdims=True)
    names = tuple(f"m{m}" for m in range(members))
    return Evidence(names, np.arange(n).astype(str), labels, np.arange(n) % 5, q, "")


def slowly_tempered(e, weights_of_rest):
    """Each fold by Nelder-Mead on the other folds, from the definition."""
    expected = np.empty_like(e.pred_probs[0])
    for k in range(5):
        out = e.fold == k
        blended = np.empty_like(expected)
        for inner in set(range(5)) - {k}:
            rest, mine = ~out & (e.fold != inner), e.fold == inner
            blended[mine] = np.tensordot(weights_of_rest(rest), e.pred_probs[:, mine], axes=1)

        def loss(x, rows=~out, p=blended):
            q = p[rows] ** np.exp(-x)
            return -np.log((q / q.sum(axis=1, keepdims=True))[np.arange(rows.sum()), e.labels[rows]]).mean()

        found = np.exp(minimize(loss, np.zeros(K), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).x)
        own = np.tensordot(weights_of_rest(~out), e.pred_probs[:, out], axes=1) ** (1 / found)
        expected[out] = own / own.sum(axis=1, keepdims=True)
    return expected


@pytest.mark.parametrize("method", ["mean", "stack"])
def test_nested_temperatures_are_those_of_the_definition(method):
    e = tilted(n=400)
    expected = slowly_tempered(e, lambda rest: find_weights(e.labels[rest], e.pred_probs[:, rest], method))
    assert blend_nested(e, method, tempered=True) == pytest.approx(expected, abs=2e-3)


def test_no_label_of_a_fold_is_behind_its_own_answers():
    e = tilted(n=400)
    changed = replace(e, labels=np.where(e.fold == 2, (e.labels + 1) % K, e.labels))
    before, after = (blend_nested(each, "logloss", tempered=True) for each in (e, changed))
    assert np.array_equal(before[e.fold == 2], after[e.fold == 2])
    assert not np.isclose(before[e.fold == 1], after[e.fold == 1]).all()


def test_temperatures_that_were_put_in_are_applied():
    e = tilted()
    judged = judge_temperatures(e, "mean")
    assert judged.applied and "temperatures of the classes: applied (positive is better: log loss +" in str(judged)
    # A power off every class alike would be a temperature of all; what counts is their ratio.
    assert judged.temperatures == pytest.approx(TILT, rel=0.25)
    right = [p.argmax(axis=1) == e.labels for p in (judged.before, judged.after)]
    assert (judged.metric.only_a, judged.metric.only_b) == ((right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum())
    assert judged.calibration.gained == judged.metric.only_b > judged.calibration.lost


@pytest.mark.parametrize("seed", range(4))
def test_calibrated_members_get_no_temperatures(seed):
    judged = judge_methods(tilted(powers=(1, 1, 1), members=1, seed=seed))
    assert not judged.tempering.applied and judged.blend.temperatures is None
    assert np.array_equal(judged.blended, blend_nested(tilted(powers=(1, 1, 1), members=1, seed=seed), "mean"))


def test_a_metric_that_falls_is_not_paid_for_calibration():
    judged = judge_temperatures(tilted(), "mean")
    assert not replace(judged, metric=judged.metric.reverse()).applied
    assert not replace(judged, loss=judged.loss.reverse()).applied
    assert replace(judged, metric=replace(judged.metric, difference=0.0)).applied, "calibration alone is worth having"


def test_two_folds_are_enough():
    e = replace(tilted(n=200), fold=np.arange(200) % 2)
    for method in ("mean", "logloss"):
        judged = judge_temperatures(e, method)
        assert np.isfinite(judged.after).all() and judged.after.sum(axis=1) == pytest.approx(1)


def test_reports_and_files_have_the_same_temperatures(tmp_path):
    e = tilted()
    split = split_folds(pd.DataFrame({"image_id": e.image_ids, "label": e.labels}), n_splits=5)
    write_folds(tmp_path / "folds.csv", split)
    ids, fold = split.frame["image_id"].to_numpy(), split.frame["fold"].to_numpy()
    e = replace(
        e, image_ids=ids, labels=split.frame["label"].to_numpy(), fold=fold, pred_probs=e.pred_probs[:, ids.astype(int)]
    )
    for name, p in zip(e.names, e.pred_probs, strict=True):
        header = Header(name=name, kind="oof", fold_hash=split.hash)
        write_predictions(tmp_path / f"{name}.csv", make_predictions(ids, p, header=header, fold=fold))
    files = [tmp_path / f"{name}.csv" for name in e.names]
    text = weigh_files(files, tmp_path / "folds.csv", tmp_path / "w.json")
    written = json.loads((tmp_path / "w.json").read_text())
    report = weigh(e.labels, dict(zip(e.names, e.pred_probs, strict=True)), folds=fold)
    assert report.temperatures == pytest.approx(written["temperatures"], rel=1e-3)
    nested = blend_nested(e, report.method, tempered=True)
    assert report.score.value == (nested.argmax(axis=1) == e.labels).mean() == pytest.approx(written["score"])
    assert report.score.value > blend_report(e).ensemble.value
    assert written["report"]["calibration"]["applied"] and TEMPERATURES_SEEN in written["labels_seen"]
    assert f"note: {TEMPERATURES_SEEN}" in text
    (found,) = parse_candidates([f"all={tmp_path}/w.json"], tmp_path / "folds.csv")
    assert found.oof.probabilities == pytest.approx(nested, abs=1e-4)
    (tmp_path / "w.json").write_text(json.dumps(written | {"method": "by hand"}))
    (by_hand,) = parse_candidates([f"all={tmp_path}/w.json"], tmp_path / "folds.csv")
    raised = np.tensordot([m["weight"] for m in written["members"]], e.pred_probs, axes=1)
    raised **= 1 / np.array(written["temperatures"])
    assert by_hand.oof.probabilities == pytest.approx(raised / raised.sum(axis=1, keepdims=True), abs=1e-5)


def test_what_a_member_adds_is_judged_with_temperatures_where_they_are_applied():
    e = tilted(n=600, members=3)
    adds = leave_one_out(e, tempered=True)
    rest = replace(e, names=("m1", "m2"), pred_probs=e.pred_probs[1:])
    without, whole = (slowly_tempered(each, lambda rows, m=m: np.full(m, 1 / m)) for m, each in ((2, rest), (3, e)))
    by_hand = (whole.argmax(axis=1) == e.labels).mean() - (without.argmax(axis=1) == e.labels).mean()
    assert adds["m0"].difference == pytest.approx(by_hand, abs=2.5 / 600)  # a row or two lie at the border
    assert adds["m0"].b.value != leave_one_out(e)["m0"].b.value
    assert "(or costs it), with temperatures:" in str(blend_report(e))


def test_members_are_selected_with_temperatures_where_they_are_applied():
    """A member whose tilt cancels the others' helps their plain mean, and is noise once temperatures are there."""
    e = tilted(n=2000, members=2)
    rng = np.random.default_rng(1)
    other = tilted(n=2000, powers=(1.0, 0.1, 1.6), members=1).pred_probs[0] * np.exp(rng.normal(0, 0.7, (2000, K)))
    e = replace(
        e, names=("m0", "m1", "noisy"), pred_probs=np.stack([*e.pred_probs, other / other.sum(axis=1)[:, None]])
    )
    p = e.pred_probs

    def fit(kept):
        mean = p[kept].mean(axis=0)
        found = minimize(lambda x: logloss(e.labels, softmax(np.log(mean) * np.exp(-x), axis=1)), np.zeros(K))
        return (np.log(mean) * np.exp(-found.x)).argmax(axis=1)

    plain, tempered = select_members(e.labels, p, "accuracy"), select_members(e.labels, p, "accuracy", tempered=True)
    assert 2 in plain and 2 not in tempered
    right = [(fit(kept) == e.labels).mean() for kept in ([0, 1], [0, 1, 2])]
    assert right[0] > right[1]
    out = e.fold == 1
    own = select_nested(replace(e, labels=np.where(out, (e.labels + 1) % K, e.labels)), tempered=True)[out]
    assert np.array_equal(own, select_nested(e, tempered=True)[out]), "its own labels play no part"
