"""Output that stays whole: on a console that lacks a β, and in a Markdown table."""

import sys
from collections.abc import Iterable


def print_safely() -> None:
    """Let stdout and stderr write \\u03b2 for a β that their encoding does not have.

    Every command calls it first: without it, one such character ends a run. The
    encoding stays the console's own.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook replaced the stream
            stream.reconfigure(errors="backslashreplace")


def one_line(text: object) -> str:
    """A text in one line: a line break would end a list or a row of a table."""
    return " ".join(str(text).split())


def markdown_table(head: list, rows: Iterable[Iterable]) -> str:
    """A Markdown table; bars and line breaks in a cell do not end it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[one_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
