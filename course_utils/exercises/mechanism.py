"""The registry of exercises and hunts: how they are checked, hinted at and solved.

To add an exercise: write its solution under the stub's name in `solutions`, and a check
below the `exercise` decorator in the module of its topic; name the check in `checks`. A
check takes the attempt and calls `judge`, which compares its results with those of the
solution and of the mistakes; what a result cannot show is checked by `expect`.

To add a hunt: write the recipe and its repair in `hunts`, and a check below
`exercise(..., recipe=...)`; it judges what the recipe does, never how it is written.

One test proves that every solution passes; another that every mistake fails with its
own message.
"""

import copy
import dis
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from course_utils.exercises.feedback import (
    Feedback,
    Unfinished,
    Wrong,
    listed,
    returned,
)
from course_utils.exercises.shown import Hint, Solution

EXERCISES: dict[str, "Exercise"] = {}
_HINTS_SHOWN: dict[str, int] = {}
_BOOKKEEPING = {"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "RESUME"}


@dataclass(frozen=True)
class Exercise:
    """A registered exercise or hunt.

    number: as printed on its card. check: what the notebook calls. answer: the solution
    as a learner would give it. mistakes: {part of its message: wrong answer}. source:
    the solution's text. hints: two texts, the second stronger. minutes, difficulty (1
    to 3) and trains (what it teaches): for the map in notebook 00. recipe: a hunt's
    faulty function as the notebook gives it; None for an exercise. material: makes what
    a hunt's recipe works on.
    """

    number: str
    check: Callable
    answer: object
    mistakes: dict[str, object]
    source: str
    hints: tuple[str, str]
    minutes: int
    difficulty: int
    trains: str
    recipe: Callable | None = None
    material: Callable | None = None

    @property
    def notebook(self) -> str:
        """The notebook's two digits."""
        return f"{int(self.number.partition('.')[0]):02}"

    @property
    def card(self) -> str:
        """How the notebook introduces it, such as `**1.2 · 10 min · ●●○**`."""
        hunt = "Hunt " if self.recipe else ""
        return f"**{hunt}{self.number} · {self.minutes} min · {self.dots}**"

    @property
    def dots(self) -> str:
        """Its difficulty, such as ●●○."""
        return "●" * self.difficulty + "○" * (3 - self.difficulty)


def exercise(
    number: str,
    solution: Callable,
    mistakes: dict[str, object],
    *,
    value: bool = False,
    **card: object,
) -> Callable[[Callable], Callable]:
    """Decorator that registers a check; `card` are the other fields of `Exercise`.

    solution: the function that solves it; with value=True, a function without arguments
        that returns the value to fill in. mistakes: at least two, a hunt's at least
        three; the words must occur in the message that this answer gets.
    Raises: ValueError for a number that is taken, too few mistakes or too few hints.

    The check prints "not attempted yet" for an untouched stub, table or recipe, prints
    "correct" if the body raises nothing, and raises `Feedback` otherwise.
    """
    recipe = card.get("recipe")
    needed = 3 if recipe else 2
    if number in EXERCISES:
        raise ValueError(f"exercise {number} is registered twice.")
    if len(mistakes) < needed:
        raise ValueError(f"exercise {number} needs {needed} typical mistakes or more.")
    if len(card["hints"]) != 2:
        raise ValueError(f"exercise {number} needs two hints, the second stronger.")

    def register(body):
        @functools.wraps(body)
        def check(attempt):
            try:
                if _untouched(attempt, recipe):
                    raise Unfinished
                if not value and not callable(attempt):
                    raise Wrong(
                        "this exercise asks for a function",
                        repr(attempt),
                        f"def {solution.__name__}{inspect.signature(solution)}",
                    )
                body(attempt)
            except Unfinished:
                print(f"{number}: not attempted yet")
            except Wrong as wrong:
                raise Feedback(f"{number}: {wrong}") from None
            else:
                print(f"{number}: correct")

        answer, source = solution() if value else solution, inspect.getsource(solution)
        EXERCISES[number] = Exercise(number, check, answer, mistakes, source, **card)
        return check

    return register


def judge(
    number: str,
    attempt: Callable,
    cases: Iterable[tuple],
    read: Callable,
    *what: object,
    tolerance: float = 1e-5,
) -> None:
    """Compare an attempt's results with the solution's, and with each mistake's.

    cases: arguments, one tuple per call. read, what: `read(result, *what)` checks the
    type of a result, as `feedback.as_number` does. tolerance: relative.
    Raises: Wrong with the words of the first mistake that gives the same results in all
    cases; other wrong results get the words of the last mistake.
    """
    cases = list(cases)
    got = [read(returned(attempt, *copy.deepcopy(each)), *what) for each in cases]
    expected = [EXERCISES[number].answer(*copy.deepcopy(each)) for each in cases]
    right = [_same(*two, tolerance) for two in zip(got, expected, strict=True)]
    if all(right):
        return
    mistakes = EXERCISES[number].mistakes
    made = [w for w in mistakes if _makes(mistakes[w], cases, got, tolerance)]
    words, at = made[0] if made else list(mistakes)[-1], right.index(False)
    raise Wrong(words, f"{got[at]} for {listed(cases[at])}", expected[at])


def _makes(mistake, cases, got, tolerance):
    for case, result in zip(cases, got, strict=True):
        try:
            wrong = mistake(*copy.deepcopy(case))
        except Exception:  # the attempt gave a result here, so this is not its mistake
            return False
        if not _same(result, wrong, tolerance):
            return False
    return True


def _same(one, other, tolerance):
    if isinstance(one, list):  # of messages
        return one == other
    try:
        one, other = (torch.as_tensor(each).double() for each in (one, other))
    except (TypeError, ValueError, RuntimeError):
        return False
    return one.shape == other.shape and torch.allclose(one, other, tolerance, 1e-5)


def solution(number: str) -> Solution:
    """The tested solution of an exercise, to show as a notebook cell's last line.

    Returns: an object that prints as source; in Jupyter, hints and source are folded.
    Raises: ValueError for an unknown number, listing the known ones.
    """
    found = _find(number)
    return Solution(number, found.source, found.hints)


def hint(number: str, which: int | None = None) -> Hint:
    """A hint: the first one, and when called again the second, stronger one.

    which: 1 or 2 asks for that one.
    Raises: ValueError for an unknown number, or another `which`.
    """
    hints = _find(number).hints
    if which is None:
        which = min(_HINTS_SHOWN.get(number, 0) + 1, len(hints))
    if which not in (1, 2):
        raise ValueError(f"there are hints 1 and 2, and no hint {which!r}.")
    _HINTS_SHOWN[number] = max(which, _HINTS_SHOWN.get(number, 0))
    return Hint(number, which, hints[which - 1])


def material(number: str, **settings: object) -> object:
    """What a hunt's recipe works on; `settings` as its function says, such as a seed.

    Raises: ValueError for an unknown number, or an exercise without material.
    """
    found = _find(number)
    if found.material is None:
        raise ValueError(f"exercise {number} has no material: its stub says it all.")
    return found.material(**settings)


def _find(number):
    if number not in EXERCISES:
        known = ", ".join(sorted(EXERCISES))
        raise ValueError(f"there is no exercise {number!r}; there are {known}.")
    return EXERCISES[number]


def _untouched(attempt, recipe):
    if isinstance(attempt, dict):
        return any(value is ... for value in attempt.values())
    if recipe is not None and inspect.isfunction(attempt):
        return same_code(attempt, recipe)
    return attempt is ... or is_stub(attempt)


def is_stub(attempt: object) -> bool:
    """Does the function's body hold a docstring and `...`, and nothing else?"""
    if not inspect.isfunction(attempt):
        return False
    steps = [step for step in dis.Bytecode(attempt) if step.opname != "RESUME"]
    returns_nothing = steps[0].argval is None or steps[0].argval is ...
    # One or two instructions, by Python's version: load a constant, return it.
    return steps[0].opname in ("LOAD_CONST", "RETURN_CONST") and (
        returns_nothing and len(steps) <= 2
    )


def same_code(one: Callable, other: Callable) -> bool:
    """Do two functions do the same, wherever and with whatever comments they stand?"""
    return _essence(one.__code__) == _essence(other.__code__)


def _essence(code):
    """What a function does, without what depends on the cell that it stands in."""
    steps = []
    for step in dis.get_instructions(code):
        value = _essence(step.argval) if inspect.iscode(step.argval) else step.argval
        if step.opcode in (*dis.hasjrel, *dis.hasjabs):
            value = None
        if step.opname not in _BOOKKEEPING:
            # A name that the same cell imports is called in another way.
            steps.append((step.opname.replace("METHOD", "ATTR"), value))
    return steps
