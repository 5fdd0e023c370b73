"""The lab's recorded findings: read, averaged over seeds, with intervals.

Knows: the record `lab_findings`. Does not know: how a run is made (`runs`).

The sweep was recorded before the mix left pairs out that a test asks: 19 of the 420
held-out prompts were also trained on. Without these no share moves by 0.02 (tested).
"""

import numpy as np
import pandas as pd

from course_utils import evaluation
from course_utils.recorded import load as load_record


def recorded(name):
    """The recorded runs of one name, one a seed. Raises: KeyError listing the names."""
    runs = load_record("lab_findings")["runs"]
    found = [run for run in runs if run["name"] == name]
    if not found:
        raise KeyError(f"{name!r}; there are {sorted({run['name'] for run in runs})}")
    return found


def over_seeds(runs, bits):
    """Mean of a yes/no measurement over seeds, with its interval over prompts.

    runs: records of one setting, one a seed. bits: function from a run to its string of
    0 and 1, one a prompt. The interval is a bootstrap over prompts of each prompt's
    mean over seeds, so it says how sure we are for other prompts of this kind.
    Returns: (Estimate, (lowest seed, highest seed)).
    """
    table = np.array([[int(bit) for bit in bits(run)] for run in runs], dtype=float)
    seeds = table.mean(1)
    if table.min() == table.max():  # nothing to resample: as sure as one seed can be
        value = evaluation.estimate(table[0] == 1)
    else:
        value = evaluation.estimate(table.mean(0))
    return value, (float(seeds.min()), float(seeds.max()))


def summary(names):
    """The recorded findings as a table: one row a setting.

    Intervals: 95 % over prompts; in brackets behind them the range over seeds.
    """

    def cell(runs, bits):
        value, (low, high) = over_seeds(runs, bits)
        return f"{value} ({low:.2f}–{high:.2f})" if len(runs) > 1 else str(value)

    rows = []
    for name in names:
        runs = recorded(name)
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
