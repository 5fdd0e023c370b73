"""Exercises of notebook 05: seeds, and how many pairs a comparison needs."""

import math

import numpy as np
from scipy import stats

from course_utils.checks import solutions
from course_utils.checks.mechanism import exercise, expect, returned

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
    mistakes={
        "a pair of numbers": lambda scores: float(np.mean(scores)),
        "smallest and largest": lambda scores: (min(scores), max(scores)),
        "Student's t": _normal_interval,
        "n - 1": _population_interval,
        "square root": _single_run_interval,
        "not the interval": lambda scores: (0.0, 1.0),
    },
)
def seed_interval(attempt):
    """(low, high): 95 % interval of the mean of a few seeds' scores."""
    got = returned(attempt, _SEEDS)
    why = "return a pair of numbers: low, high"
    expect(isinstance(got, tuple | list) and len(got) == 2, why, got, "(low, high)")
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
    got = returned(attempt, more)
    why = "with 4 seeds it is wrong: t has n - 1 degrees of freedom"
    expect(_same(got, expected), why, got, expected)


def _needed(changed, difference, z_alpha, z_power):
    spread = z_alpha * math.sqrt(changed)
    spread += z_power * math.sqrt(changed - difference**2)
    return (spread / difference) ** 2


@exercise(
    "5.2",
    solutions.paired_pairs_needed,
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
def paired_pairs_needed(attempt):
    """Pairs for McNemar's test: two-sided 5 %, power 80 %."""
    changed, difference = 0.14, 0.05
    got = returned(attempt, changed, difference)
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
    got = returned(attempt, changed, difference / 2)
    expected = solutions.paired_pairs_needed(changed, difference / 2)
    why = "half the difference takes four times the pairs: n grows with the square"
    expect(got == expected, why, got, expected)
