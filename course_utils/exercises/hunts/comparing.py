"""The hunts of notebook 05: a gain nobody finds again, an adapter that does nothing."""

from collections.abc import Callable

import numpy as np
import torch

from course_utils.exercises.feedback import (
    STILL,
    as_numbers,
    as_tensor,
    expect,
    returned,
)
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


def young_adapter(seed: int = 1, size: float = 1.0) -> tuple:
    """(x, weight, lora_a, lora_b, scale) of a layer, early in its training.

    size: how much of the layer's output is the adapter's; 1 as after a few steps.
    """
    draw = torch.Generator().manual_seed(seed)
    shapes = {"x": (300, 512), "weight": (400, 512), "a": (8, 512), "b": (400, 8)}
    x, weight, a, b = (torch.randn(s, generator=draw) for s in shapes.values())
    parts = (x, weight, a, b * 2.5e-5 * size)
    return *(part.bfloat16() for part in parts), 2.0


def _products(layer):
    """W x and scale · B A x in float64."""
    x, weight, a, b, scale = (
        part.double() if isinstance(part, torch.Tensor) else part for part in layer
    )
    return x @ weight.T, scale * (x @ a.T) @ b.T


def _rounded_merge(x, weight, a, b, scale):
    update = scale * b.float() @ a.float()
    return x @ (weight.float() + update).to(x.dtype).T


def _cast_too_late(x, weight, a, b, scale):
    small = scale * (x.float() @ a.float().T) @ b.float().T
    return ((x @ weight.T).float() + small).to(x.dtype)


def _scaled_up(x, weight, a, b, scale):
    return repairs.adapted(x, weight, a, b, 20 * scale)


@exercise(
    "5.6",
    repairs.adapted,
    recipe=recipes.adapted,
    material=young_adapter,
    minutes=20,
    difficulty=3,
    trains="evaluating an adapter in 16 bit",
    hints=(
        "Run the recipe on the material as it is, and on the same tensors in float32. "
        "How many outputs does the adapter move in each? How large is what it adds, "
        "and how far is an output from the next number that bfloat16 has?",
        "`x @ weight.T` is rounded to bfloat16 before anything is added. Add both "
        "products in float32 (or make them one product), and round the sum once.",
    ),
    mistakes={
        "symptom is still there": lambda *layer: recipes.adapted(*layer),
        "rounded already": _cast_too_late,
        "grid of the weights": _rounded_merge,
        "next layer": lambda *layer: repairs.adapted(*layer).float(),
        "is not in the output": lambda x, weight, *adapter: x @ weight.T,
        "another function": _scaled_up,
        "the shape is wrong": lambda *layer: repairs.adapted(*layer).T,
    },
)
def hunt_learned_nothing(attempt: Callable) -> None:
    """W x + scale · B A x in bfloat16, of which a small adapter's part is left."""
    layer, middle, large = (young_adapter(2, size) for size in (1.0, 30.0, 20_000.0))
    outputs = []
    for *tensors, scale in (layer, middle, large):
        got = returned(attempt, *(part.clone() for part in tensors), scale)
        outputs.append(as_tensor(got, (300, 400), "the layer's output (n, out)"))
    got, got_middle, got_large = outputs
    why = "the next layer reads bfloat16: rounded there, the adapter is lost again"
    expect(got.dtype == torch.bfloat16, why, got.dtype, torch.bfloat16)
    alone, change = _products(layer)

    def arrived(output):
        share = ((output.double() - alone) * change).sum() / change.square().sum()
        return float(share)

    shown = f"{arrived(got):.2f} of what the adapter says arrives"
    goal = "about 1.00 of it"
    why = f"{STILL}: by its own output the layer has hardly learned anything"
    expect(not torch.equal(got, recipes.adapted(*layer)), why, shown, goal)
    alone_large, change_large = _products(large)
    apart = (got_large.double() - alone_large - change_large).norm()
    why = "the adapter is not in the output, however large it is"
    size = change_large.norm()
    expect(apart < 0.9 * size or apart > 1.1 * size, why, shown, goal)
    why = "this is another function than W x + scale · B A x"
    expect(apart < 0.02 * size, why, f"{apart / size:.0%} off", "rounding alone")
    why = "the update is rounded to the grid of the weights, which is as coarse"
    merged = _rounded_merge(*middle)
    expect(not torch.equal(got_middle, merged), why, shown, goal)
    why = "W x is rounded already when the adapter is added; a cast brings nothing back"
    expect(arrived(got) > 0.7, why, shown, goal)
    expect(arrived(got) < 1.3, "more arrives than the adapter says", shown, goal)
