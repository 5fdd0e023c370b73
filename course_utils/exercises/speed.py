"""Exercises of notebook 07: padding, and a mask for answers that share their prompt."""

from collections.abc import Callable

import torch

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_tensor, expect, returned
from course_utils.exercises.mechanism import exercise, judge


def _held(lengths, batch_size, longest=None):
    starts = range(0, len(lengths), batch_size)
    batches = [lengths[start : start + batch_size] for start in starts]
    return sum(len(batch) * (longest or max(batch)) for batch in batches)


@exercise(
    "7.1",
    solutions.padding_share,
    minutes=10,
    difficulty=1,
    trains="what padding costs",
    hints=(
        "A batch holds len(batch) * max(batch) tokens. Add this up over the batches, "
        "in the order of the rows.",
        "Share = 1 - sum(lengths) / held. Slices of batch_size give the batches; the "
        "last one may be shorter.",
    ),
    mistakes={
        "that is the real tokens' share: padding is the rest": (
            lambda n, b: sum(n) / _held(n, b)
        ),
        "that is padding per real token: divide by all tokens held, padding included": (
            lambda n, b: _held(n, b) / sum(n) - 1
        ),
        "each batch is padded to its own longest row, not to the longest of all": (
            lambda n, b: 1 - sum(n) / _held(n, b, max(n))
        ),
        "take the rows as they come: sorting by length is a lever, not the recipe": (
            lambda n, b: 1 - sum(n) / _held(sorted(n), b)
        ),
        "the last batch holds fewer rows, and is not filled up": (
            lambda n, b: 1 - sum(n) / (_held(n, b) + (-len(n) % b) * n[-1])
        ),
        "a share lies between 0 and 1": lambda n, b: _held(n, b) - sum(n),
        "this is not the share of padding": lambda n, b: 0.5,
    },
)
def padding_share(attempt: Callable) -> None:
    """Share of a run's tokens that are padding."""
    judge("7.1", attempt, [([30, 90, 50, 40, 60], 2)], as_number, "the share")


def _causal(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


def _own_branch_only(prefix, branches):
    mask, start = torch.zeros_like(_causal(prefix + sum(branches))), 0
    for size in (prefix, *branches):
        mask[start : start + size, start : start + size] = _causal(size)
        start += size
    return mask


def _not_causal(prefix, branches):
    mask = solutions.branch_mask(prefix, branches)
    return mask | (_own_branch_only(prefix, branches).T)


def _first_hidden_only(prefix, branches):
    mask = _causal(prefix + sum(branches))
    mask[prefix + branches[0] :, prefix : prefix + branches[0]] = False
    return mask


@exercise(
    "7.2",
    solutions.branch_mask,
    minutes=20,
    difficulty=3,
    trains="who may see whom in a shared row",
    hints=(
        "Begin with a causal mask over the entire row. Which squares of it must "
        "become False?",
        "For each branch: all rows behind it must not see its columns. mask[end:, "
        "start:end] = False, for one branch after the other.",
    ),
    mistakes={
        "see one another": lambda p, b: _causal(p + sum(b)),
        "must see the prefix": _own_branch_only,
        "must not see ahead": _not_causal,
        "all later branches": _first_hidden_only,
        "True where": lambda p, b: ~solutions.branch_mask(p, b),
        "square": lambda p, b: _causal(p),
        "boolean": lambda p, b: solutions.branch_mask(p, b).float(),
    },
)
def branch_mask(attempt: Callable) -> None:
    """(T, T) bool, True where the row's token may see the column's."""
    prefix, branches = 2, [2, 1, 2]
    expected = solutions.branch_mask(prefix, branches)
    got = returned(attempt, prefix, branches)
    got = as_tensor(got, (7, 7), "a square mask over prefix and all branches")
    why = "return a boolean mask: SDPA adds a mask of numbers to the scores"
    expect(got.dtype == torch.bool, why, got.dtype, torch.bool)
    rows, want = got.int().tolist(), expected.int().tolist()
    diagonal = torch.arange(7)
    why = "the mask is True where a token may look; a token always sees itself"
    expect(bool(got[diagonal, diagonal].all()), why, rows, want)
    why = "a token must not see ahead, not even in its own branch"
    expect(not bool(got.triu(1).any()), why, rows, want)
    why = "each branch must see the prefix: it continues the prompt"
    expect(bool(got[prefix:, :prefix].all()), why, rows, want)
    why = "the branches see one another: each must know the prompt and itself only"
    expect(not bool(got[4, 2:4].any()), why, rows, want)
    why = "with three branches, all later branches must be hidden from each other"
    expect(bool((got == expected).all()), why, rows, want)
