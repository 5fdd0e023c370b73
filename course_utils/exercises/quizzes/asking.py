"""A quiz: read from its file, shown with folded answers, or checked against a dict.

A file is a list of {ask, right, wrong}: `right` is [option, reason], `wrong` a list of
such. Options get their letters in an order that depends on notebook and number alone.
"""

import html
import random
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from course_utils.exercises.shown import fold

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Question:
    """number: from 1. ask: the question. options: {letter: (option, reason)}.

    right: the letter of the right option.
    """

    number: int
    ask: str
    options: dict[str, tuple[str, str]]
    right: str


@dataclass(frozen=True, repr=False)
class Quiz:
    """A notebook's questions, and what the reader answered, {number: letter}."""

    notebook: str
    questions: tuple[Question, ...]
    answers: dict[int, str]

    def __repr__(self) -> str:
        return "\n\n".join("\n".join(self._lines(each)) for each in self.questions)

    def _repr_html_(self) -> str:
        parts = []
        for question in self.questions:
            asked, *options = self._lines(question)
            parts.append(f"<p><b>{html.escape(asked)}</b></p>")
            parts.append("".join(f"<p>{html.escape(line)}</p>" for line in options))
            if not self.answers:
                reasons = "\n".join(_reasons(question))
                parts.append(fold("The answer, with reasons", reasons))
        return "".join(parts)

    def _lines(self, question):
        yield f"{question.number}. {question.ask}"
        if not self.answers:
            for letter, (option, _) in question.options.items():
                yield f"   {letter}) {option}"
            return
        given = self.answers.get(question.number)
        if given is None:
            yield "   not answered yet"
            return
        option, reason = question.options[given]
        verdict = "right" if given == question.right else "not right"
        yield f"   {given}) {option}"
        yield f"   {verdict}: {reason}"

    @property
    def right(self) -> int:
        """How many were answered rightly."""
        return sum(
            self.answers.get(each.number) == each.right for each in self.questions
        )


def _reasons(question):
    for letter, (_, reason) in question.options.items():
        verdict = "right" if letter == question.right else "not right"
        yield f"{letter}) {verdict}: {reason}"


@cache
def load(notebook: str) -> tuple[Question, ...]:
    """The questions of a notebook.

    notebook: its two digits, such as "03".
    Raises: ValueError if there is no quiz for it, listing those there are.
    """
    path = _FOLDER / f"{notebook}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in _FOLDER.glob("*.yaml")))
        raise ValueError(f"there is no quiz {notebook!r}; there are {known}.")
    questions = []
    rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    for number, row in enumerate(rows, 1):
        options = [row["right"], *row["wrong"]]
        random.Random(f"{notebook}.{number}").shuffle(options)
        lettered = dict(zip(string.ascii_lowercase, map(tuple, options), strict=False))
        (right,) = [
            key for key, each in lettered.items() if each == tuple(row["right"])
        ]
        questions.append(Question(number, row["ask"], lettered, right))
    return tuple(questions)


def quiz(notebook: str, answers: dict[int, str] | None = None) -> Quiz:
    """Five questions about a notebook, to show as a cell's last line.

    answers: {number of the question: letter}; `...` stands for not answered yet. With
        answers the quiz says of each whether it is right, and why.
    Raises: ValueError for an unknown notebook, question or letter, naming the known.
    """
    questions = load(notebook)
    known = {question.number: question for question in questions}
    given = {number: x for number, x in (answers or {}).items() if x is not ...}
    for number, letter in given.items():
        if number not in known:
            raise ValueError(f"there is no question {number!r}, but 1 to {len(known)}.")
        if letter not in known[number].options:
            letters = ", ".join(known[number].options)
            raise ValueError(f"question {number}: {letter!r} is none of {letters}.")
    return Quiz(notebook, questions, given)
