import numpy as np
import pytest
from scipy.stats import binomtest, chi2

from cassava_kit.errors import UserError
from cassava_kit.evidence.compare import compare, correct, holm, images_needed, mcnemar, paired_interval, swap_test


def predictions(only_a, only_b, both, neither):
    """Labels (all 1) and two predictions with these counts of rows that one, both or none has right."""
    a = np.repeat([1, 0, 1, 0], [only_a, only_b, both, neither])
    b = np.repeat([0, 1, 1, 0], [only_a, only_b, both, neither])
    return np.ones(len(a), int), a, b


def test_the_interval_is_the_one_of_resampled_rows():
    _, a, b = predictions(40, 70, 800, 90)
    d = b - a
    rng = np.random.default_rng(0)
    drawn = np.quantile(d[rng.integers(0, len(d), (10_000, len(d)))].mean(axis=1), [0.025, 0.975])
    assert np.abs(np.array(paired_interval(40, 70, 1000)) - drawn).max() < 0.0015


def test_mcnemar_is_exact():
    assert mcnemar(0, 3) == pytest.approx(2 * 0.5**3)
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(5, 1) == pytest.approx(binomtest(1, 6).pvalue) == mcnemar(1, 5)
    assert mcnemar(0, 0) == mcnemar(7, 7) == 1.0
    # Large counts approach the continuity-corrected chi-square.
    assert mcnemar(400, 480) == pytest.approx(chi2.sf((80 - 1) ** 2 / 880, 1), rel=0.01)


def test_a_small_gain_is_not_proved_and_a_large_one_is():
    small = compare(*predictions(500, 526, 19_000, 1371), names=("base", "smooth"))
    assert not small.proved
    assert small.verdict().startswith("+0.0012 ± 0.00")
    assert small.verdict().endswith(": not proved")
    assert "images would prove a difference of this size" in str(small)
    large = compare(*predictions(300, 500, 19_000, 1597))
    assert large.proved
    assert large.verdict().endswith(": proved")
    assert "would prove" not in str(large)


def test_holm_by_hand():
    """The smallest of n is multiplied by n, the next by n - 1, ..., and none is smaller than the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.0001, 0.02, 0.5, 0.011]) == pytest.approx([0.0004, 0.04, 0.5, 0.033])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_among_many_comparisons_less_is_proved():
    clear, lucky = compare(*predictions(10, 60, 900, 30)), compare(*predictions(10, 24, 900, 66))
    assert clear.proved and lucky.proved and 0.01 < lucky.p_value < 0.05
    equal = compare(*predictions(20, 20, 900, 60))
    family = correct([lucky, clear, *[equal] * 8])
    assert [each.proved for each in family] == [False, True] + [False] * 8
    assert family[0].proved_alone and family[0].interval == lucky.interval and family[0].p_value == lucky.p_value
    assert family[0].adjusted_p == pytest.approx(9 * lucky.p_value)
    assert "among all comparisons" in str(family[0]) and "among all" not in str(lucky)
    assert correct([lucky])[0] == lucky, "alone it is as it was"


@pytest.mark.parametrize(("only_a", "only_b"), [(26, 33), (33, 26), (3, 9), (0, 4)])
def test_the_other_order_has_the_mirrored_interval_to_the_last_bit(only_a, only_b):
    labels, a, b = predictions(only_a, only_b, 800, 60)
    forth, back = compare(labels, a, b), compare(labels, b, a)
    assert back.interval == (-forth.interval[1], -forth.interval[0]) and back.difference == -forth.difference
    turned = forth.reverse()
    assert (turned.interval, turned.difference, turned.only_a) == (back.interval, back.difference, back.only_a)
    assert turned.names == ("B", "A") and turned.proved == forth.proved


def test_losing_is_proved_too_and_swapping_changes_the_sign_alone():
    forth, back = compare(*predictions(500, 300, 5000, 0)), compare(*predictions(300, 500, 5000, 0))
    assert forth.proved and back.proved
    assert forth.difference == -back.difference < 0
    assert forth.p_value == back.p_value


def test_four_lucky_images_prove_nothing():
    """The bootstrap alone would say yes: it never draws a loss that was not seen."""
    lucky = compare(*predictions(0, 5, 95, 0))
    assert lucky.interval[0] > 0
    assert not lucky.proved


def probabilities(labels, right):
    """Probabilities (N, 2) that rather surely say the label where `right` (N,), and the other class elsewhere."""
    p = np.full((len(labels), 2), 0.1)
    p[np.arange(len(labels)), np.where(right, labels, 1 - labels)] = 0.9
    return p


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_five_lucky_images_prove_nothing_by_any_metric(metric):
    """Both have 95 of 100 rows right alike; on the five others B alone is right."""
    labels = np.arange(100) % 2
    a, b = probabilities(labels, np.arange(100) >= 5), probabilities(labels, np.ones(100, bool))
    lucky = compare(labels, a, b, metric=metric)
    assert lucky.interval[0] > 0
    assert lucky.p_value == pytest.approx(2 * 0.5**5, abs=0.02)
    assert not lucky.proved and "not proved" in str(lucky)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 3), (4, 12), (30, 33)])
def test_the_randomisation_test_is_mcnemars_where_answers_are_counted(only_a, only_b):
    _, a, b = predictions(only_a, only_b, 60, 20)
    labels = np.arange(len(a)) % 2
    first, second = probabilities(labels, a == 1), probabilities(labels, b == 1)
    assert swap_test("accuracy", labels, first, second) == pytest.approx(mcnemar(only_a, only_b), abs=0.03)


def test_equal_predictions_are_said_to_be_equal():
    same = compare(*predictions(0, 0, 80, 20))
    assert same.interval == (0.0, 0.0) and not same.proved and same.images_needed is None
    assert "There is no difference to prove." in str(same)


def test_the_images_needed_do_prove_it_four_times_in_five():
    only_a, only_b, n = 50, 65, 1000
    needed = images_needed(only_a, only_b, n)
    rng = np.random.default_rng(0)
    share = np.array([only_a, only_b, n - only_a - only_b]) / n
    draws = rng.multinomial(needed, share, size=2000)
    d = (draws[:, 1] - draws[:, 0]) / needed
    se = np.sqrt(((draws[:, 0] + draws[:, 1]) / needed - d**2) / needed)
    assert np.mean(d - 1.96 * se > 0) == pytest.approx(0.8, abs=0.03)


def test_rows_must_be_the_same():
    with pytest.raises(UserError, match=r"B \(N, K\) of the same rows, got shapes \(3,\) and \(2, 2\); join them by"):
        compare(np.zeros(3), np.zeros(3), np.zeros(2))


@pytest.mark.parametrize(
    ("labels", "a", "b", "more", "message"),
    [
        (["x", "y"], ["x", "y"], ["x", "x"], {}, "classes of A must be whole numbers in 0..1, got 'x' in row 0"),
        (
            ["x", "y"],
            [[0.5, 0.5]] * 2,
            [0, 1],
            {},
            "labels must be whole numbers in 0..1, got 'x' in row 0; number the",
        ),
        ([0, 1], "ab", "cd", {}, "A must be numbers"),
        ([0, 1], [0, 1], [0, 1], {"metric": "log_loss"}, "log_loss needs probabilities"),
        ([0, 1], [0, 1], [0, 1], {"metric": "auc"}, "metric must be one of"),
        ([0, 1], [[0.5, 0.5]] * 2, [[0.2, 0.3, 0.5]] * 2, {}, "must have the same classes, got 2 and 3"),
        ([0, 1], [[0.5, 0.5]] * 2, [[5, 0.5]] * 2, {}, "row 0 of B must sum to 1"),
        ([], [], [], {}, "expected labels"),
    ],
)
def test_what_cannot_be_compared_is_refused(labels, a, b, more, message):
    with pytest.raises(UserError, match=message):
        compare(labels, a, b, **more)


def test_lists_floats_and_classes_are_taken():
    labels, a, b = predictions(10, 40, 900, 50)
    same = compare(labels.tolist(), a.astype(float).tolist(), np.eye(2)[b].tolist())
    assert same == compare(labels, a, b)
