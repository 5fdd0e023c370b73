"""How hints and solutions look: plain text in a terminal, folded in a notebook."""

import html
from dataclasses import dataclass


def fold(summary: str, text: str, tag: str = "pre") -> str:
    """HTML that shows `summary` and hides `text` until a click; both are escaped."""
    return (
        f"<details><summary>{html.escape(summary)}</summary>"
        f"<{tag}>{html.escape(text)}</{tag}></details>"
    )


@dataclass(frozen=True, repr=False)
class Hint:
    """One hint: the exercise's number, which hint (1 or 2), its text."""

    number: str
    which: int
    text: str

    def __repr__(self) -> str:
        return f"Hint {self.which} of 2 for {self.number}: {self.text}"

    def _repr_html_(self) -> str:
        return fold(f"Hint {self.which} of 2 for {self.number}", self.text, "p")


@dataclass(frozen=True, repr=False)
class Solution:
    """A tested solution: number, source, and the two hints that come before it."""

    number: str
    source: str
    hints: tuple[str, str]

    def __repr__(self) -> str:
        return self.source

    def _repr_html_(self) -> str:
        hints = [Hint(self.number, at, each) for at, each in enumerate(self.hints, 1)]
        shown = [hint._repr_html_() for hint in hints]
        return "".join([*shown, fold(f"Solution of {self.number}", self.source)])
