"""Exercises of notebook 01: odds, labels, gradient."""

from collections.abc import Callable

import torch

from course_utils import orpo
from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_tensor, expect, no_return, returned
from course_utils.exercises.mechanism import exercise


def _close(got, expected):
    return torch.allclose(got.to(expected.dtype), expected, rtol=1e-4)


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
        "these are the odds": lambda x: x.exp() / (1 - x.exp()),
        "log-prob is not a probability": lambda x: torch.log(-x / (1 + x).abs()),
        "logit of P": lambda x: torch.log(1 - x.exp()) - x,
        "not finite": lambda x: x - torch.log(1 - x.exp()),
        "log-odds": lambda x: x - x.exp(),
        "is there a return": no_return,
    },
)
def log_odds(attempt: Callable) -> None:
    """Log-odds (B,) of mean log-probs (B,)."""
    logps = torch.tensor([0.2, 0.5, 0.9]).log()
    expected = orpo.log_odds(logps)
    got = as_tensor(returned(attempt, logps), (3,), "one log-odds per log-prob")
    why = "these are the odds; ORPO compares their logarithms"
    expect(not _close(got, expected.exp()), why, got, expected)
    why = "the sign is wrong: the logit of P is log P - log(1 - P)"
    expect(not _close(got, -expected), why, got, expected)
    probs = logps.exp()
    why = "a log-prob is not a probability: take exp before 1 - P"
    expect(not _close(got, torch.log(-logps / (1 + logps).abs())), why, got, expected)
    why = f"these are not the log-odds of P = {[round(p, 2) for p in probs.tolist()]}"
    expect(_close(got, expected), why, got, expected)
    certain = torch.tensor([-1e-8, -1e-7])
    expected = orpo.log_odds(certain)
    got = as_tensor(returned(attempt, certain), (2,), "one log-odds per log-prob")
    why = (
        "not finite, or without digits, near P = 1: 1 - exp(x) cancels, expm1 does not"
    )
    expect(_close(got, expected), why, got, expected)


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
        "0 is a token id": lambda ids, n: torch.cat([0 * ids[:n], ids[n:]]),
        "shifted": lambda ids, n: torch.cat([ids[:n] * 0 - 100, ids[n:]]).roll(-1),
        "the wrong side": lambda ids, n: torch.cat([ids[:n], ids[n:] * 0 - 100]),
        "one token too many": lambda ids, n: torch.cat(
            [ids[: n + 1] * 0 - 100, ids[n + 1 :]]
        ),
        "one token too few": lambda ids, n: torch.cat(
            [ids[: n - 1] * 0 - 100, ids[n - 1 :]]
        ),
        "cut off": lambda ids, n: ids[n:],
        "input_ids was changed": lambda ids, n: ids[:n].fill_(-100) is None or ids,
    },
)
def mask_prompt(attempt: Callable) -> None:
    """Labels (T,) of input_ids (T,): -100 on the first prompt_length tokens."""
    input_ids = torch.tensor([11, 12, 13, 14, 15, 16])
    before = input_ids.clone()
    expected = [-100, -100, -100, 14, 15, 16]
    labels = returned(attempt, input_ids, 3)
    why = "input_ids was changed: the model would read -100. Work on a clone"
    expect(torch.equal(input_ids, before), why, input_ids.tolist(), before.tolist())
    what = "one label per token; the prompt is masked, and not cut off"
    got = as_tensor(labels, (6,), what).tolist()
    why = "0 is a token id, which the loss would teach; it skips -100"
    expect(0 not in got, why, got, expected)
    why = "the wrong side is masked: the answer is what the odds term scores"
    expect(got != [11, 12, 13, -100, -100, -100], why, got, expected)
    why = "the labels are shifted; the loss shifts them itself"
    expect(got[:5] != expected[1:], why, got, expected)
    why = "one token too many is masked: the answer's first token is never learned"
    expect(got != [-100, -100, -100, -100, 15, 16], why, got, expected)
    why = "one token too few is masked: the prompt's last token counts as answer"
    expect(got != [-100, -100, 13, 14, 15, 16], why, got, expected)
    expect(got == expected, "these are not the labels", got, expected)


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
        "upside down": lambda c, r: 1 - solutions.delta(c, r),
        "odds, not probabilities": lambda c, r: 1 / (1 + torch.exp(c - r)),
        "sign belongs to the gradient": lambda c, r: -solutions.delta(c, r),
        "the 1 in 1 + odds ratio": lambda c, r: torch.exp(
            solutions.log_odds(r) - solutions.log_odds(c)
        ),
        "that is the log odds ratio": lambda c, r: (
            solutions.log_odds(c) - solutions.log_odds(r)
        ),
        "not 1 / (1 + OR)": lambda c, r: c - r,
        "the shape is wrong": lambda c, r: solutions.delta(c, r).mean(),
    },
)
def delta(attempt: Callable) -> None:
    """delta(d) of the gradient (B,), from chosen and rejected log-probs (B,)."""
    chosen = torch.tensor([0.5, 0.9, 0.2]).log()
    rejected = torch.tensor([0.5, 0.2, 0.9]).log()
    expected = orpo.gradient_delta(chosen, rejected)
    got = as_tensor(returned(attempt, chosen, rejected), (3,), "one delta per pair")
    why = (
        "the minus sign belongs to the gradient, -delta * h; delta itself is in (0, 1)"
    )
    expect(not _close(got, -expected), why, got, expected)
    why = "upside down: delta must vanish once the chosen answer is far likelier"
    expect(not _close(got, 1 - expected), why, got, expected)
    why = "the ratio is one of odds, not probabilities: P / (1 - P)"
    expect(not _close(got, 1 / (1 + torch.exp(chosen - rejected))), why, got, expected)
    inverse = torch.exp(orpo.log_odds(rejected) - orpo.log_odds(chosen))
    why = "the 1 in 1 + odds ratio is missing: delta must stay below 1"
    expect(not _close(got, inverse), why, got, expected)
    difference = torch.sigmoid(rejected - chosen)
    why = "log P is not the log-odds: log OR takes log(P / (1 - P)) of both answers"
    expect(not _close(got, difference), why, got, expected)
    log_or = orpo.log_odds(chosen) - orpo.log_odds(rejected)
    why = "that is the log odds ratio; delta is 1 / (1 + OR), with OR = exp(log OR)"
    expect(not _close(got, log_or), why, got, expected)
    why = "the values are not 1 / (1 + OR); the log odds ratios of the pairs are "
    why += str([round(each, 2) for each in log_or.tolist()])
    expect(_close(got, expected), why, got, expected)
