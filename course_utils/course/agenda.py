"""How long the course takes a group: minutes of reading, running and exercises.

Minutes of running are the notebooks' own records. Reading is counted in words, and an
exercise takes what its card says.
"""

import re
from pathlib import Path
from typing import NamedTuple

from nbformat import NotebookNode

from course_utils.course import notebooks

BEGIN = "<!-- agenda: made by `python -m course_utils.course agenda` -->"
END = "<!-- end of agenda -->"
WORDS_PER_MINUTE = 180  # slower than prose: there are formulas and figures
_CARD = re.compile(r"\*\*(?:Hunt )?(\d\.\d+) · (\d+) min")
_OPTIONAL = re.compile(r"^#+ .*\b(?:optional|appendix)\b", re.IGNORECASE | re.MULTILINE)


class Minutes(NamedTuple):
    """Of one notebook: reading the core path, running it, and each of its exercises."""

    reading: float
    running: float
    exercises: dict[str, int]


def minutes(notebook: NotebookNode) -> Minutes:
    """Minutes of a notebook. What stands under an optional heading is not counted."""
    words, optional, exercises = 0, False, {}
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        if re.match(r"#+ ", cell.source):
            optional = bool(_OPTIONAL.match(cell.source))
        exercises |= {number: int(took) for number, took in _CARD.findall(cell.source)}
        words += 0 if optional else len(cell.source.split())
    seconds = notebooks.run_record(notebook).get("seconds", 0)
    return Minutes(words / WORDS_PER_MINUTE, seconds / 60, exercises)


def table(root: Path) -> str:
    """Minutes per notebook as a Markdown table, with a row for all of them."""
    lines = [
        "| notebook | read | run | exercises and hunts | all |",
        "|---|---|---|---|---|",
    ]
    total = [0.0, 0.0, 0.0]
    for path in notebooks.notebook_files(root):
        found = minutes(notebooks.read(path))
        parts = [found.reading, found.running, sum(found.exercises.values())]
        total = [before + part for before, part in zip(total, parts, strict=True)]
        lines.append(_row(path.stem[:2], parts))
    return "\n".join([*lines, _row("all", total)])


def _row(name, parts):
    shown = " | ".join(f"{part:.0f}" for part in parts)
    return f"| {name} | {shown} | {sum(parts):.0f} |"


def updated(text: str, root: Path) -> str:
    """`text` with its table of minutes made anew.

    Raises: ValueError if the two comments that enclose the table are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text must hold the lines {BEGIN} and {END}.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(root)}\n{END}{rest.partition(END)[2]}"
