"""Exercises of notebook 01: odds, labels, gradient."""

from collections.abc import Callable

import torch

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_tensor, expect, no_return, returned
from course_utils.exercises.mechanism import exercise, judge


@exercise(
    "1.1",
    solutions.log_odds,
    minutes=5,
    difficulty=1,
    trains="odds, and arithmetic that survives P near 1",
    hints=(
        "The odds are P / (1 - P). Write their logarithm as a difference of two "
        "logarithms.",
        "log P is what you get. For log(1 - P) near P = 1 use -torch.expm1(logps), "
        "which is 1 - P with all its digits.",
    ),
    mistakes={
        "these are the odds; ORPO compares their logarithms": (
            lambda x: x.exp() / (1 - x.exp())
        ),
        "a log-prob is not a probability: take exp before 1 - P": (
            lambda x: torch.log(-x / (1 + x).abs())
        ),
        "the sign is wrong: the logit of P is log P - log(1 - P)": (
            lambda x: torch.log(1 - x.exp()) - x
        ),
        "not finite, or without digits, near P = 1: 1 - exp(x) cancels, expm1 does "
        "not": lambda x: x - torch.log(1 - x.exp()),
        "is there a return": no_return,
        "these are not the log-odds": lambda x: x - x.exp(),
    },
)
def log_odds(attempt: Callable) -> None:
    """Log-odds (B,) of mean log-probs (B,)."""
    what = "one log-odds per log-prob"
    for logps in (torch.tensor([0.2, 0.5, 0.9]).log(), torch.tensor([-1e-8, -1e-7])):
        judge("1.1", attempt, [(logps,)], as_tensor, logps.shape, what, tolerance=1e-4)


@exercise(
    "1.2",
    solutions.mask_prompt,
    minutes=10,
    difficulty=2,
    trains="labels: which tokens a loss scores",
    hints=(
        "Labels are a copy of the ids in which the positions that must not be scored "
        "hold -100.",
        "Clone input_ids, then assign -100 to the slice [:prompt_length]. Do not "
        "shift: the loss does that.",
    ),
    mistakes={
        "0 is a token id, which the loss would teach; it skips -100": (
            lambda ids, n: torch.cat([0 * ids[:n], ids[n:]])
        ),
        "the labels are shifted; the loss shifts them itself": (
            lambda ids, n: solutions.mask_prompt(ids, n).roll(-1)
        ),
        "the wrong side is masked: the answer is what the odds term scores": (
            lambda ids, n: torch.cat([ids[:n], ids[n:] * 0 - 100])
        ),
        "one token too many is masked: the answer's first token is never learned": (
            lambda ids, n: solutions.mask_prompt(ids, n + 1)
        ),
        "one token too few is masked: the prompt's last token counts as answer": (
            lambda ids, n: solutions.mask_prompt(ids, n - 1)
        ),
        "the prompt is masked, and not cut off": lambda ids, n: ids[n:],
        "input_ids was changed": lambda ids, n: ids[:n].fill_(-100) is None or ids,
        "these are not the labels": lambda ids, n: ids,
    },
)
def mask_prompt(attempt: Callable) -> None:
    """Labels (T,) of input_ids (T,): -100 on the first prompt_length tokens."""
    input_ids = torch.tensor([11, 12, 13, 14, 15, 16])
    before = input_ids.clone()
    returned(attempt, input_ids, 3)
    why = "input_ids was changed: the model would read -100. Work on a clone"
    expect(torch.equal(input_ids, before), why, input_ids.tolist(), before.tolist())
    what = "one label per token; the prompt is masked, and not cut off"
    judge("1.2", attempt, [(before, 3)], as_tensor, (6,), what)


@exercise(
    "1.3",
    solutions.delta,
    minutes=10,
    difficulty=2,
    trains="when the preference term switches itself off",
    hints=(
        "Section 3 gives the formula: delta = 1 / (1 + OR). OR is a ratio of odds, "
        "chosen over rejected.",
        "Take log_odds (exercise 1.1) of both, subtract to get log OR, and use "
        "torch.exp on that difference.",
    ),
    mistakes={
        "the minus sign belongs to the gradient, -delta * h; delta is in (0, 1)": (
            lambda c, r: -solutions.delta(c, r)
        ),
        "upside down: delta must vanish once the chosen answer is far likelier": (
            lambda c, r: 1 - solutions.delta(c, r)
        ),
        "the ratio is one of odds, not probabilities: P / (1 - P)": (
            lambda c, r: 1 / (1 + torch.exp(c - r))
        ),
        "the 1 in 1 + odds ratio is missing: delta must stay below 1": (
            lambda c, r: torch.exp(solutions.log_odds(r) - solutions.log_odds(c))
        ),
        "that is the log odds ratio; delta is 1 / (1 + OR), with OR = exp(log OR)": (
            lambda c, r: solutions.log_odds(c) - solutions.log_odds(r)
        ),
        "the shape is wrong": lambda c, r: solutions.delta(c, r).mean(),
        "the values are not 1 / (1 + OR)": lambda c, r: c - r,
    },
)
def delta(attempt: Callable) -> None:
    """delta(d) of the gradient (B,), from chosen and rejected log-probs (B,)."""
    chosen = torch.tensor([0.5, 0.9, 0.2]).log()
    rejected = torch.tensor([0.5, 0.2, 0.9]).log()
    what = "one delta per pair"
    case = (chosen, rejected)
    judge("1.3", attempt, [case], as_tensor, (3,), what, tolerance=1e-4)
