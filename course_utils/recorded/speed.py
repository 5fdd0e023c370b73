"""Tables that notebook 07 shows of the records of speed, precision and scaling.

Each works for whatever arms, seeds and numbers of GPUs a record holds.
"""

import statistics

import pandas as pd

NOT_THERE = "–"


def interval(value: dict, digits: int = 0) -> str:
    """A median, with its 95 % interval where there were laps enough for one."""
    text = f"{value['median']:.{digits}f}"
    if value["low"] is None:
        return text
    return f"{text} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def arms(shown: dict[str, tuple[dict, str]]) -> pd.DataFrame:
    """One row per trainer. shown: {label: (record, its name of the arm)}."""
    rows = {}
    for label, (record, arm) in shown.items():
        row = record["arms"][arm]
        share = row.get("share_of_floor")
        rows[label] = {
            "s per 1,000 pairs": interval(row["seconds_per_1000_pairs"]),
            "of the floor": f"{share['median']:.0%}" if share else NOT_THERE,
            "peak GiB": round(row["peak_gib"], 1),
            "timed pairs": sum(lap["pairs"] for lap in record["rounds"][arm]),
        }
    return pd.DataFrame(rows).T


def times_as_fast(record: dict, arm: str, than: str) -> str:
    """Of each lap, whose pairs are the same: the median ratio, lowest and highest."""
    laps = zip(record["rounds"][arm], record["rounds"][than], strict=True)
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in laps]
    middle = statistics.median(ratios)
    return f"{middle:.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def per_million_tokens(record: dict, arm: str, skip: int = 0) -> float:
    """Seconds per million tokens, each prefix once, of the laps behind the first ones.

    skip: how many laps to leave out.
    """
    laps = record["rounds"][arm][skip:]
    seconds, tokens = (sum(lap[k] for lap in laps) for k in ("seconds", "tokens_once"))
    return 1e6 * seconds / tokens


def where_time_goes(record: dict) -> pd.DataFrame:
    """Milliseconds of a step by what the GPU did, one column per profiled arm."""
    columns = {}
    for arm, rounds in record["rounds"].items():
        if profile := rounds[0].get("profile"):
            column = dict(profile["by_kind"])
            column["all kernels"] = sum(profile["by_kind"].values())
            nothing = profile["wall_ms"] - profile["busy_ms"]
            column["nothing (launches, waits)"] = nothing
            column["number of kernels"] = profile["kernels"]
            columns[arm] = {k: v / profile["steps"] for k, v in column.items()}
    return pd.DataFrame(columns).round().astype("Int64")


def learned_and_seen(records: list[dict]) -> pd.DataFrame:
    """What adapters learned, and the share of it that their own arithmetic sees.

    One row per trainer; per record, that is per seed, two columns.
    """
    columns = {}
    for record in records:
        learned = {k: record["before"] - v for k, v in record["judged"].items()}
        seen = {
            arm: f"{(record['before'] - own) / learned[arm]:.0%}"
            for arm, own in record["own"].items()
        }
        seed = record["seed"]
        columns[f"seed {seed}: learned (nats)"] = pd.Series(learned).map(
            "{:.3f}".format
        )
        columns[f"seed {seed}: seen"] = pd.Series(seen)
    return pd.DataFrame(columns).fillna(NOT_THERE)


def scaling(record: dict) -> pd.DataFrame:
    """One row per timed part that did not fail, from the fewest processes on.

    What is missing to the number of processes is split: what uneven pairs cost, and
    the rest.
    """
    rows = {}
    for name, part in record["parts"].items():
        if "seconds_per_1000_pairs" not in part:
            continue
        processes, measured = part["processes"], part.get("scaling", 1.0)
        even = part.get("scaling_if_only_uneven", processes)
        rows[name] = {
            "processes": processes,
            "s per 1,000 pairs": part["seconds_per_1000_pairs"],
            "times as fast": measured,
            "lost to uneven pairs": processes - even,
            "lost to the rest": even - measured,
            "peak GiB": max(part["peak_gib"]),
        }
    return pd.DataFrame(rows).T.sort_values("processes")
