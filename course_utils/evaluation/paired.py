"""Two models on the same items, each right or wrong: which is better?

McNemar's exact test is the sign test on the items that changed, so scipy's binomial
test computes it; statsmodels' `mcnemar(exact=True)` gives the same p-value.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from course_utils.evaluation.intervals import Estimate, estimate


@dataclass(frozen=True)
class Comparison:
    """Two models on the same n items, each right or wrong on each item.

    difference: Estimate of second minus first. gained, lost: items that the second, or
    the first, alone got right. p_value: McNemar's exact test, two-sided.
    """

    difference: Estimate
    gained: int
    lost: int
    p_value: float

    def __str__(self) -> str:
        d, counts = self.difference, f"{self.gained} gained and {self.lost} lost"
        interval = f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        return f"{interval}, {counts} of {d.n}, p = {self.p_value:.2g}"


def compare_paired(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Comparison:
    """Comparison of two models; its bootstrap keeps an item's two answers together.

    first, second: (N,) yes/no in the same order of items.
    Raises: ValueError if the two are not yes/no of equally many items, at least 2.
    """
    first, second = np.asarray(first), np.asarray(second)
    alike = first.shape == second.shape and first.ndim == 1
    if not alike or not np.isin([first, second], (0, 1)).all():
        raise ValueError(
            "A paired comparison needs yes or no of the same items from both models, "
            f"in bool or 0 and 1; got shapes {first.shape} and {second.shape}."
        )
    change = second.astype(float) - first.astype(float)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if gained + lost == 0:  # nothing to resample, but a share may differ elsewhere
        possible = estimate(change != 0).high
        return Comparison(Estimate(0.0, -possible, possible, len(change)), 0, 0, 1.0)
    if len(change) in (gained, lost):  # nothing to resample here either
        share, sign = estimate(change != 0), float(change[0])
        ends = sorted((sign * share.low, sign * share.high))
        difference = Estimate(sign, *ends, len(change))
    else:
        difference = estimate(change, seed)
    # Only items on which they differ count: each is a coin toss if neither is better.
    p_value = float(stats.binomtest(gained, gained + lost).pvalue)
    return Comparison(difference, gained, lost, p_value)


def detectable_difference(
    n: int, changed: float, power: float = 0.8, alpha: float = 0.05
) -> float:
    """The smallest true difference that a paired comparison finds with this power.

    n: items. changed: share of them on which the two models will differ, 0 to 1; take
    it from a pilot. Returns: a difference of shares, 0 to `changed`, or nan where even
    a difference as large as `changed` would be missed too often.
    Raises: ValueError for a share outside 0 to 1, or fewer than 2 items.
    Source: Connor 1987, Biometrics 43(1):207-211 (normal approximation of McNemar's
    test, two-sided); the exact test is a little more cautious.
    """
    if not (0 < changed <= 1 and 0 < power < 1 and 0 < alpha < 1 and n >= 2):
        raise ValueError(
            "detectable_difference needs n of at least 2 and changed, power and alpha "
            f"between 0 and 1; got n={n}, changed={changed}, power={power}, "
            f"alpha={alpha}."
        )
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    # n * d² = (z_alpha √c + z_power √(c - d²))², and with s = √(c - d²) this is a
    # quadratic equation in s: (z_power² + n) s² + 2 z_alpha z_power √c s + … = 0.
    a = z_power**2 + n
    b = 2 * z_alpha * z_power * math.sqrt(changed)
    c = changed * (z_alpha**2 - n)
    root = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    # More than all of them cannot change for the better.
    possible = root >= 0 and changed - root**2 <= changed**2
    return math.sqrt(changed - root**2) if possible else math.nan
