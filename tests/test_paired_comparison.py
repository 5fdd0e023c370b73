import math

import numpy as np
import pytest
from scipy import stats

from course_utils import evaluation


def answers(both, gained, lost, neither):
    """Two models' right and wrong answers, from the four counts."""
    first = [1] * both + [0] * gained + [1] * lost + [0] * neither
    second = [1] * both + [1] * gained + [0] * lost + [0] * neither
    return np.array(first, dtype=bool), np.array(second, dtype=bool)


def test_counts_difference_and_exact_p_value():
    found = evaluation.compare_paired(*answers(both=60, gained=9, lost=1, neither=30))
    assert (found.gained, found.lost, found.difference.n) == (9, 1, 100)
    assert found.difference.value == pytest.approx(0.08)
    # Ten coin tosses, nine or more alike on either side: 2 * (10 + 1) / 2**10.
    assert found.p_value == pytest.approx(22 / 1024)
    assert 0 < found.difference.low < 0.08 < found.difference.high < 0.2


def test_only_items_that_differ_decide():
    few = evaluation.compare_paired(*answers(10, 9, 1, 10))
    many = evaluation.compare_paired(*answers(1000, 9, 1, 1000))
    assert few.p_value == many.p_value


def test_order_of_the_models_turns_the_sign_only():
    first, second = answers(50, 14, 5, 31)
    there = evaluation.compare_paired(first, second)
    back = evaluation.compare_paired(second, first)
    assert there.difference.value == -back.difference.value
    assert (there.gained, there.lost) == (back.lost, back.gained)
    assert there.p_value == back.p_value


def test_interval_is_narrower_than_unpaired_where_items_are_shared():
    first, second = answers(60, 9, 3, 28)
    paired = evaluation.compare_paired(first, second).difference
    shuffled = np.random.default_rng(0).permutation(second)
    unpaired = evaluation.compare_paired(first, shuffled).difference
    assert paired.value == unpaired.value
    assert paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


@pytest.mark.parametrize("true_difference", [0.0, 0.15])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(true_difference):
    rng = np.random.default_rng(1)
    covered, runs = 0, 150
    for _ in range(runs):
        first = rng.random(120) < 0.5
        # Half of the answers carry over, the rest are drawn again: correlated models.
        redrawn = rng.random(120) < 0.5 + 2 * true_difference
        second = np.where(rng.random(120) < 0.5, first, redrawn)
        difference = evaluation.compare_paired(first, second).difference
        covered += difference.low <= true_difference <= difference.high
    # 150 intervals of 95 %: fewer than 133 would come by chance once in 1,000.
    assert covered >= stats.binom.ppf(0.001, runs, 0.95)


def test_equal_models_may_still_differ_elsewhere():
    first = np.arange(60) % 2 == 0
    found = evaluation.compare_paired(first, first)
    assert found.difference.value == 0 and found.p_value == 1
    assert found.difference.low == -found.difference.high
    assert found.difference.high == pytest.approx(0.06, abs=0.005)  # Wilson of 0 in 60


@pytest.mark.parametrize("sign", [1, -1])
def test_all_items_changed_the_same_way(sign):
    wrong, right = np.zeros(20, dtype=bool), np.ones(20, dtype=bool)
    found = evaluation.compare_paired(*(wrong, right)[::sign])
    assert found.difference.value == sign
    assert found.difference.low < found.difference.high
    assert found.difference.low * found.difference.high > 0


def test_it_prints_what_a_reader_needs():
    text = str(evaluation.compare_paired(*answers(60, 9, 1, 30)))
    assert text.startswith("+0.080 [+0.0")
    assert text.endswith("9 gained and 1 lost of 100, p = 0.021")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([1, 0, 1], [1, 0], "same items"),
        ([1], [0], "at least 2"),
        ([[1, 0]], [[1, 0]], "same items"),
        ([0.5, 1.0], [0, 1], "yes or no"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, words):
    with pytest.raises(ValueError, match=words):
        evaluation.compare_paired(first, second)


# --- numbers instead of yes and no --------------------------------------------------


def test_numbers_keep_their_items_together():
    rng = np.random.default_rng(0)
    item = rng.normal(0, 3, 300)
    first, second = item + rng.normal(0, 0.2, 300), item + 0.1 + rng.normal(0, 0.2, 300)
    found = evaluation.paired_difference(first, second)
    expected = stats.ttest_rel(second, first).confidence_interval()
    assert found.value == pytest.approx((second - first).mean())
    assert (found.low, found.high) == pytest.approx(expected, abs=0.005)
    unpaired = stats.ttest_ind(second, first).confidence_interval()
    assert found.high - found.low < 0.2 * (unpaired.high - unpaired.low)


def test_numbers_of_other_items_are_refused():
    with pytest.raises(ValueError, match=r"same items.*\(3,\) and \(2,\)"):
        evaluation.paired_difference([1, 2, 3], [1, 2])


# --- what could be found ------------------------------------------------------------


def power(n, changed, difference, runs=4000):
    """How often McNemar's exact test finds a true difference."""
    rng = np.random.default_rng(0)
    shares = [(changed + difference) / 2, (changed - difference) / 2, 1 - changed]
    gained, lost, _ = rng.multinomial(n, shares, runs).T
    p_values = 2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    return (p_values < 0.05).mean()


@pytest.mark.parametrize(("n", "changed"), [(210, 0.3), (420, 0.14), (420, 0.5)])
@pytest.mark.parametrize("wanted", [0.8, 0.9])
def test_the_detectable_difference_is_found_as_often_as_asked(n, changed, wanted):
    difference = evaluation.detectable_difference(n, changed, power=wanted)
    # The exact test is a little more cautious than the normal approximation.
    assert wanted - 0.07 < power(n, changed, difference) < wanted + 0.02
    assert power(n, changed, 0.7 * difference) < wanted - 0.15


def test_more_items_or_fewer_changes_detect_less():
    found = evaluation.detectable_difference
    assert found(840, 0.2) < found(420, 0.2) < found(420, 0.3)
    # About as the square root: four times the items, half the difference.
    assert found(4 * 420, 0.2) == pytest.approx(found(420, 0.2) / 2, rel=0.02)


def test_too_few_items_detect_nothing():
    assert math.isnan(evaluation.detectable_difference(10, 0.2))
    assert power(10, 0.2, 0.2) < 0.8  # not even if every change were a gain


@pytest.mark.parametrize("changes", [{"changed": 0}, {"changed": 1.2}, {"n": 1}])
def test_impossible_questions_are_refused(changes):
    with pytest.raises(ValueError, match="detectable_difference needs"):
        evaluation.detectable_difference(**{"n": 100, "changed": 0.2} | changes)
