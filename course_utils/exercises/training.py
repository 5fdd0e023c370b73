"""Exercises of notebook 04: how many pairs, how many steps."""

import math
from collections.abc import Callable

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_numbers, expect, returned
from course_utils.exercises.mechanism import exercise, judge


@exercise(
    "4.1",
    solutions.pairs_needed,
    minutes=10,
    difficulty=2,
    trains="the size of an evaluation set",
    hints=(
        "Two distances must fit between `base` and `better`: z_alpha standard errors "
        "under `base`, and z_power standard errors under `better`.",
        "n = ((z_alpha * sqrt(p(1-p)) + z_power * sqrt(q(1-q))) / (q - p))^2, rounded"
        " up, with z of 0.975 (two-sided) and of 0.8 from NormalDist().inv_cdf.",
    ),
    mistakes={
        "that is one-sided: an accuracy below 0.5 would be news as well (alpha / 2)": (
            lambda p, q: solutions.pairs_needed(p, q, alpha=0.1)
        ),
        "that is without power: half of all true gains would be missed": (
            lambda p, q: solutions.pairs_needed(p, q, power=0.5)
        ),
        "round up: 193 pairs are just too few": (
            lambda p, q: solutions.pairs_needed(p, q) - 1
        ),
        "that compares two models on different pairs": lambda p, q: 388,
        "half the gain takes four times the pairs: n grows with the square of 1/gain": (
            lambda p, q: math.ceil(19.3 / (q - p))
        ),
        "that is not the number needed": lambda p, q: 10,
    },
)
def pairs_needed(attempt: Callable) -> None:
    """Pairs to tell accuracy `better` from `base`: two-sided 5 %, power 80 %."""
    got = as_number(returned(attempt, 0.5, 0.6), "pairs from 0.5 to 0.6")
    why = "round up: a number of pairs is whole"
    expect(got == int(got), why, got, 194)
    why = "that compares two models on different pairs; 0.5 is known, not measured"
    expect(not 380 <= got <= 400, why, got, 194)
    judge("4.1", attempt, [(0.5, 0.6), (0.5, 0.55)], as_number, "pairs needed")


@exercise(
    "4.2",
    solutions.furthest_move,
    minutes=10,
    difficulty=2,
    trains="how far a learning rate can carry a weight",
    hints=(
        "An optimizer step uses batch x accumulation pairs, and the last step may use"
        " fewer.",
        "steps = ceil(pairs / (batch * accumulation)). The rate falls linearly from "
        "learning_rate to 0, so its sum is about steps times half of its peak.",
    ),
    mistakes={
        "not batches": lambda n, b, a, lr: (math.ceil(n / b), lr * n / b / 2),
        "once per": lambda n, b, a, lr: (n * b * a, lr * n * b * a / 2),
        "last, smaller step": lambda n, b, a, lr: (
            n // (b * a),
            lr * (n // (b * a)) / 2,
        ),
        "falls to 0": lambda n, b, a, lr: (124, lr * 124),
        "does not add up with the batch": lambda n, b, a, lr: (124, lr * 990 / 2),
        "a pair of numbers": lambda n, b, a, lr: 124,
    },
)
def furthest_move(attempt: Callable) -> None:
    """(optimizer steps of one epoch, sum of a learning rate falling linearly to 0)"""
    got = returned(attempt, 990, 2, 4, 8e-6)
    steps, move = as_numbers(got, ("steps", "furthest move"))
    why = "an optimizer step is batch x accumulation pairs: count steps, not batches"
    expect(steps not in (495, 496), why, steps, 124)
    expect(steps <= 990, "a pair is used once per epoch, so steps < pairs", steps, 124)
    why = "990 / 8 leaves 6 pairs: they make a last, smaller step"
    expect(steps != 123, why, steps, 124)
    expect(steps == 124, "these are not the optimizer steps", steps, 124)
    expected = 8e-6 * 125 / 2
    why = "the learning rate falls to 0: on average it is half of its peak"
    expect(not math.isclose(move, 8e-6 * 124, rel_tol=0.02), why, move, expected)
    why = "Adam moves by the learning rate a step: it does not add up with the batch"
    expect(math.isclose(move, expected, rel_tol=0.02), why, move, expected)
