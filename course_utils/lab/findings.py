"""The lab's recorded findings: read, averaged over seeds, with intervals."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from course_utils import evaluation
from course_utils.evaluation.intervals import Estimate
from course_utils.recorded import load as load_record


def recorded(name: str, record: str = "lab_findings") -> list[dict]:
    """The recorded runs of one name, one per seed.

    record: "lab_findings", "ladder" or "leave_one_out".
    Raises: KeyError that lists the names there are.
    """
    runs = load_record(record)["runs"]
    found = [run for run in runs if run["name"] == name]
    if not found:
        raise KeyError(f"{name!r}; there are {sorted({run['name'] for run in runs})}")
    return found


def effect(
    before: Sequence[dict], after: Sequence[dict], bits: Callable[[dict], str]
) -> evaluation.Estimate:
    """How much a yes/no measurement changed, with its interval over prompts.

    before, after: records of two settings, one per seed. bits: as in `over_seeds`.
    Each prompt is compared with itself, by its mean over the seeds of each setting.
    """
    first, second = (_table(runs, bits).mean(0) for runs in (before, after))
    if not (second - first).any():  # nothing to resample: at most 3 in n can differ
        at_most = evaluation.estimate(np.zeros(len(first), dtype=bool)).high
        return evaluation.Estimate(0.0, -at_most, at_most, len(first))
    return evaluation.paired_difference(first, second)


def _table(runs, bits):
    """(seeds, prompts): 0.0 or 1.0."""
    return np.array([[int(bit) for bit in bits(run)] for run in runs], dtype=float)


def over_seeds(
    runs: list[dict], bits: Callable[[dict], str]
) -> tuple[Estimate, tuple[float, float]]:
    """Mean of a yes/no measurement over seeds, with its interval over prompts.

    runs: records of one setting, one per seed. bits: function from a run to its string
    of 0 and 1, one per prompt. The interval is a bootstrap over prompts, of each
    prompt's mean over seeds: it says how sure we are for other prompts of this kind.
    Returns: (Estimate, (lowest seed, highest seed)).
    """
    table = _table(runs, bits)
    seeds = table.mean(1)
    if table.min() == table.max():  # nothing to resample: as sure as one seed can be
        value = evaluation.estimate(table[0] == 1)
    else:
        value = evaluation.estimate(table.mean(0))
    return value, (float(seeds.min()), float(seeds.max()))


def summary(names: Sequence[str], record: str = "lab_findings") -> pd.DataFrame:
    """The recorded findings as a table: one row per setting.

    Intervals: 95 % over prompts; in brackets behind them the range over seeds.
    """

    def cell(runs, bits):
        value, (low, high) = over_seeds(runs, bits)
        return f"{value} ({low:.2f}–{high:.2f})" if len(runs) > 1 else str(value)

    rows = []
    for name in names:
        runs = recorded(name, record)
        rows.append(
            {
                "method": name,
                "seeds": len(runs),
                "n": runs[0]["n"],
                "log-prob chosen": f"{np.mean([r['chosen'] for r in runs]):.3f}",
                "log-prob rejected": f"{np.mean([r['rejected'] for r in runs]):.3f}",
                "preference accuracy": cell(runs, lambda r: r["preferred"]),
                "good, sampled": cell(runs, lambda r: r["sampled"]["good_bits"]),
                "good, greedy": cell(runs, lambda r: r["greedy"]["good_bits"]),
            }
        )
    return pd.DataFrame(rows).set_index("method")
