"""Feedback on an attempt, in words: first type and shape, then misconceptions."""

import inspect
import numbers
import traceback
from collections.abc import Callable

import numpy as np
import torch

# How a hunt answers a recipe that does what it always did.
STILL = "the symptom is still there"


class Feedback(AssertionError):
    """What a learner reads about a wrong attempt; Jupyter shows no traceback of it."""

    def _render_traceback_(self):
        return [str(self)]


class Wrong(Exception):
    """A misconception that a check found, with what came and what should have come."""

    def __init__(self, misconception: str, got: object, expected: object) -> None:
        super().__init__(f"{misconception}\n  got:      {got}\n  expected: {expected}")


class Unfinished(Exception):
    """The attempt still holds its `...`."""


def expect(
    condition: object, misconception: str, got: object, expected: object
) -> None:
    """Go on if `condition` holds; otherwise name the misconception.

    Raises: Wrong.
    """
    if not condition:
        raise Wrong(misconception, got, expected)


def returned(attempt: Callable, *arguments: object) -> object:
    """As `called`, for an attempt that is to return something. Raises: also Wrong."""
    result = called(attempt, *arguments)
    why = "the function returns nothing: is there a return?"
    expect(result is not None, why, None, "a value")
    return result


def called(attempt: Callable, *arguments: object) -> object:
    """The attempt's result for these arguments.

    Raises: Wrong for a function that takes other arguments or stops with an error.
        Unfinished for one that returns `...`.
    """
    try:
        signature = inspect.signature(attempt)
        signature.bind(*arguments)
    except TypeError as error:
        why = f"the function must take {len(arguments)} arguments ({error})"
        raise Wrong(why, signature, f"called with {listed(arguments)}") from None
    try:
        result = attempt(*arguments)
    except Exception as error:
        name = type(error).__name__
        why = f"your function stopped with {name}{_place(attempt, error)}"
        raise Wrong(why, error, f"a value for {listed(arguments)}") from None
    if result is ...:
        raise Unfinished
    return result


def as_number(got: object, what: str) -> float:
    """`got` as a number, also from a tensor or array of one element.

    Raises: Wrong if it is none, or not finite; `what` says what to return.
    """
    why = f"return one number: {what}"
    if isinstance(got, torch.Tensor | np.ndarray):
        shape = tuple(got.shape)
        expect(shape in ((), (1,)), why, f"shape {shape}", "one number")
        got = got.item()
    is_number = isinstance(got, numbers.Real) and not isinstance(got, bool)
    expect(is_number, why, _short(got), "one number")
    expect(np.isfinite(got), f"{why}, and a finite one", got, "a finite number")
    return got


def as_numbers(got: object, what: tuple[str, ...]) -> tuple[float, ...]:
    """`got` as numbers with these names, from a tuple or list.

    Raises: Wrong if their count or one of their types is another.
    """
    counted = {2: "a pair of"}.get(len(what), len(what))
    why = f"return {counted} numbers: {', '.join(what)}"
    fits = isinstance(got, tuple | list) and len(got) == len(what)
    expect(fits, why, _short(got), f"({', '.join(what)})")
    return tuple(as_number(each, name) for each, name in zip(got, what, strict=True))


def as_tensor(got: object, shape: tuple[int, ...], what: str) -> torch.Tensor:
    """`got` as a tensor of this shape.

    Raises: Wrong if it is no tensor (nor a list of numbers), or has another shape.
    """
    try:
        tensor = torch.as_tensor(got)
    except (TypeError, ValueError, RuntimeError):
        why = f"return a tensor: {what}"
        raise Wrong(why, _short(got), f"a tensor of shape {shape}") from None
    found = tuple(tensor.shape)
    why = f"the shape is wrong; return {what}"
    expect(found == shape, why, f"shape {found}", f"shape {shape}")
    return tensor


def as_bool(got: object, what: str) -> bool:
    """`got` as True or False. Raises: Wrong for anything else."""
    why = f"return True or False: {what}"
    expect(isinstance(got, bool | np.bool_), why, _short(got), "True or False")
    return bool(got)


def no_return(*arguments: object) -> None:
    """A typical mistake: a function that works and forgets to return."""
    _short(arguments)


def listed(arguments: tuple) -> str:
    """Arguments as a call writes them, each in a few words."""
    return f"({', '.join(map(_short, arguments))})"


def _short(value):
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__.lower()} of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _place(attempt, error):
    """Which line of the attempt raised the error, if it can be found."""
    code = getattr(inspect.unwrap(attempt), "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if code and f.filename == code.co_filename and f.line]
    return f" at `{own[-1].line}`" if own else ""
