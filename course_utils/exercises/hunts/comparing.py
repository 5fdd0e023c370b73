"""The hunt of notebook 05: a difference between methods that nobody finds again."""

from collections.abc import Callable

import numpy as np

from course_utils.exercises.feedback import STILL, as_numbers, expect, returned
from course_utils.exercises.hunts import recipes, repairs
from course_utils.exercises.mechanism import exercise

_SEEDS, _PROMPTS = 3, 300


def trained_twice(gain: float = 0.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Two methods' answers, good (1) or not (0): (3 seeds, 300 prompts) each.

    gain: by how much the second method is better, on a scale where 1 is about a fifth
    of the prompts. With 0 both arrays come from the same method.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0, 1.2, _PROMPTS)
    arrays = []
    for method in (0.0, gain):
        luck = rng.normal(0, 0.35, (_SEEDS, 1))  # what a seed makes of a training
        good = 1 / (1 + np.exp(difficulty - method - luck))
        arrays.append((rng.random(good.shape) < good).astype(float))
    return arrays[0], arrays[1]


def _interval(change, half):
    return change.mean(), change.mean() - half, change.mean() + half


def _prompts_only(first, second):
    change = (second - first).mean(axis=0)
    return _interval(change, 1.96 * change.std(ddof=1) / len(change) ** 0.5)


def _all_as_one(first, second):
    change = (second - first).ravel()
    return _interval(change, 1.96 * change.std(ddof=1) / len(change) ** 0.5)


def _chosen_on_half(first, second):
    half = first.shape[1] // 2
    best = [
        each[each[:, :half].mean(axis=1).argmax(), half:] for each in (first, second)
    ]
    change = best[1] - best[0]
    return _interval(change, 1.96 * change.std(ddof=1) / len(change) ** 0.5)


def _first_seed(first, second):
    return recipes.compare_methods(first[:1], second[:1])


@exercise(
    "5.5",
    repairs.compare_methods,
    recipe=recipes.compare_methods,
    material=trained_twice,
    minutes=20,
    difficulty=3,
    trains="comparing two methods over seeds",
    hints=(
        "Test the recipe where you know the truth: give it two arrays of the same "
        "method (the material, seeds 1 to 50). How often does its interval hold 0?",
        "The claim is about a method, so every training counts, not the best. Take one "
        "mean difference per seed; the interval of their mean uses Student's t with "
        "seeds - 1 degrees of freedom (section 5, exercise 5.1).",
    ),
    mistakes={
        "symptom is still there": lambda a, b: recipes.compare_methods(a, b),
        "not other seeds": _prompts_only,
        "other prompts, and": _all_as_one,
        "of one training": _chosen_on_half,
        "one seed": _first_seed,
        "says nothing": lambda a, b: (*repairs.compare_methods(a, b)[:1], -1.0, 1.0),
        "the other way round": lambda a, b: repairs.compare_methods(b, a),
        "difference, low, high": lambda a, b: (b - a).mean(),
    },
)
def hunt_not_found_again(attempt: Callable) -> None:
    """(difference, low, high) of two methods, which holds for other seeds."""
    names = ("difference", "low", "high")
    null = [trained_twice(seed=seed) for seed in range(100, 160)]
    real = [trained_twice(gain=2.0, seed=seed) for seed in range(200, 220)]
    got = [as_numbers(returned(attempt, *each), names) for each in null]
    found = [as_numbers(returned(attempt, *each), names) for each in real]
    ordered = all(low <= value <= high for value, low, high in [*got, *found])
    expect(
        ordered, "low, difference and high are not in order", got[0], "low ≤ … ≤ high"
    )
    why = "the sign is the other way round: `second` minus `first`"
    gains = [value for value, _, _ in found]
    expect(np.mean(gains) > 0, why, f"{np.mean(gains):+.2f}", "about +0.3")

    def holds(results, truth=0.0):
        return sum(low <= truth <= high for _, low, high in results)

    shown = f"{holds(got)} of {len(got)} intervals hold the truth, 0"
    goal = "about 57 of 60"
    same = np.allclose(got, [recipes.compare_methods(*each) for each in null])
    why = f"{STILL}: two runs of one and the same method differ too often"
    expect(not same, why, shown, goal)
    once = np.allclose(got[0][0], [_first_seed(*null[0])[0]])
    why = "one seed tells nothing of how much seeds differ"
    expect(not once, why, shown, goal)
    every = [(second - first).mean() for first, second in null]
    uses_all = np.allclose([value for value, _, _ in got], every, atol=0.01)
    why = "this is the difference of one training each; the claim is about the method"
    expect(uses_all or holds(got) >= 52, why, shown, goal)
    why = "the interval covers other prompts, and not other seeds"
    expect(holds(got) >= 52, why, shown, goal)
    detected = sum(low > 0 for _, low, _ in found)
    why = "so wide an interval says nothing: a large gain is never found"
    expect(detected >= 10, why, f"{detected} of {len(found)} found", "10 or more")
