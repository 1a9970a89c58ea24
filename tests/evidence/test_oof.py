from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cassava_kit.competition import Task
from cassava_kit.data.folds import Folds
from cassava_kit.data.stratify import split_folds
from cassava_kit.errors import UserError
from cassava_kit.evidence.metrics import accuracy, majority
from cassava_kit.evidence.oof import (
    average_members,
    check_oof,
    fold_predictions,
    join_folds,
    make_evidence,
    member_names,
    refuse_in_sample,
)
from cassava_kit.evidence.predictions import (
    Header,
    Predictions,
    Source,
    make_predictions,
    read_predictions,
    write_predictions,
)

N, K = 60, 3


@pytest.fixture(scope="module")
def folds():
    labels = pd.DataFrame({"image_id": [f"{i:03d}.jpg" for i in range(N)], "label": np.arange(N) % K})
    return split_folds(labels, n_splits=5, seed=0)


def sources(folds, which=range(5)):
    return tuple(Source(name=f"m-fold{k}", fold=k, fold_hash=folds.hash) for k in which)


def oof(folds, *, seed=0, header="ours"):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(K), N)
    made = Header(name="m", kind="oof", fold_hash=folds.hash, sources=sources(folds))
    whole = make_predictions(folds.frame["image_id"].to_numpy(), p, header=made, fold=folds.frame["fold"].to_numpy())
    return whole if header == "ours" else Predictions(whole.frame)


def with_header(predictions, **changes):
    return Predictions(predictions.frame, predictions.header.model_copy(update=changes))


def shuffled(predictions, seed=1):
    order = np.random.default_rng(seed).permutation(len(predictions.frame))
    return Predictions(predictions.frame.iloc[order].reset_index(drop=True), predictions.header)


def test_members_are_joined_by_id_whatever_their_row_order(folds):
    a, b = oof(folds), oof(folds, seed=1)
    straight, mixed = (
        make_evidence([a, b], folds, ["a", "b"]),
        make_evidence([shuffled(a), shuffled(b, 2)], folds, ["a", "b"]),
    )
    assert np.array_equal(straight.pred_probs, mixed.pred_probs)
    assert np.array_equal(mixed.image_ids, folds.frame["image_id"])
    assert np.array_equal(mixed.labels, folds.frame["label"])


@pytest.mark.parametrize("header", ["ours", "foreign"])
def test_a_whole_file_is_accepted_through_the_disk(folds, tmp_path, header):
    write_predictions(tmp_path / "oof.csv", shuffled(oof(folds, header=header)))
    checked = check_oof(read_predictions(tmp_path / "oof.csv"), folds, "oof.csv")
    assert np.array_equal(checked.ids, folds.frame["image_id"])


def test_another_split_is_refused(folds):
    other = split_folds(folds.frame, n_splits=5, seed=1)
    with pytest.raises(ValueError, match=r"theirs: .*another split"):
        check_oof(oof(folds), other, "theirs")
    with pytest.raises(ValueError, match=r"theirs was made on .* one split throughout"):
        check_oof(with_header(oof(folds), sources=()), other, "theirs")


def test_a_header_that_names_no_split_is_refused(folds):
    with pytest.raises(ValueError, match="made on no split"):
        check_oof(with_header(oof(folds), fold_hash=None, sources=()), folds, "m")


def test_missing_and_extra_rows_are_refused_with_count_and_first(folds):
    whole = oof(folds, header="foreign")
    with pytest.raises(ValueError, match=r"2 rows of the fold file are missing \(first: 003.jpg\)"):
        check_oof(Predictions(whole.frame.drop([3, 7])), folds, "m")
    stranger = whole.frame.iloc[[0]].assign(image_id="stranger.jpg")
    with pytest.raises(ValueError, match=r"1 rows are not in it \(first: stranger.jpg\)"):
        check_oof(Predictions(pd.concat([whole.frame, stranger])), folds, "m")


def test_a_foreign_file_must_agree_on_every_fold(folds):
    whole = oof(folds, header="foreign")
    with pytest.raises(ValueError, match="no fold column"):
        check_oof(Predictions(whole.frame.drop(columns="fold")), folds, "m")
    wrong = whole.frame.copy()
    wrong.loc[17, "fold"] = (wrong.loc[17, "fold"] + 1) % 5
    with pytest.raises(ValueError, match=r"m has fold \d for 017.jpg, the fold file has \d"):
        check_oof(Predictions(wrong), folds, "m")


def test_image_predictions_are_not_out_of_fold(folds):
    with pytest.raises(ValueError, match="not out of fold"):
        check_oof(with_header(oof(folds), kind="images", sources=()), folds, "m")


def test_in_sample_scoring_is_refused_naming_checkpoint_and_rows(folds):
    fold0 = with_header(oof(folds), kind="images", sources=sources(folds, [0]))
    training = folds.training(0)
    with pytest.raises(ValueError, match=rf"m-fold0 was trained on {len(training)} of these rows \(first: "):
        refuse_in_sample(fold0, folds, "m")
    held_out = Predictions(fold0.frame[fold0.frame["fold"] == 0], fold0.header)
    refuse_in_sample(held_out, folds, "m")
    first = training["image_id"].iloc[0]
    one_too_many = pd.concat([held_out.frame, fold0.frame[fold0.frame["image_id"] == first]])
    with pytest.raises(ValueError, match=rf"trained on 1 of these rows \(first: {first}\).*rows of fold 0 alone"):
        refuse_in_sample(Predictions(one_too_many, fold0.header), folds, "m")


def test_rows_no_split_knows_may_be_scored_with_any_checkpoint(folds):
    unseen = oof(folds).frame.assign(image_id=[f"test{i}.jpg" for i in range(N)])
    for which in (sources(folds), (Source(name="all rows"),)):
        refuse_in_sample(Predictions(unseen, Header(name="m", kind="images", sources=which)), folds, "m")


def test_calling_it_out_of_fold_does_not_make_it_so(folds):
    one = with_header(oof(folds), sources=sources(folds, [0]))
    with pytest.raises(ValueError, match=rf"m-fold0 was trained on {N - len(folds.validation(0))} of these rows"):
        check_oof(one, folds, "m")
    with pytest.raises(ValueError, match=rf"everything was trained on {N} of these rows"):
        check_oof(with_header(oof(folds), sources=(Source(name="everything"),)), folds, "m")


def test_an_in_sample_ensemble_is_refused(folds):
    """The published "CV .9429": five folds' models averaged over rows that four of them had trained on."""
    averaged = with_header(oof(folds), kind="images", sources=sources(folds))
    with pytest.raises(ValueError, match="m-fold0 was trained on"):
        refuse_in_sample(averaged, folds, "ensemble")


def part(folds, k, **changes):
    whole = oof(folds)
    header = whole.header.model_copy(update={"sources": sources(folds, [k])} | changes)
    return Predictions(whole.frame[whole.frame["fold"] == k].reset_index(drop=True), header)


def test_parts_join_into_one_file_that_passes(folds):
    joined = join_folds([part(folds, k) for k in (3, 1, 0, 2, 4)], folds, "m")
    assert np.array_equal(joined.probabilities, oof(folds).probabilities)
    assert {s.fold for s in joined.header.sources} == set(range(5))
    check_oof(joined, folds, "m")


def test_parts_must_not_overlap_or_leave_rows_out(folds):
    parts = [part(folds, k) for k in range(5)]
    with pytest.raises(ValueError, match="predicted by two folds"):
        join_folds([*parts, part(folds, 2)], folds, "m")
    with pytest.raises(ValueError, match=f"{len(folds.validation(4))} rows of the fold file are missing"):
        join_folds(parts[:4], folds, "m")
    wrong = part(folds, 4, sources=sources(folds, [3]))
    with pytest.raises(ValueError, match="m-fold0 was trained on"):
        join_folds([*parts[:4], wrong], folds, "m")


def test_a_part_of_another_split_is_refused(folds):
    parts = [part(folds, k) for k in range(5)]
    parts[1] = part(folds, 1, fold_hash="0" * 64, sources=())
    with pytest.raises(ValueError, match="the part m was made on 000000000000"):
        join_folds(parts, folds, "m")


def test_members_must_have_one_set_of_classes_and_different_names(folds):
    a = oof(folds)
    wide = Predictions(a.frame.assign(p3=0.0), a.header)
    with pytest.raises(ValueError, match="same classes"):
        make_evidence([a, wide], folds, ["a", "b"])
    with pytest.raises(ValueError, match="different names"):
        make_evidence([a, a], folds, ["a", "a"])
    with pytest.raises(ValueError, match="at least one"):
        make_evidence([], folds, [])


def test_a_label_no_member_predicts_is_refused(folds):
    frame = folds.frame.assign(label=folds.frame["label"].where(folds.frame.index != 5, K))
    relabelled = Folds(frame)
    with pytest.raises(ValueError, match=r"005.jpg label 3, a predicts classes 0..2"):
        make_evidence([Predictions(oof(folds).frame)], relabelled, ["a"])


def test_scores_carry_their_binomial_standard_error():
    score = accuracy(np.array([0, 1, 1, 0]), np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.6, 0.4]]))
    assert (score.accuracy, score.n) == (0.75, 4), "the tie of row one goes to class 0"
    assert score.standard_error == pytest.approx(np.sqrt(0.75 * 0.25 / 4))
    assert majority(np.array([2, 2, 1])).accuracy == pytest.approx(2 / 3)


def test_the_average_is_an_oof_of_its_own(folds):
    evidence = make_evidence([oof(folds), oof(folds, seed=1)], folds, ["a", "b"])
    blended = average_members(evidence, np.array([0.25, 0.75]))
    assert np.allclose(blended.probabilities, 0.25 * evidence.pred_probs[0] + 0.75 * evidence.pred_probs[1])
    again = make_evidence([blended], folds, ["blend"])
    assert np.array_equal(again.pred_probs[0], blended.probabilities)


TASK = {"competition": "leaves", "metric": "log_loss", "classes": ("a", "b", "c")}


def test_the_metric_comes_from_the_files_whatever_the_working_directory(folds):
    named = replace(folds, task=Task(**TASK))
    assert make_evidence([oof(folds)], folds, ["m"]).metric == "accuracy", "older files: the current competition's"
    for split, member in ((named, oof(folds)), (folds, with_header(oof(folds), **TASK))):
        evidence = make_evidence([member], split, ["m"])
        assert evidence.metric == "log_loss" and evidence.task.classes == ("a", "b", "c")
        assert average_members(evidence, np.ones(1)).header.task == Task(**TASK), "the blend's header says it too"
    part = fold_predictions(named, 0, np.full((len(named.validation(0)), K), 1 / K), "m-fold0")
    assert part.header.task == Task(**TASK)
    parts = [fold_predictions(named, k, np.full((len(named.validation(k)), K), 1 / K), f"m-fold{k}") for k in range(5)]
    assert join_folds(parts, named, "m").header.task == Task(**TASK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "accuracy"}, "the fold file has metric log_loss, m has accuracy"),
        ({"competition": "other"}, "the fold file has competition leaves, m has other"),
        ({"classes": ("a", "b", "d")}, "the fold file has classes a, b, c, m has a, b, d"),
    ],
)
def test_files_of_different_competitions_are_refused(folds, change, message):
    named = replace(folds, task=Task(**TASK))
    with pytest.raises(UserError, match=message):
        make_evidence([with_header(oof(folds), **TASK | change)], named, ["m"])


def test_members_must_predict_the_classes_that_the_files_name(folds):
    named = replace(folds, task=Task(**TASK | {"classes": ("a", "b", "c", "d")}))
    with pytest.raises(UserError, match="m must predict the 4 classes of leaves, got 3"):
        make_evidence([oof(folds)], named, ["m"])


def test_names_are_as_much_of_the_path_as_tells_them_apart(tmp_path):
    files = [tmp_path / name for name in ("round1/runs/a/oof.csv", "round2/runs/a/oof.csv", "x.csv", "runs/b/oof.csv")]
    assert member_names(files) == ["round1/runs/a", "round2/runs/a", "x", "b"]
    with pytest.raises(UserError) as refused:
        member_names([files[0], tmp_path / "x" / ".." / "round1/runs/a/oof.csv"])
    assert f"must differ, got {files[0].parent} more than once" in str(refused.value)


def test_how_labels_came_into_a_member_is_carried_on(folds):
    whole = [np.full((len(folds.validation(k)), K), 1 / K) for k in range(5)]
    parts = [fold_predictions(folds, k, p, f"m-fold{k}", labels_seen=("cleaned",)) for k, p in enumerate(whole)]
    joined = join_folds(parts, folds, "m")
    assert joined.header.labels_seen == ("cleaned",)
    evidence = make_evidence([joined, oof(folds)], folds, ["m", "other"])
    assert evidence.labels_seen == ("m: cleaned",)
    assert average_members(evidence, np.full(2, 0.5)).header.labels_seen == ("m: cleaned",)
