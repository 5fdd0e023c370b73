"""Exercises of notebook 01: odds, labels, gradient."""

import torch

from course_utils import orpo
from course_utils.exercises import solutions
from course_utils.exercises.mechanism import exercise, expect, returned


def _close(got, expected):
    got = torch.as_tensor(got, dtype=expected.dtype)
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=1e-4)


@exercise(
    "1.1",
    solutions.log_odds,
    mistakes={
        "these are the odds": lambda x: x.exp() / (1 - x.exp()),
        "log-prob is not a probability": lambda x: torch.log(-x / (1 + x).abs()),
        "logit of P": lambda x: torch.log(1 - x.exp()) - x,
        "not finite": lambda x: x - torch.log(1 - x.exp()),
        "log-odds": lambda x: x - x.exp(),
        "is there a return": lambda x: None,
    },
)
def log_odds(attempt):
    """Log-odds (B,) of mean log-probs (B,)."""
    logps = torch.tensor([0.2, 0.5, 0.9]).log()
    got, expected = returned(attempt, logps), orpo.log_odds(logps)
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
    got, expected = returned(attempt, certain), orpo.log_odds(certain)
    why = (
        "not finite, or without digits, near P = 1: 1 - exp(x) cancels, expm1 does not"
    )
    expect(_close(got, expected), why, got, expected)


@exercise(
    "1.2",
    solutions.mask_prompt,
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
def mask_prompt(attempt):
    """Labels (T,) of input_ids (T,): -100 on the first prompt_length tokens."""
    input_ids = torch.tensor([11, 12, 13, 14, 15, 16])
    before = input_ids.clone()
    expected = [-100, -100, -100, 14, 15, 16]
    got = torch.as_tensor(returned(attempt, input_ids, 3)).tolist()
    why = "input_ids was changed: the model would read -100. Work on a clone"
    expect(torch.equal(input_ids, before), why, input_ids.tolist(), before.tolist())
    why = "the prompt was cut off; labels must be as long as input_ids"
    expect(len(got) == 6, why, got, expected)
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
    mistakes={
        "upside down": lambda c, r: 1 - solutions.delta(c, r),
        "odds, not probabilities": lambda c, r: 1 / (1 + torch.exp(c - r)),
        "sign belongs to the gradient": lambda c, r: -solutions.delta(c, r),
        "the 1 in 1 + odds ratio": lambda c, r: torch.exp(
            solutions.log_odds(r) - solutions.log_odds(c)
        ),
        "are not delta": lambda c, r: c - r,
    },
)
def delta(attempt):
    """delta(d) of the gradient (B,), from chosen and rejected log-probs (B,)."""
    chosen = torch.tensor([0.5, 0.9, 0.2]).log()
    rejected = torch.tensor([0.5, 0.2, 0.9]).log()
    expected = orpo.gradient_delta(chosen, rejected)
    got = returned(attempt, chosen, rejected)
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
    expect(_close(got, expected), "these are not delta", got, expected)
