"""What the notebooks took on a GPU, as recorded by `tests/benchmarks/run_notebooks.py`.

The base is a checkpoint of random weights in the shape of Llama 3 8B. So minutes and
memory are measured, and nothing is said about quality.
"""

from course_utils import recorded

RECORD = "gpu_notebooks"
MISSING = (
    "Not recorded yet: on a GPU, `python -m course_utils.models.random_weights FOLDER` "
    "and then `python tests/benchmarks/run_notebooks.py FOLDER` record it."
)


def load() -> dict | None:
    """The record, or None before there is one."""
    try:
        return recorded.load(RECORD)
    except FileNotFoundError:
        return None


def caption(record: dict | None) -> str:
    """Where the record's figures come from and what was run; record: or None."""
    if record is None:
        return MISSING
    caps = ", ".join(f"{name} {gib:g} GiB" for name, gib in record["caps_gib"].items())
    return (
        f"{recorded.caption(record)}. Base: random weights ({record['twin']}); "
        f"at most {record['pairs']} pairs; memory capped: {caps}; {record['jobs']} "
        "notebooks at a time on one card, which makes each slower."
    )


def table(record: dict | None) -> list[dict[str, str]]:
    """One dict per notebook: {"notebook", "l4: min", "l4: GiB", …}; record: or None.

    GiB are the most that the kernel had allocated on the GPU; a notebook that broke, or
    that the run's time limit cut off, says so in the place of its minutes.
    """
    rows = {}
    for run in record["runs"] if record else []:
        row = rows.setdefault(run["notebook"], {"notebook": run["notebook"][:2]})
        profile = run["profile"]
        row[f"{profile}: min"] = f"{run['minutes']:.1f}" if run["ok"] else _why(run)
        row[f"{profile}: GiB"] = f"{run['peak_gib']:.1f}" if run["ok"] else "–"
    return list(rows.values())


def _why(run):
    return "cut off" if run["error"].startswith("stopped after") else "broke"


def clause(notebook: str, record: dict | None) -> str:
    """What one notebook took, to follow its time on the CPU; "" without a record.

    notebook: its name, such as "03_qlora_loading".
    """
    runs = record["runs"] if record else []
    runs = [run for run in runs if run["notebook"] == notebook and run["ok"]]
    if not runs:
        return ""
    took = ", ".join(
        f"`{run['profile']}` {run['minutes']:.1f} min and "
        + (f"{run['peak_gib']:.1f} GiB of" if run["peak_gib"] >= 0.05 else "no")
        + " GPU memory"
        for run in runs
    )
    return (
        f"; rehearsed with {record['pairs']} pairs and random weights of Llama 3 8B's "
        f"shape on {record['machine'].partition(',')[0]} ({record['date']}): {took}"
    )
