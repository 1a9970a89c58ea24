import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score, log_loss

from cassava_kit.evidence.blend import blend_report, report_values
from cassava_kit.evidence.calibration import calibrate
from cassava_kit.evidence.nested import judge_methods, judge_temperatures
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.subset import advise, select_members, select_nested

K = 4


def make_evidence(strengths, n=1500, seed=0, shared=0.0):
    """Members whose logit for the label stands `strength` above noise, of which `shared` is the same for all."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, K, n)
    common = rng.normal(size=(n, K))
    logits = [shared * common + (1 - shared) * rng.normal(size=(n, K)) + s * np.eye(K)[labels] for s in strengths]
    p = np.exp(2 * np.stack(logits))
    p /= p.sum(axis=2, keepdims=True)
    names = tuple(f"m{i}" for i in range(len(strengths)))
    return Evidence(names, np.arange(n).astype(str), labels, rng.integers(0, 5, n), p, "0" * 64)


def eliminate_slowly(labels, members, metric):
    """Backward elimination, written down with scikit-learn's metrics."""

    def worth(kept):
        blend = np.mean([members[m] for m in kept], axis=0)
        blend = blend / blend.sum(axis=1, keepdims=True)
        if metric == "macro_f1":
            first = f1_score(labels, blend.argmax(axis=1), average="macro", labels=range(K))
        elif metric == "log_loss":
            first = -log_loss(labels, blend, labels=range(K))
        else:
            first = accuracy_score(labels, blend.argmax(axis=1))
        return round(first, 12), round(-log_loss(labels, blend, labels=range(K)), 12)

    kept = list(range(len(members)))
    while len(kept) > 1:
        candidates = [[m for m in kept if m != out] for out in kept]
        best = max(candidates, key=worth)
        if worth(best) <= worth(kept):
            break
        kept = best
    return kept


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "log_loss"])
@pytest.mark.parametrize("seed", range(4))
def test_elimination_is_that_of_a_slow_transcription(metric, seed):
    e = make_evidence([0.3, 0.9, 0.5, 0.1, 0.8], n=300, seed=seed, shared=0.5)
    assert select_members(e.labels, e.pred_probs, metric) == eliminate_slowly(e.labels, e.pred_probs, metric)


def test_members_of_a_fold_are_selected_without_its_labels():
    e = make_evidence([0.3, 0.9, 0.5, 0.1], n=400, shared=0.6)
    e = replace(e, fold=np.arange(400) % 2)
    out, as_the_weakest = e.fold == 1, e.pred_probs[3].argmax(axis=1)
    first = select_nested(e)[out]
    own = select_nested(replace(e, labels=np.where(out, as_the_weakest, e.labels)))[out]
    others = select_nested(replace(e, labels=np.where(out, e.labels, as_the_weakest)))[out]
    assert np.array_equal(first, own), "its own labels play no part"
    assert np.array_equal(others, e.pred_probs[3][out]), "the other folds decide"


def test_a_choice_that_is_no_better_on_other_folds_is_not_advised():
    e = make_evidence([0.5, 0.5, 0.5], n=100, seed=0, shared=0.9)
    assert len(select_members(e.labels, e.pred_probs, "accuracy")) < 3, "on all rows a member would leave"
    advice = advise(e, judge_methods(e))
    assert advice.against_all.difference <= 0 and advice.leave_out == ()


def test_a_member_that_costs_is_left_out_with_its_price():
    e = make_evidence([1.2, 1.1, -1.5])
    report = blend_report(e)
    advice = report.advice
    assert report.method == "mean" or report.weights["m2"] == 0
    assert advice.leave_out == ("m2",) and advice.against_all.proved
    right = [p.argmax(axis=1) == e.labels for p in (e.pred_probs.mean(axis=0), e.pred_probs[:2].mean(axis=0))]
    by_hand = right[1].mean() - right[0].mean()
    assert advice.against_all.difference == pytest.approx(by_hand, abs=0.02), "temperatures move some labels of both"
    assert advice.sentence == (
        f"leave m2 out: {advice.against_all.difference:+.4f} ± {advice.against_all.half_width:.4f} (proved)"
    )
    assert f"advice: {advice.sentence}" in str(report)
    said = json.loads(json.dumps(report_values(report)["advice"]))
    assert said["leave_out"] == ["m2"] and said["sentence"] == advice.sentence


def test_members_of_equal_worth_are_all_kept():
    e = make_evidence([0.6, 0.6, 0.6, 0.6])
    advice = advise(e, judge_methods(e))
    assert advice.leave_out == () and not advice.below_best
    assert advice.sentence == "keep every member: no smaller ensemble is better by nested evidence"


def test_an_ensemble_below_its_best_member_says_so():
    e = make_evidence([0.9, -0.4, -0.4], n=200, seed=3, shared=0.9)
    tempering = replace(judge_temperatures(e, "mean"), temperatures=np.ones(3))
    untempered = replace(tempering, metric=replace(tempering.metric, difference=-1.0))
    judgement = replace(judge_methods(e), chosen="mean", weights=np.full(3, 1 / 3), tempering=untempered)
    advice = advise(e, judgement)
    best, whole = (p.argmax(axis=1) == e.labels for p in (e.pred_probs[0], e.pred_probs.mean(axis=0)))
    only_best, only_whole = int((best & ~whole).sum()), int((whole & ~best).sum())
    assert only_best > only_whole and advice.below_best
    assert advice.against_best.p_value == pytest.approx(binomtest(only_whole, only_best + only_whole).pvalue)
    smaller, larger = sorted([advice.against_best, advice.against_all], key=lambda each: each.p_value)
    assert smaller.adjusted_p == min(1, 2 * smaller.p_value), "two comparisons are corrected (Holm)"
    assert larger.adjusted_p == max(larger.p_value, smaller.adjusted_p)
    assert advice.sentence.startswith(f"below its best member, m0, by {(only_best - only_whole) / 200:.4f} ± ")
    assert "; leave m1 and m2 out: +" in advice.sentence


def test_a_member_whose_weight_is_shown_as_zero_is_left_out():
    e = make_evidence([1.2, 1.1, -1.5])
    judged = judge_methods(e)
    for weights, left in (([0.6, 0.3999, 1e-4], ("m2",)), ([0.6, 0.399, 1e-3], ())):
        judgement = replace(judged, chosen="logloss", weights=np.array(weights))
        assert advise(e, judgement).leave_out == left


def test_one_member_has_no_subset():
    e = make_evidence([0.9], n=200)
    assert advise(e, judge_methods(e)).sentence == "one member alone: add one of another family"


def test_temperatures_say_which_labels_they_move():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 900, p=[0.7, 0.2, 0.1])
    logits = rng.normal(size=(900, 3)) + 1.0 * np.eye(3)[labels] + np.array([0, 0, 1.5])
    p = np.exp(logits * [1, 1, 3]) / np.exp(logits * [1, 1, 3]).sum(axis=1, keepdims=True)
    found = calibrate(labels, p, np.arange(900) % 5)
    assert found.moved > 0 and found.gained + found.lost <= found.moved
    change = found.accuracy_after.value - found.accuracy_before.value
    assert (found.gained - found.lost) / 900 == pytest.approx(change)
    assert f"temperatures move {found.moved} of 900 labels: {found.gained} to right, {found.lost} to wrong" in str(
        found
    )
    even = np.eye(3)[labels] * 0.8 + 0.2 / 3
    assert "temperatures move no label" in str(calibrate(labels, even, np.arange(900) % 5))
