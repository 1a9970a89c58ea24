import numpy as np
import pytest
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score, f1_score

from cassava_kit.calibration import logloss
from cassava_kit.noise.confident import FILTERS, find_issues
from cassava_kit.noise.detect import clearness, find_errors, suspicion
from cassava_kit.noise.neighbours import nearest, votes
from cassava_kit.noise.restack import _learned, evidence_features, geometric_mean, restack

K = 5
SCORES = ("normalized_margin", "self_confidence", "confidence_weighted_entropy")
SHARES = np.array([0.05, 0.10, 0.11, 0.62, 0.12])


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def planted(kind, rate, seed, n=2000, spread=0.8):
    """True labels, given labels, folds and three members' probabilities of the given labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(K, n, p=SHARES)
    centres = 3.2 * np.eye(K)
    x = centres[y] + rng.normal(size=(n, K))
    true = softmax(np.log(SHARES) + x @ centres.T - 0.5 * (centres**2).sum(axis=1))
    other = rng.dirichlet(np.ones(K), K) * (1 - np.eye(K))
    flip = other / other.sum(axis=1, keepdims=True)
    best_other = np.where(np.eye(K, dtype=bool)[y], 0, true)
    weight = np.ones(n) if kind == "class" else best_other.max(axis=1) / true.max(axis=1)
    wrong = rng.choice(n, round(rate * n), replace=False, p=weight / weight.sum())
    given = y.copy()
    given[wrong] = [rng.choice(K, p=flip[y[i]]) for i in wrong] if kind == "class" else best_other[wrong].argmax(axis=1)
    learned = true @ ((1 - rate) * np.eye(K) + rate * flip) if kind == "class" else true
    members = [softmax(np.log(learned) + spread * rng.normal(size=(n, K))) for _ in range(3)]
    return y, given, rng.integers(0, 5, n), np.stack(members), x


def best_of_cleanlab(given, p, wrong):
    f1 = max(f1_score(wrong, find_issues(given, p, filter_by=f)) for f in FILTERS)
    scores = (get_label_quality_scores(given, p, method=method) for method in SCORES)
    return f1, max(average_precision_score(wrong, -score) for score in scores)


@pytest.mark.parametrize(("kind", "independent"), [("class", 1.0), ("instance", 0.0)])
def test_planted_errors_are_found_better_than_by_any_cleanlab_filter(kind, independent):
    gains = []
    for seed in range(2):
        y, given, fold, members, _ = planted(kind, 0.12, seed)
        found = find_errors(given, members, fold=fold)
        wrong = given != y
        f1, ap = best_of_cleanlab(given, members.mean(axis=0), wrong)
        gains.append((f1_score(wrong, found.flags) - f1, average_precision_score(wrong, -found.quality) - ap))
        assert found.independent == pytest.approx(independent, abs=0.2)
        assert 0.6 * 0.12 < found.flags.mean() < 1.4 * 0.12
    gain = np.mean(gains, axis=0)
    assert gain[0] > 0.01, "F1"
    assert gain[1] > -0.005, "average precision"


def test_an_annotator_who_calls_everything_by_the_largest_class_is_found_out():
    """The surest rows are that class's own and never disagree, which must not pass for flips that follow the images."""
    rng = np.random.default_rng(7)
    y, _, fold, _, x = planted("class", 0.0, 7)
    given = y.copy()
    given[rng.choice(len(y), 400, replace=False)] = 3
    centres = 3.2 * np.eye(K)
    true = softmax(np.log(SHARES) + x @ centres.T - 0.5 * (centres**2).sum(axis=1))
    learned = 0.8 * true + 0.2 * np.eye(K)[3]
    members = np.stack([softmax(np.log(learned) + 0.4 * rng.normal(size=learned.shape)) for _ in range(3)])
    found = find_errors(given, members, fold=fold)
    assert found.independent == 1
    assert f1_score(given != y, found.flags) > best_of_cleanlab(given, members.mean(axis=0), given != y)[0]


def test_neighbours_of_a_good_embedding_help_and_of_a_random_one_do_not_harm():
    y, given, fold, members, x = planted("instance", 0.15, 0, n=800, spread=4.0)
    wrong = given != y
    rng = np.random.default_rng(0)
    ap = {
        name: average_precision_score(wrong, -find_errors(given, members, fold=fold, embedding=embedding).quality)
        for name, embedding in {
            "none": None,
            "good": 3 * np.eye(K)[y] + 0.3 * x,
            "random": rng.normal(size=(len(y), 8)),
        }.items()
    }
    assert ap["good"] > ap["none"] + 0.02
    assert ap["random"] > ap["none"] - 0.02


def test_right_labels_are_left_alone():
    """Two models of clean digits err on some images, in near ties: nothing is suspicious, and the report says why."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    x, digit = load_digits(return_X_y=True)
    labels = np.minimum(digit[:900] // 2, K - 1)
    models = (LogisticRegression(C=0.01, max_iter=100), KNeighborsClassifier(25))
    split = KFold(3)
    members = [cross_val_predict(m, x[:900] / 16, labels, cv=split, method="predict_proba") for m in models]
    fold = np.zeros(900, int)
    for k, (_, rows) in enumerate(split.split(x[:900])):
        fold[rows] = k
    found = find_errors(labels, np.stack(members), fold=fold)
    assert found.disagreeing > 20 and not found.flags.any()
    assert "hardly likelier than the label" in str(found)
    wrong = np.arange(900) % 10 == 0
    again = find_errors(np.where(wrong, (labels + 2) % K, labels), np.stack(members), fold=fold)
    assert again.flags[wrong].mean() > 0.9


def test_disagreements_count_as_far_as_they_are_no_ties():
    labels = np.zeros(40, int)

    def mean(own):
        return np.tile([own, 1 - own], (40, 1))

    assert clearness(labels, mean(0.1)) == 1 and clearness(labels, mean(0.49)) == 0
    assert 0 < clearness(labels, mean(0.31)) < 1
    assert clearness(labels, mean(0.8)) == 0, "no disagreement, nothing to count"


def test_an_account_counts_in_the_order_by_its_weight():
    labels = np.zeros(3, int)
    first, second = (np.stack([own, 1 - own], axis=1) for own in (np.array([0.1, 0.5, 0.9]), np.array([0.8, 0.5, 0.2])))
    for margin_weight in (0.0, 1.0):
        assert suspicion(labels, [first, second], [1, 0], margin_weight=margin_weight).tolist() == [0, 1, 2]
        assert suspicion(labels, [first, second], [0, 1], margin_weight=margin_weight).tolist() == [2, 1, 0]


def test_flags_are_the_lowest_quality_and_suggest_another_label():
    _, given, fold, members, _ = planted("class", 0.15, 1, n=1000)
    found = find_errors(given, members, fold=fold)
    assert found.quality[found.flags].max() <= found.quality[~found.flags].min()
    assert (found.suggested[found.flags] != given[found.flags]).all()
    assert np.array_equal(found.suggested[~found.flags], given[~found.flags])
    assert found.quality.min() >= 0 and found.quality.max() <= 1
    assert f"{found.flags.sum():,} of 1,000 labels" in str(found)


def test_the_suggestion_is_mostly_the_true_label():
    y, given, fold, members, _ = planted("class", 0.15, 2, n=1500)
    found = find_errors(given, members, fold=fold)
    hit = found.flags & (given != y)
    assert (found.suggested[hit] == y[hit]).mean() > 0.85


def test_the_same_input_gives_the_same_answer_and_one_member_may_come_alone():
    _, given, fold, members, x = planted("class", 0.1, 3, n=600)
    a, b = (find_errors(given, members, fold=fold, embedding=x) for _ in range(2))
    assert np.array_equal(a.quality, b.quality) and np.array_equal(a.flags, b.flags)
    one, stacked = find_errors(given, members[0], fold=fold), find_errors(given, members[:1], fold=fold)
    assert np.array_equal(one.quality, stacked.quality)


def test_clean_labels_are_left_alone_where_the_members_are_sure():
    y, _, fold, _, _ = planted("class", 0.0, 4, n=800)
    sure = 0.96 * np.eye(K)[y] + 0.01
    found = find_errors(y, sure / sure.sum(axis=1, keepdims=True), fold=fold)
    assert not found.flags.any()


def test_a_class_with_two_rows_and_one_nobody_has_are_no_trouble():
    rng = np.random.default_rng(0)
    given = np.array([0, 1] * 40 + [2, 2])
    p = rng.dirichlet(np.ones(5), len(given))
    found = find_errors(given, p, fold=np.arange(len(given)) % 5)
    assert np.isfinite(found.quality).all()


def test_the_second_round_learns_from_kept_rows_of_other_folds_alone():
    _, given, fold, members, _ = planted("class", 0.1, 5, n=300)
    features = evidence_features(members, given, np.ones(300, bool), None)
    keep = np.arange(300) % 7 != 0
    before = _learned(features, given, fold, keep, 0.05)
    own = _learned(features, np.where(fold == 2, (given + 1) % K, given), fold, keep, 0.05)
    assert np.array_equal(before[fold == 2], own[fold == 2]), "a fold's own labels must not reach its rows"
    assert not np.allclose(before[fold == 1], own[fold == 1])
    left_out = _learned(features, np.where(keep, given, (given + 1) % K), fold, keep, 0.05)
    assert np.array_equal(before, left_out)


def test_the_second_round_mends_what_wrong_labels_did_to_the_probabilities():
    y, given, fold, members, _ = planted("class", 0.2, 5, n=1000)
    features = evidence_features(members, given, np.ones(1000, bool), None)
    learned = restack(features, given, fold, keep=given == y, n_classes=K)
    assert logloss(y, learned) < logloss(y, members.mean(axis=0)) - 0.03


def test_the_geometric_mean_is_a_probability_and_never_zero():
    g = geometric_mean([np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])])
    assert g.sum() == pytest.approx(1) and g.min() > 0


def test_nearest_are_scikit_learn_s():
    from sklearn.neighbors import NearestNeighbors

    x = np.random.default_rng(0).normal(size=(300, 6))
    centred = x - x.mean(axis=0)
    _, theirs = NearestNeighbors(n_neighbors=6, metric="cosine").fit(centred).kneighbors(centred)
    ours = nearest(x, reach=5)
    assert (ours == theirs[:, 1:]).mean() > 0.99
    assert (ours != np.arange(300)[:, None]).all()


def test_only_trusted_neighbours_vote_and_never_the_row_itself():
    neighbours = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    labels, trusted = np.array([0, 1, 0, 1]), np.array([True, False, True, True])
    shares = votes(neighbours, labels, trusted, k=2, n_classes=2)
    # Row 0 hears rows 2 (class 0) and 3 (class 1), for row 1 is not trusted; half a vote goes to each class.
    assert shares[0] == pytest.approx([0.5, 0.5])
    assert shares[1] == pytest.approx([2.5 / 3, 0.5 / 3])
    assert shares.sum(axis=1) == pytest.approx(np.ones(4))


def test_an_embedding_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite embedding"):
        nearest(np.full((5, 2), np.nan))
