"""Two finals: properties of the redraws, and planted candidates whose right choice is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, log_loss

from cassava_kit.competition import CASSAVA, VARIABLE, Metric, write_facts
from cassava_kit.data.folds import Folds, write_folds
from cassava_kit.evidence.blend import weigh_files
from cassava_kit.evidence.finals import (
    Candidate,
    add_to_ledger,
    parse_candidates,
    propose_finals,
    read_ledger,
    redraw,
    redraw_by,
)
from cassava_kit.evidence.metrics import row_counts
from cassava_kit.evidence.oof import Evidence
from cassava_kit.evidence.predictions import Header, Source, make_predictions, write_predictions
from cassava_kit.evidence.weighing import find_weights

N = 6000
LABELS = np.arange(N) % 5


@pytest.fixture
def split() -> Folds:
    names = [f"{i:05d}.jpg" for i in range(N)]
    return Folds(pd.DataFrame({"image_id": names, "label": LABELS, "fold": np.arange(N) % 3}))


def candidate(name: str, wrong: np.ndarray, split: Folds, **facts: object) -> Candidate:
    """A candidate that is wrong, by one class, on the rows `wrong` (N,) and right on all others."""
    predicted = np.where(wrong, (LABELS + 1) % 5, LABELS)
    probabilities = np.eye(5)[predicted] * 0.6 + 0.08
    header = Header(name=name, kind="oof", fold_hash=split.hash)
    fold = split.frame["fold"].to_numpy()
    oof = make_predictions(split.frame["image_id"].to_numpy(), probabilities, header=header, fold=fold)
    return Candidate(name, oof, split, **facts)  # type: ignore[arg-type]


def errors(start: int, n: int) -> np.ndarray:
    return (np.arange(N) >= start) & (np.arange(N) < start + n)


def test_redraws_spread_as_evidence_and_test_set_do() -> None:
    right = np.stack([~errors(0, 600), ~errors(300, 660)])
    drawn = redraw(right, rows=3000)
    expected = right.mean(axis=1)
    assert np.abs(drawn.mean(axis=0) - expected).max() < 0.0005
    spread = np.sqrt(expected * (1 - expected) * (1 / N + 1 / 3000))
    assert drawn.std(axis=0) == pytest.approx(spread, rel=0.05)
    d = right[0].astype(int) - right[1]
    paired = d.std() * np.sqrt(1 / N + 1 / 3000)
    assert (drawn[:, 0] - drawn[:, 1]).std() == pytest.approx(paired, rel=0.05), "the same images for both"


def test_the_hedge_is_the_one_that_differs_and_not_a_near_copy(split: Folds) -> None:
    best = candidate("best", errors(0, 600), split)
    copy = candidate("copy", errors(0, 602), split)
    other = candidate("other", errors(3000, 615), split)
    weak = candidate("weak", errors(3000, 1500), split)
    finals = propose_finals([weak, copy, best, other])
    assert (finals.names[finals.best], finals.names[finals.hedge]) == ("best", "other")
    assert finals.differ == pytest.approx(1215 / N)
    rows = np.arange(N)
    apart = np.corrcoef(rows < 600, (rows >= 3000) & (rows < 3615))[0, 1]
    assert finals.errors_correlate == pytest.approx(apart) and "errors correlate -0.11" in str(finals)
    assert finals.win.sum() == pytest.approx(1) and finals.win[finals.names.index("weak")] < 0.001
    assert finals.pair_win > finals.win[finals.best]
    assert finals.gain > 0.001 and finals.gain_interval[0] == 0
    assert "final 1, best expected: best" in str(finals) and "final 2, best hedge:    other" in str(finals)
    assert "is not proved" in str(finals) and "copy -0.0003" in str(finals)


def test_the_gain_is_the_expected_maximum_of_two_normals(split: Folds) -> None:
    """E max(0, D) of a normal difference D with mean m and standard deviation s is m Phi(m/s) + s phi(m/s)."""
    from statistics import NormalDist

    finals = propose_finals(
        [candidate("a", errors(0, 600), split), candidate("b", errors(3000, 630), split)], rows=5000
    )
    right = np.stack([~errors(0, 600), ~errors(3000, 630)]).astype(int)
    d = right[1] - right[0]
    m, s, unit = d.mean(), d.std() * np.sqrt(1 / N + 1 / 5000), NormalDist()
    assert finals.gain == pytest.approx(m * unit.cdf(m / s) + s * unit.pdf(m / s), rel=0.05)
    assert finals.win[1] == pytest.approx(unit.cdf(m / s), abs=0.02)


def test_a_clear_winner_is_called_proved(split: Folds) -> None:
    finals = propose_finals([candidate("good", errors(0, 300), split), candidate("bad", errors(3000, 900), split)])
    assert "good is proved better than every other one" in str(finals)
    assert finals.win[0] > 0.999 and finals.gain < 1e-6


def test_proof_of_the_best_is_corrected_for_the_number_of_candidates(split: Folds) -> None:
    """Holm's steps by hand, for two others: the least p-value counts twice."""
    wrong = {"best": errors(0, 600), "second": errors(1000, 660), "third": errors(2000, 665)}
    found = propose_finals([candidate(name, rows, split) for name, rows in wrong.items()])
    one, two = sorted(found.against_best.values(), key=lambda c: c.p_value)
    assert found.names[found.best] == "best" and 0 < one.p_value < two.p_value < 1 / 2
    assert one.adjusted_p == pytest.approx(2 * one.p_value)
    assert two.adjusted_p == pytest.approx(max(2 * one.p_value, two.p_value))


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_a_redrawn_test_set_is_scored_as_scikit_learn_scores_its_rows(metric: Metric) -> None:
    """The test set has another number of rows than the evidence; its rows are written out and scored one by one."""
    rng = np.random.default_rng(3)
    labels, probs = rng.integers(0, 5, 60), [rng.dirichlet(np.ones(5), 60) for _ in range(2)]
    found = redraw_by(metric, labels, probs, rows=150, seed=4)
    again = np.random.default_rng(4)
    for scores, counts in zip(found[:20], row_counts(60, seed=4), strict=False):
        rows = np.repeat(np.arange(60), again.multinomial(150, counts / 60))
        for value, p in zip(scores, probs, strict=True):
            if metric == "log_loss":
                expected = -log_loss(labels[rows], p[rows], labels=range(5))
            else:
                answers = p[rows].argmax(axis=1)
                expected = f1_score(labels[rows], answers, labels=range(5), average="macro", zero_division=0)
            assert value == pytest.approx(expected)


def test_a_tie_goes_to_the_simpler_and_the_order_does_not_matter(split: Folds) -> None:
    many = candidate("many", errors(0, 600), split, members=5)
    one = candidate("one", errors(3000, 600), split, members=1)
    unknown = candidate("unknown", errors(1000, 600), split)
    for order in ([many, one, unknown], [unknown, many, one]):
        assert propose_finals(order).names[propose_finals(order).best] == "one"


def test_two_different_ones_are_needed(split: Folds, tmp_path: Path) -> None:
    a, same = candidate("a", errors(0, 600), split), candidate("same", errors(0, 600), split)
    with pytest.raises(ValueError, match="two different submissions are needed"):
        propose_finals([a, same])
    with pytest.raises(ValueError, match="two or more submissions"):
        propose_finals([a])
    files = [tmp_path / "1.csv", tmp_path / "2.csv"]
    for label, path in enumerate(files):
        path.write_text(f"image_id,label\n1.jpg,{label}\n")
    pair = [candidate(name, errors(0, 600), split, submission=f) for name, f in zip("ab", files, strict=True)]
    assert propose_finals(pair).differ == 0, "the same out of fold, but their files differ"


def test_evidence_on_other_rows_is_not_paired(split: Folds) -> None:
    frame = split.frame.copy()
    frame.loc[0, "label"] = 4
    with pytest.raises(ValueError, match="b and a are scored on other rows or labels"):
        propose_finals([candidate("a", errors(0, 600), split), candidate("b", errors(9, 600), Folds(frame))])


def test_candidates_from_files_and_the_verbs_weights(split: Folds, tmp_path: Path) -> None:
    write_folds(tmp_path / "folds.csv", split)
    for name, wrong in (("a", errors(0, 600)), ("b", errors(3000, 630))):
        made = candidate(name, wrong, split).oof
        sources = tuple(Source(name=f"{name}-fold{k}", fold=k, fold_hash=split.hash) for k in range(3))
        header = made.header.model_copy(update={"sources": sources})  # type: ignore[union-attr]
        write_predictions(tmp_path / f"{name}.csv", type(made)(made.frame, header))
    members = [{"name": n, "oof": str(tmp_path / f"{n}.csv"), "weight": 0.5} for n in "ab"]
    (tmp_path / "weights.json").write_text(json.dumps({"members": members, "fold_hash": split.hash}))
    texts = [f"a={tmp_path}/a.csv", f"both={tmp_path}/weights.json", f"b={tmp_path}/b.csv"]
    found = parse_candidates(texts, tmp_path / "folds.csv")
    assert [(each.name, each.members) for each in found] == [("a", 1), ("both", 2), ("b", 1)]
    assert {propose_finals(found).names[i] for i in (propose_finals(found).best, propose_finals(found).hedge)} <= {
        "a",
        "b",
        "both",
    }
    for text, message in (
        ("a", "takes NAME=OOF.csv"),
        (f"a={tmp_path}/a.csv,nowhere.csv", "no submission nowhere.csv"),
        (f"a={tmp_path}/folds.json", "not a weights file of the verb ensemble"),
        ("a=nowhere.csv", "no prediction file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            parse_candidates([text], tmp_path / "folds.csv")


def test_the_ledger_keeps_each_submission_once(split: Folds, tmp_path: Path) -> None:
    ledger = tmp_path / "submissions.json"
    with pytest.raises(FileNotFoundError, match="`submit` writes it"):
        read_ledger(ledger)
    for ref, wrong in ((1, errors(0, 600)), (2, errors(3000, 630))):
        write_folds(tmp_path / str(ref) / "folds.csv", split)
        write_predictions(tmp_path / str(ref) / "oof.csv", candidate(f"s{ref}", wrong, split).oof)
        for score in ("", "0.9012"):
            entry = {"ref": ref, "name": f"s{ref}", "public_score": score, "evidence": str(tmp_path / str(ref))}
            add_to_ledger(ledger, entry | {"members": ref})
    add_to_ledger(ledger, {"ref": 3, "name": "foreign", "evidence": str(tmp_path / "3")})
    found, left_out = read_ledger(ledger)
    assert [(each.name, each.members, each.public) for each in found] == [("s1", 1, "0.9012"), ("s2", 2, "0.9012")]
    assert left_out == (f"foreign has no out-of-fold evidence in {tmp_path / '3'}",)
    assert "public 0.9012" in str(propose_finals(found))


def test_a_ledger_is_read_from_any_folder(split: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence lies beside the ledger; in older ledgers relative to the folder that it was written from."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for ref, evidence in ((1, "submissions/1"), (2, "project/old/2")):
        folder = project / evidence.removeprefix("project/")
        write_folds(folder / "folds.csv", split)
        write_predictions(folder / "oof.csv", candidate(f"s{ref}", errors(900 * ref, 600), split).oof)
        add_to_ledger(project / "submissions.json", {"ref": ref, "name": f"s{ref}", "evidence": evidence})
    monkeypatch.chdir(elsewhere)
    assert [each.name for each in read_ledger(Path("../project/submissions.json"))[0]] == ["s1"]
    monkeypatch.chdir(tmp_path)
    assert [each.name for each in read_ledger(Path("project/submissions.json"))[0]] == ["s1", "s2"]


def submitted(ledger: Path, ref: int, split: Folds, **facts: object) -> None:
    """Write a submission and its evidence into the ledger."""
    evidence = ledger.parent / str(ref)
    write_folds(evidence / "folds.csv", split)
    write_predictions(evidence / "oof.csv", candidate(f"s{ref}", errors(900 * ref, 600 + ref), split).oof)
    add_to_ledger(ledger, {"ref": ref, "name": f"s{ref}", "evidence": str(evidence), "build_id": f"b{ref}"} | facts)


def test_a_submission_of_the_same_build_takes_the_first_ones_place(split: Folds, tmp_path: Path) -> None:
    ledger = tmp_path / "submissions.json"
    submitted(ledger, 1, split)
    submitted(ledger, 2, split)
    submitted(ledger, 3, split, name="s1", build_id="b1")
    found, left_out = read_ledger(ledger)
    assert [each.name for each in found] == ["s2", "s1"] and not left_out


def test_an_ensemble_is_judged_with_weights_found_on_the_other_folds(split: Folds, tmp_path: Path) -> None:
    """Weights found on all rows have seen what they are scored on: a candidate of a weights file is the nested one."""
    labels, rng = split.frame["label"].to_numpy(), np.random.default_rng(0)
    ids, fold = split.frame["image_id"].to_numpy(), split.frame["fold"].to_numpy()
    write_folds(tmp_path / "folds.csv", split)
    probs = []
    for n, strength in enumerate((2.0, 0.5, 0.0)):
        p = np.exp(rng.normal(size=(N, 5)) + strength * np.eye(5)[labels])
        probs.append(p / p.sum(axis=1, keepdims=True))
        header = Header(name=f"m{n}", kind="oof", fold_hash=split.hash)
        write_predictions(tmp_path / f"m{n}.csv", make_predictions(ids, probs[-1], header=header, fold=fold))
    weigh_files([tmp_path / f"m{n}.csv" for n in range(3)], tmp_path / "folds.csv", tmp_path / "w.json")
    written = json.loads((tmp_path / "w.json").read_text())
    assert written["method"] != "mean"
    (found,) = parse_candidates([f"all={tmp_path}/w.json"], tmp_path / "folds.csv")
    stacked, expected = np.stack(probs), np.zeros((N, 5))
    for k in range(split.n_splits):
        out = fold == k
        others = Evidence(("a", "b", "c"), ids[~out], labels[~out], fold[~out], stacked[:, ~out], split.hash)
        w = find_weights(others.labels, others.pred_probs, written["method"])
        expected[out] = sum(w[m] * stacked[m, out] for m in range(3))
    assert np.allclose(found.oof.probabilities, expected, atol=1e-6)
    in_sample = sum(each["weight"] * stacked[n] for n, each in enumerate(written["members"]))
    assert not np.allclose(found.oof.probabilities, in_sample, atol=1e-4)
    assert "found on the other folds" in found.oof.header.labels_seen[0]
    (tmp_path / "w.json").write_text(json.dumps(written | {"method": "by hand"}))
    (by_hand,) = parse_candidates([f"all={tmp_path}/w.json"], tmp_path / "folds.csv")
    assert np.allclose(by_hand.oof.probabilities, in_sample, atol=1e-6)
    assert "found on the rows that are scored" in by_hand.oof.header.labels_seen[0]
    pair = parse_candidates([f"all={tmp_path}/w.json", f"one={tmp_path}/m2.csv"], tmp_path / "folds.csv")
    assert str(propose_finals(pair)).endswith("note: all: ensemble weights were found on the rows that are scored")


def test_what_cannot_be_paired_with_the_newest_is_left_out(split: Folds, tmp_path: Path) -> None:
    ledger, relabelled = tmp_path / "submissions.json", split.frame.copy()
    relabelled.loc[0, "label"] = 4
    submitted(ledger, 1, Folds(relabelled))
    submitted(ledger, 2, split, competition="flowers")
    submitted(ledger, 3, split, competition=CASSAVA.slug)
    submitted(ledger, 4, split)
    submitted(ledger, 5, split)
    write_folds(tmp_path / "4" / "folds.csv", Folds(split.frame.assign(fold=np.arange(N) % 4)), replace=True)
    submitted(ledger, 6, split)
    found, left_out = read_ledger(ledger)
    assert [each.name for each in found] == ["s3", "s5", "s6"]
    assert left_out[0] == f"s2 was submitted to flowers, this folder is for {CASSAVA.slug}"
    assert "s4" in left_out[1] and "this fold file is" in left_out[1]
    assert left_out[2] == "s1 is scored on other rows or labels than s6, the newest"
    assert "3 submissions" in str(propose_finals(found))


def test_finals_follow_the_competitions_metric(split: Folds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is right more often, but so sure where it is wrong that log loss prefers the other."""
    loss = replace(CASSAVA, metric="log_loss", probability_columns=tuple("abcde"), hidden_images=3000)
    bold, meek = candidate("bold", errors(0, 600), split), candidate("meek", errors(3000, 660), split)
    sure = bold.oof.probabilities**6
    sure /= sure.sum(axis=1, keepdims=True)
    frame = bold.oof.frame.assign(**{f"p{k}": sure[:, k] for k in range(5)})
    bold = replace(bold, oof=replace(bold.oof, frame=frame))
    by_accuracy = propose_finals([bold, meek])
    assert by_accuracy.names[by_accuracy.best] == "bold" and by_accuracy.rows == 10_000
    write_facts(tmp_path / "c.json", loss)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "c.json"))
    found = propose_finals([bold, meek])
    assert found.names[found.best] == "meek" and found.rows == 2000 and found.win[1] > 0.99
    assert "out-of-fold log loss" in str(found) and "(accuracy 0." in str(found)
