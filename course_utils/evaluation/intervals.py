"""How sure a mean is: over items, over paired items, over seeds and items."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean of n items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(values: ArrayLike, seed: int = 0) -> Estimate:
    """Mean and 95 % interval over items: Wilson for yes/no, BCa bootstrap for numbers.

    values: (N,) bool or float. Raises: ValueError if there are fewer than two, or if
    all numbers are equal.
    """
    values = np.asarray(values)
    if len(values) < 2:
        raise ValueError(f"An interval needs at least 2 items, got {len(values)}.")
    if values.dtype != bool and (values == values[0]).all():
        raise ValueError(
            f"All {len(values)} numbers are {values[0]}: resampling them cannot say "
            "how sure that is. If they count yes and no, give them as bool."
        )
    if values.dtype == bool:
        count = stats.binomtest(int(values.sum()), len(values))
        interval = count.proportion_ci(method="wilson")
    else:
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=2000, rng=np.random.default_rng(seed)
        ).confidence_interval
    return Estimate(
        float(values.mean()), float(interval.low), float(interval.high), len(values)
    )


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Estimate:
    """Estimate of second minus first, two models' numbers on the same items.

    first, second: (N,) float in the same order. The bootstrap draws items, so that both
    numbers of an item stay together.
    Raises: ValueError if the two are not one number for each of the same items, or as
    `estimate` does.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(
            "A paired difference needs one number per item, of the same items from "
            f"both models; got shapes {first.shape} and {second.shape}."
        )
    return estimate(second - first, seed)


def estimate_over_seeds(table: ArrayLike) -> Estimate:
    """Mean over training seeds and items, its interval for other seeds *and* items.

    table: (S, N), one row per seed, one column per item, all seeds on the same items;
    scores of a method, or differences of two methods that share seeds.
    Returns: Estimate with n = N. The interval is Student's t around the mean; of few
    seeds it is wide, and of a share it may leave the range from 0 to 1.
    Raises: ValueError for fewer than two seeds or items, or if all numbers are equal.
    Source: two-way random effects, e.g. Searle, Casella and McCulloch 1992, *Variance
    Components*, with Satterthwaite's degrees of freedom.

    The variance of the mean has a part that only more seeds reduce, one that only more
    items reduce, and one that both do. The spread of the seeds' means holds the first
    and the third, that of the items' means the second and the third; so the third
    is counted twice and is subtracted once.
    """
    table = np.asarray(table, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        raise ValueError(
            "An interval over seeds needs a table of at least 2 seeds by 2 items, got "
            f"shape {table.shape}."
        )
    seeds, items = table.shape
    by_seed, by_item, mean = table.mean(1), table.mean(0), table.mean()
    rest = table - by_seed[:, None] - by_item[None] + mean
    parts = np.array(
        [
            by_seed.var(ddof=1) / seeds,
            by_item.var(ddof=1) / items,
            (rest**2).sum() / ((seeds - 1) * (items - 1)) / (seeds * items),
        ]
    )
    # By chance the difference can fall below one of its parts; then take that part.
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    if variance == 0:
        raise ValueError(
            f"All {table.size} numbers are {table[0, 0]}: their spread cannot say how "
            "sure that is."
        )
    freedom = np.array([seeds - 1, items - 1, (seeds - 1) * (items - 1)])
    degrees = variance**2 / (parts**2 / freedom).sum()
    half = float(stats.t.ppf(0.975, degrees) * np.sqrt(variance))
    return Estimate(float(mean), float(mean) - half, float(mean) + half, items)
