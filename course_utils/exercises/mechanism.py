"""How an exercise is checked, solved and tested.

Knows: the registry, what a check prints or raises, how a solution is shown.
Does not know: any single exercise.

To add one: write its solution under the stub's name in `solutions`, and a check below
the `exercise` decorator in the module of its topic; name it in `checks/__init__`. A
check takes the attempt and calls `expect` for each misconception, most basic first. One
test proves that every solution passes, and every mistake fails with its own message.
"""

import functools
import html
import inspect
from dataclasses import dataclass

EXERCISES = {}


@dataclass(frozen=True)
class Exercise:
    """A registered exercise.

    number: as printed on its card. check: what the notebook calls. answer: the solution
    as a learner would give it. mistakes: {part of its message: wrong answer}. source:
    the solution's text.
    """

    number: str
    check: object
    answer: object
    mistakes: dict
    source: str


def exercise(number, solution, mistakes, value=False):
    """Decorator that registers a check.

    solution: the function that solves it; with value=True, a function without arguments
        that returns the value to fill in. mistakes: {phrase: wrong answer}, at least
        two; the phrase must occur in the message that this answer gets.
    Raises: ValueError for a number that is taken, or fewer than two mistakes.

    The check then prints "not attempted yet" for `...`, also inside a dict, and
    "correct" if nothing was raised.
    """
    if number in EXERCISES:
        raise ValueError(f"exercise {number} is registered twice.")
    if len(mistakes) < 2:
        raise ValueError(f"exercise {number} needs at least two typical mistakes.")

    def register(body):
        @functools.wraps(body)
        def check(attempt):
            if _untouched(attempt):
                print(f"{number}: not attempted yet")
                return
            if not value and not callable(attempt):
                raise AssertionError(
                    f"{number}: this exercise asks for a function\n"
                    f"  got:      {attempt!r}\n  expected: def {solution.__name__}(...)"
                )
            try:
                body(attempt)
            except Wrong as wrong:
                raise AssertionError(f"{number}: {wrong}") from None
            print(f"{number}: correct")

        answer = solution() if value else solution
        source = inspect.getsource(solution)
        EXERCISES[number] = Exercise(number, check, answer, mistakes, source)
        return check

    return register


class Wrong(Exception):
    """A misconception that `expect` found."""


def expect(condition, misconception, got, expected):
    """Go on if `condition` holds, else name the misconception with got and expected."""
    if not condition:
        raise Wrong(f"{misconception}\n  got:      {got}\n  expected: {expected}")


def returned(attempt, *arguments):
    """The attempt's result; a function that returns nothing is told so."""
    result = attempt(*arguments)
    why = "the function returns nothing: is there a return?"
    expect(result is not None, why, None, "a value")
    return result


def solution(number):
    """The tested solution of an exercise, to show as a notebook cell's last line.

    Returns: an object that prints as source; in Jupyter it is folded.
    Raises: ValueError for an unknown number, listing the known ones.
    """
    if number not in EXERCISES:
        known = ", ".join(sorted(EXERCISES))
        raise ValueError(f"there is no exercise {number!r}; there are {known}.")
    return Solution(number, EXERCISES[number].source)


@dataclass(frozen=True, repr=False)
class Solution:
    """number and source of a tested solution."""

    number: str
    source: str

    def __repr__(self):
        return self.source

    def _repr_html_(self):
        return (
            f"<details><summary>Solution of {self.number}</summary>"
            f"<pre>{html.escape(self.source)}</pre></details>"
        )


def _untouched(attempt):
    if isinstance(attempt, dict):
        return any(value is ... for value in attempt.values())
    return attempt is ...
