"""The map of all exercises and hunts, which notebook 00 shows."""

import pandas as pd

from course_utils.exercises.mechanism import EXERCISES

_KINDS = {False: "exercise", True: "hunt"}


def exercise_map() -> pd.DataFrame:
    """One row per exercise and hunt: notebook, kind, minutes, difficulty, what it
    trains; the index is its number.
    """
    rows = [
        {
            "number": each.number,
            "notebook": each.notebook,
            "kind": _KINDS[each.recipe is not None],
            "minutes": each.minutes,
            "difficulty": "●" * each.difficulty + "○" * (3 - each.difficulty),
            "what it trains": each.trains,
        }
        for each in EXERCISES.values()
    ]
    return pd.DataFrame(rows).sort_values("number").set_index("number")


def as_markdown(table: pd.DataFrame) -> str:
    """The map as a Markdown table, for a README."""
    lines = [[table.index.name, *table.columns], ["---"] * (len(table.columns) + 1)]
    lines += [list(map(str, row)) for row in table.itertuples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
