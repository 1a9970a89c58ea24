import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.neighbors import NearestNeighbors

from cassava_kit.errors import UserError
from cassava_kit.evidence.noise.detect import detect_errors
from cassava_kit.evidence.noise.neighbours import nearest, neighbour_agreement

K = 5


def planted(n=1500, rate=0.12, members=3, seed=0):
    """True labels, given labels of which `rate` are wrong, and members' probabilities (M, N, K) of the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.choice(K, n, p=[0.05, 0.10, 0.11, 0.62, 0.12])
    given = true.copy()
    wrong = rng.choice(n, round(rate * n), replace=False)
    given[wrong] = (true[wrong] + rng.integers(1, K, len(wrong))) % K
    logits = 4 * np.eye(K)[true] + rng.normal(size=(members, n, K))
    p = np.exp(logits)
    return true, given, p / p.sum(axis=2, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_flags_and_order_are_cleanlabs_on_the_members_mean(seed):
    _, given, members = planted(seed=seed)
    found = detect_errors(given, members)
    mean = (members[0] + members[1] + members[2]) / 3
    assert np.array_equal(found.flags, find_label_issues(given, mean, n_jobs=1))
    theirs = get_label_quality_scores(given, mean, method="normalized_margin")
    assert np.allclose(found.quality, theirs)
    # The same margin by hand for the first rows: (p of the label - largest other p + 1) / 2.
    for row in range(20):
        others = np.delete(mean[row], given[row]).max()
        assert found.quality[row] == pytest.approx((mean[row, given[row]] - others + 1) / 2)


def test_planted_errors_are_found_and_the_true_class_is_suggested():
    true, given, members = planted()
    found = detect_errors(given, members)
    wrong = given != true
    assert found.flags[wrong].mean() > 0.8 and (found.flags & ~wrong).sum() < 0.1 * wrong.sum()
    hit = found.flags & wrong
    assert (found.suggested[hit] == true[hit]).mean() > 0.95
    assert np.array_equal(found.suggested[~found.flags], given[~found.flags])
    assert (found.suggested[found.flags] != given[found.flags]).all()
    assert found.disagreeing == (members.mean(axis=0).argmax(axis=1) != given).sum()


def test_rows_of_a_class_that_is_never_predicted_are_not_flagged():
    """The members put all of class 1 on class 0: that says that they do not know it, not that 61 labels are wrong."""
    rng = np.random.default_rng(0)
    given = np.repeat([0, 1, 2], [300, 61, 300])
    guess = np.where(given == 1, 0, given)
    guess[:20] = 2  # wrong labels in a class that the members do know
    p = 0.9 * np.eye(3)[guess] + 0.1 * rng.dirichlet(np.ones(3), len(given))
    theirs = find_label_issues(given, p, n_jobs=1)
    assert theirs[given == 1].sum() > 50, "without the guard they are"
    found = detect_errors(given, p)
    assert not found.flags[given == 1].any()
    assert found.never_predicted == (1,) and found.held_back == theirs[given == 1].sum()
    assert (found.suggested[given == 1] == 1).all()
    assert found.flags[:20].sum() > 10 and np.array_equal(found.flags[given != 1], theirs[given != 1])
    text = found.describe(["healthy", "blight", "mosaic"])
    assert "no row is predicted as blight" in text and f"({found.held_back} flags taken back)" in text
    assert detect_errors(np.zeros(6, int), np.tile([0.9, 0.1], (6, 1))).never_predicted == (), "nor has it a row"


def test_one_member_may_come_alone_as_lists():
    _, given, members = planted(n=300)
    alone, stacked = detect_errors(given.tolist(), members[0].tolist()), detect_errors(given, members[:1])
    assert np.array_equal(alone.quality, stacked.quality) and np.array_equal(alone.flags, stacked.flags)


@pytest.mark.parametrize(
    ("labels", "probs", "message"),
    [
        ([0, 1], [[0.5, 0.5]], r"expected labels \(N,\) and probabilities .*got shapes \(2,\) and \(1, 2\)"),
        ([], np.zeros((0, 2)), "expected labels"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], r"whole numbers in 0\.\.1"),
        ([0.5, 1.0], [[0.5, 0.5], [0.5, 0.5]], r"whole numbers in 0\.\.1, got 0\.5 in row 0"),
        (["a", "b"], [[0.5, 0.5], [0.5, 0.5]], r"whole numbers in 0\.\.1, got 'a' in row 0; number the classes"),
        ([0, 1], "text", "must be numbers, one row"),
        ([0, 1], [[0.5, 0.5], [2.5, -0.5]], "sum to 1"),
        ([0, 1], [[0.5, 0.5], [np.nan, 1.0]], "sum to 1"),
    ],
)
def test_what_does_not_fit_is_refused(labels, probs, message):
    with pytest.raises(UserError, match=message):
        detect_errors(labels, probs)


def test_nearest_are_the_rows_at_the_smallest_angle():
    x = np.random.default_rng(0).normal(size=(120, 6))
    centred = x - x.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    slow = np.argsort(-cosine, axis=1)[:, :5]
    assert np.array_equal(nearest(x, reach=5), slow)
    assert np.array_equal(nearest(x, reach=5, of=np.array([7, 3])), slow[[7, 3]])


def test_copies_of_an_image_are_neighbours_and_a_row_never_its_own():
    x = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 4, axis=0)
    found = nearest(x, reach=3)
    assert (found != np.arange(24)[:, None]).all()
    assert (found // 4 == (np.arange(24) // 4)[:, None]).all()
    assert nearest(x[:3] + np.eye(3), reach=9).shape == (3, 2), "no more than there are"


def test_agreement_is_the_share_of_neighbours_with_the_same_label():
    x, labels = np.random.default_rng(1).normal(size=(60, 4)), np.arange(60) % 3
    centred = x - x.mean(axis=0)
    near = NearestNeighbors(n_neighbors=6, metric="cosine").fit(centred).kneighbors(return_distance=False)
    by_hand = [sum(labels[j] == labels[i] for j in near[i]) / 6 for i in range(60)]
    assert neighbour_agreement(x, labels, k=6).tolist() == pytest.approx(by_hand)


def test_an_embedding_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="finite embedding"):
        nearest(np.full((5, 2), np.nan))
