"""Exercises of notebook 05: seeds, pairs that a comparison needs, benchmark scores."""

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_numbers, expect, returned
from course_utils.exercises.mechanism import exercise

_SEEDS = [0.26, 0.21, 0.60]


def _around(scores, half):
    return float(np.mean(scores) - half), float(np.mean(scores) + half)


def _error(scores, ddof=1):
    return np.std(scores, ddof=ddof) / math.sqrt(len(scores))


def _normal_interval(scores):
    return _around(scores, 1.96 * _error(scores))


def _population_interval(scores):
    return _around(scores, stats.t.ppf(0.975, len(scores) - 1) * _error(scores, 0))


def _single_run_interval(scores):
    spread = np.std(scores, ddof=1)
    return _around(scores, stats.t.ppf(0.975, len(scores) - 1) * spread)


def _same(got, expected):
    return np.allclose(got, expected, atol=2e-3)


@exercise(
    "5.1",
    solutions.seed_interval,
    minutes=10,
    difficulty=1,
    trains="few seeds: Student's t",
    hints=(
        "The interval is the mean plus and minus a factor times the standard error of"
        " the mean.",
        "Standard error: the standard deviation with n - 1, divided by the root of n "
        "(stats.sem). Factor: stats.t.ppf(0.975, n - 1).",
    ),
    mistakes={
        "a pair of numbers": lambda scores: float(np.mean(scores)),
        "smallest and largest": lambda scores: (min(scores), max(scores)),
        "Student's t": _normal_interval,
        "n - 1": _population_interval,
        "square root": _single_run_interval,
        "not the interval": lambda scores: (0.0, 1.0),
    },
)
def seed_interval(attempt: Callable) -> None:
    """(low, high): 95 % interval of the mean of a few seeds' scores."""
    got = as_numbers(returned(attempt, _SEEDS), ("low", "high"))
    expected = solutions.seed_interval(_SEEDS)
    why = "smallest and largest seed are a range: a fourth seed may well lie outside"
    expect(not _same(got, (min(_SEEDS), max(_SEEDS))), why, got, expected)
    why = (
        "1.96 needs a known spread; estimated from 3 seeds it takes Student's t (4.30)"
    )
    expect(not _same(got, _normal_interval(_SEEDS)), why, got, expected)
    why = (
        "the spread is estimated around the sample's own mean: divide by n - 1 (ddof=1)"
    )
    expect(not _same(got, _population_interval(_SEEDS)), why, got, expected)
    why = "that is for one more run; the mean of n is surer by the square root of n"
    expect(not _same(got, _single_run_interval(_SEEDS)), why, got, expected)
    expect(_same(got, expected), "this is not the interval", got, expected)
    more = [0.90, 0.93, 0.92, 0.85]
    expected = solutions.seed_interval(more)
    got = as_numbers(returned(attempt, more), ("low", "high"))
    why = "with 4 seeds it is wrong: t has n - 1 degrees of freedom"
    expect(_same(got, expected), why, got, expected)


def _needed(changed, difference, z_alpha, z_power):
    spread = z_alpha * math.sqrt(changed)
    spread += z_power * math.sqrt(changed - difference**2)
    return (spread / difference) ** 2


@exercise(
    "5.2",
    solutions.paired_pairs_needed,
    minutes=15,
    difficulty=2,
    trains="the size of a paired comparison",
    hints=(
        "Each pair changes by +1, -1 or 0. What is the variance of that change if "
        "neither model is better? And if one is?",
        "Variances: `changed`, and `changed - difference ** 2`. Then as in exercise "
        "4.1: n = ((z_alpha * sqrt(first) + z_power * sqrt(second)) / difference)^2, "
        "rounded up.",
    ),
    mistakes={
        "one-sided": lambda c, d: math.ceil(_needed(c, d, 1.6449, 0.8416)),
        "without power": lambda c, d: math.ceil(_needed(c, d, 1.96, 0)),
        "round up": lambda c, d: math.floor(_needed(c, d, 1.96, 0.8416)),
        "as if every pair changed": lambda c, d: math.ceil(
            _needed(1.0, d, 1.96, 0.8416)
        ),
        "grows with the square": lambda c, d: 438 if d == 0.05 else 876,
        "pairs needed": lambda c, d: 10,
    },
)
def paired_pairs_needed(attempt: Callable) -> None:
    """Pairs for McNemar's test: two-sided 5 %, power 80 %."""
    changed, difference = 0.14, 0.05
    got = as_number(returned(attempt, changed, difference), "pairs")
    expected = solutions.paired_pairs_needed(changed, difference)
    one_sided = math.ceil(_needed(changed, difference, 1.6449, 0.8416))
    why = "that is one-sided: the second model might be worse as well (alpha / 2)"
    expect(got != one_sided, why, got, expected)
    powerless = math.ceil(_needed(changed, difference, 1.96, 0))
    why = "that is without power: half of all true differences would be missed"
    expect(got != powerless, why, got, expected)
    expect(got != expected - 1, "round up: one pair is missing", got, expected)
    why = "that is as if every pair changed: only the share `changed` adds noise"
    ignoring = math.ceil(_needed(1.0, difference, 1.96, 0.8416))
    expect(abs(got - ignoring) > 5, why, got, expected)
    why = "these are not the pairs needed"
    expect(got == expected, why, got, expected)
    got = as_number(returned(attempt, changed, difference / 2), "pairs")
    expected = solutions.paired_pairs_needed(changed, difference / 2)
    why = "half the difference takes four times the pairs: n grows with the square"
    expect(got == expected, why, got, expected)


# Log-likelihoods, choices, index of the right one: short and long choices in turn.
_ITEMS = (
    ((-4.0, -9.0), ("No.", "It is the heron."), 1),
    ((-4.0, -9.0), ("No.", "It is the heron."), 0),
    ((-20.0, -11.0), ("a b c d e f g h", "Marsenmo-on-Derbri"), 1),
    ((-20.0, -11.0), ("a b c d e f g h", "Marsenmo-on-Derbri"), 0),
    ((-5.0, -6.0), ("Sure, it is the heron.", "No."), 0),
)


def _right(score):
    """Per item 1 or 0, for one way of scoring a choice."""

    def one(loglikelihoods, choices, gold):
        scores = [score(*each) for each in zip(loglikelihoods, choices, strict=True)]
        return int(scores.index(max(scores)) == gold)

    return one


def _all_items(way):
    return [way(*item) for item in _ITEMS]


@exercise(
    "5.3",
    solutions.acc_norm,
    minutes=10,
    difficulty=1,
    trains="how a benchmark picks an answer",
    hints=(
        "Turn each choice into one score, then ask where the best score stands.",
        "Score: log-likelihood divided by len(text). Compare the index of the largest"
        " score with gold, and return an int.",
    ),
    mistakes={
        "that is acc": _right(lambda ll, text: ll),
        "number of words": _right(lambda ll, text: ll / len(text.split())),
        "divide": _right(lambda ll, text: ll * len(text)),
        "worst": lambda lls, choices, gold: 1 - solutions.acc_norm(lls, choices, gold),
        "return one number": lambda lls, choices, gold: "right",
        "1 or 0": lambda lls, choices, gold: 0.5,
        "wrong on these": lambda lls, choices, gold: 1,
    },
)
def acc_norm(attempt: Callable) -> None:
    """lm-eval's acc_norm of one item: 1 or 0."""
    what = "1 if the best choice by length has the index `gold`, else 0"
    got = [as_number(returned(attempt, *item), what) for item in _ITEMS]
    expected = _all_items(solutions.acc_norm)
    why = "return 1 or 0: does the best choice by length have the index `gold`?"
    expect(all(value in (0, 1) for value in got), why, got, expected)
    why = "that is acc: by the sum alone, a short choice beats a long one"
    expect(got != _all_items(_right(lambda ll, text: ll)), why, got, expected)
    why = "it is the number of characters that counts here, not the number of words"
    by_words = _right(lambda ll, text: ll / len(text.split()))
    expect(got != _all_items(by_words), why, got, expected)
    why = "divide by the length: multiplied, long choices lose even more"
    multiplied = _right(lambda ll, text: ll * len(text))
    expect(got != _all_items(multiplied), why, got, expected)
    why = "that takes the worst choice: of negative numbers the one nearest 0 is best"
    expect(got != [1 - value for value in expected], why, got, expected)
    expect(got == expected, "wrong on these items", got, expected)


_SUITE = {
    "TruthfulQA": {"mc2": [0.9, 0.5]},
    "Bigbench": {"navigate": [0, 0, 0, 1], "snarks": [1, 0], "ruin_names": [0] * 6},
}


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


def _rows(groups):
    return [row for rows in groups.values() for row in rows.values()]


@exercise(
    "5.4",
    solutions.suite_average,
    minutes=10,
    difficulty=2,
    trains="what an average of averages weighs",
    hints=(
        "Count the levels: items, rows, groups. Each level has a mean of its own.",
        "Mean of a row's items, then mean of a group's rows, then mean of the groups.",
    ),
    mistakes={
        "every row the same weight": lambda g: _mean(map(_mean, _rows(g))),
        "every item the same weight": lambda g: _mean(v for r in _rows(g) for v in r),
        "within its group": lambda g: _mean(
            _mean(v for row in rows.values() for v in row) for rows in g.values()
        ),
        "not the average": lambda g: 0.3,
    },
)
def suite_average(attempt: Callable) -> None:
    """The one number of the Nous suite: mean of groups of means of rows."""
    got = as_number(returned(attempt, _SUITE), "the suite's average")
    expected = solutions.suite_average(_SUITE)

    def far(value):
        return abs(got - value) > 1e-6

    why = "that gives every row the same weight: a large group then counts for more"
    expect(far(_mean(map(_mean, _rows(_SUITE)))), why, got, expected)
    why = "that gives every item the same weight: a long task then counts for more"
    every = [value for row in _rows(_SUITE) for value in row]
    expect(far(_mean(every)), why, got, expected)
    why = "within its group every row weighs the same, however many items it has"
    pooled = (
        _mean(value for row in rows.values() for value in row)
        for rows in _SUITE.values()
    )
    expect(far(_mean(pooled)), why, got, expected)
    expect(not far(expected), "this is not the average", got, expected)
