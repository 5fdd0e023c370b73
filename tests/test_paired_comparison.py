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
