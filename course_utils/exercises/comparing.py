"""Exercises of notebook 05: seeds, pairs that a comparison needs, benchmark scores."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_numbers
from course_utils.exercises.mechanism import exercise, judge

_SEEDS = [0.26, 0.21, 0.60]


def _around(scores, half):
    return float(np.mean(scores) - half), float(np.mean(scores) + half)


def _t(scores):
    return stats.t.ppf(0.975, len(scores) - 1)


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
        "return a pair of numbers: low, high": lambda scores: float(np.mean(scores)),
        "smallest and largest seed are a range: a fourth seed may well lie outside": (
            lambda scores: (min(scores), max(scores))
        ),
        "1.96 needs a known spread; one from so few seeds takes Student's t": (
            lambda scores: _around(scores, 1.96 * stats.sem(scores))
        ),
        "t has n - 1 degrees of freedom: 4.30 is right for 3 seeds only": (
            lambda scores: _around(scores, _t(_SEEDS) * stats.sem(scores))
        ),
        "the spread is around the sample's own mean: divide by n - 1 (ddof=1)": (
            lambda scores: _around(scores, _t(scores) * stats.sem(scores, ddof=0))
        ),
        "that is for one more run; the mean of n is surer by the square root of n": (
            lambda scores: _around(scores, _t(scores) * np.std(scores, ddof=1))
        ),
        "this is not the interval": lambda scores: (0.0, 1.0),
    },
)
def seed_interval(attempt: Callable) -> None:
    """(low, high): 95 % interval of the mean of a few seeds' scores."""
    cases = [(_SEEDS,), ([0.90, 0.93, 0.92, 0.85],)]
    judge("5.1", attempt, cases, as_numbers, ("low", "high"), tolerance=2e-3)


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
        "that is one-sided: the second model might be worse as well (alpha / 2)": (
            lambda c, d: solutions.paired_pairs_needed(c, d, alpha=0.1)
        ),
        "that is without power: half of all true differences would be missed": (
            lambda c, d: solutions.paired_pairs_needed(c, d, power=0.5)
        ),
        "round up: one pair is missing": (
            lambda c, d: solutions.paired_pairs_needed(c, d) - 1
        ),
        "that is as if every pair changed: only the share `changed` adds noise": (
            lambda c, d: solutions.paired_pairs_needed(1.0, d)
        ),
        "half the difference takes four times the pairs: n grows with the square": (
            lambda c, d: 438 if d == 0.05 else 876
        ),
        "these are not the pairs needed": lambda c, d: 10,
    },
)
def paired_pairs_needed(attempt: Callable) -> None:
    """Pairs for McNemar's test: two-sided 5 %, power 80 %."""
    judge("5.2", attempt, [(0.14, 0.05), (0.14, 0.025)], as_number, "pairs")


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
        "that is acc: by the sum alone, a short choice beats a long one": (
            _right(lambda ll, text: ll)
        ),
        "it is the number of characters that counts here, not the number of words": (
            _right(lambda ll, text: ll / len(text.split()))
        ),
        "divide by the length: multiplied, long choices lose even more": (
            _right(lambda ll, text: ll * len(text))
        ),
        "that takes the worst choice: of negative numbers the one nearest 0 is best": (
            lambda lls, choices, gold: 1 - solutions.acc_norm(lls, choices, gold)
        ),
        "return one number": lambda lls, choices, gold: "right",
        "wrong on these items; return 1 or 0": lambda lls, choices, gold: 1,
    },
)
def acc_norm(attempt: Callable) -> None:
    """lm-eval's acc_norm of one item: 1 or 0."""
    what = "1 if the best choice by length has the index `gold`, else 0"
    judge("5.3", attempt, _ITEMS, as_number, what)


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
        "that gives every row the same weight: a large group then counts for more": (
            lambda g: _mean(map(_mean, _rows(g)))
        ),
        "that gives every item the same weight: a long task then counts for more": (
            lambda g: _mean(v for row in _rows(g) for v in row)
        ),
        "within its group every row weighs the same, however many items it has": (
            lambda g: _mean(
                _mean(v for row in rows.values() for v in row) for rows in g.values()
            )
        ),
        "this is not the average": lambda g: 0.3,
    },
)
def suite_average(attempt: Callable) -> None:
    """The one number of the Nous suite: mean of groups of means of rows."""
    judge("5.4", attempt, [(_SUITE,)], as_number, "the suite's average")
