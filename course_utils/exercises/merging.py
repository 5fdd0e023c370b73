"""Exercises of notebook 06: the merge, how far models are apart, what a file holds."""

import math
from collections.abc import Callable

import torch

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_tensor, expect, returned
from course_utils.exercises.mechanism import exercise


def _close(got, expected):
    return torch.allclose(got.to(expected.dtype), expected, atol=1e-5)


def _layer():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=draw) for s in ((5, 5), (2, 5), (5, 2))]


@exercise(
    "6.1",
    solutions.merged_weight,
    minutes=10,
    difficulty=1,
    trains="a merge, by hand",
    hints=(
        "The update of W is a product of the two small matrices, scaled.",
        "The rank is the number of rows of lora_a. The product of shape (out, in) is "
        "lora_b @ lora_a.",
    ),
    mistakes={
        "scale alpha / r is missing": lambda w, a, b, alpha: w + b @ a,
        "divided by the rank": lambda w, a, b, alpha: w + alpha * b @ a,
        "out_features x in_features": lambda w, a, b, alpha: w + alpha / 2 * (b @ a).T,
        "base's weight": lambda w, a, b, alpha: alpha / 2 * b @ a,
        "2 x 5": lambda w, a, b, alpha: a,
        "not the merged weight": lambda w, a, b, alpha: w,
    },
)
def merged_weight(attempt: Callable) -> None:
    """W + alpha / r * B A, shapes (out, in), (r, in), (out, r)."""
    weight, lora_a, lora_b = _layer()
    update = lora_b @ lora_a
    expected = weight + 32 / 2 * update
    got = returned(attempt, weight.clone(), lora_a.clone(), lora_b.clone(), 32)
    what = "the merged weight, which has the weight's shape, not 2 x 5 or another"
    got = as_tensor(got, tuple(expected.shape), what)
    why = "the scale alpha / r is missing: LoRA multiplies its update by it"
    expect(not _close(got, weight + update), why, got, expected)
    why = "alpha must be divided by the rank, the number of lora_a's rows"
    expect(not _close(got, weight + 32 * update), why, got, expected)
    why = "the update is B A, out_features x in_features; yours is its transpose"
    expect(not _close(got, weight + 16 * update.T), why, got, expected)
    why = "that is the update alone: the base's weight must be added"
    expect(not _close(got, 16 * update), why, got, expected)
    expect(_close(got, expected), "this is not the merged weight", got, expected)


def _kl(p_logits, q_logits):
    p, q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    return p.exp() * (p - q)


@exercise(
    "6.2",
    solutions.mean_kl,
    minutes=10,
    difficulty=2,
    trains="how far apart two models are",
    hints=(
        "KL = sum over the vocabulary of p * (log p - log q). Which model is p?",
        "log_softmax(-1) of both; p belongs to the trained model; sum over the last "
        "dimension, then the mean over the tokens.",
    ),
    mistakes={
        "one number": lambda p, q: _kl(p, q).sum(-1),
        "the other way round": lambda p, q: _kl(q, p).sum(-1).mean(),
        "mean over the vocabulary": lambda p, q: _kl(p, q).mean(),
        "sum over the tokens": lambda p, q: _kl(p, q).sum(),
        "bits": lambda p, q: _kl(p, q).sum(-1).mean() / math.log(2),
        "not probabilities yet": lambda p, q: (p.exp() * (p - q)).sum(-1).mean(),
        "not the mean KL": lambda p, q: (p - q).abs().max(),
    },
)
def mean_kl(attempt: Callable) -> None:
    """KL(trained || merged) in nats, mean over tokens, from (tokens, vocabulary)."""
    draw = torch.Generator().manual_seed(1)
    p, q = (2 * torch.randn(4, 6, generator=draw) for _ in range(2))
    expected = _kl(p, q).sum(-1).mean()
    got = as_number(returned(attempt, p.clone(), q.clone()), "the mean over the tokens")
    got = torch.tensor(got)
    why = "logits are not probabilities yet: log_softmax first"
    expect(not _close(got, (p.exp() * (p - q)).sum(-1).mean()), why, got, expected)
    why = "that is the KL the other way round: the trained model gives the weights"
    expect(not _close(got, _kl(q, p).sum(-1).mean()), why, got, expected)
    why = "a KL sums over the vocabulary; you took the mean over the vocabulary"
    expect(not _close(got, _kl(p, q).mean()), why, got, expected)
    why = "that is the sum over the tokens: it would grow with the text"
    expect(not _close(got, _kl(p, q).sum()), why, got, expected)
    why = "that is in bits; natural logarithms give nats"
    expect(not _close(got, expected / math.log(2)), why, got, expected)
    expect(_close(got, expected), "this is not the mean KL", got, expected)


@exercise(
    "6.3",
    solutions.hidden_share,
    minutes=10,
    difficulty=2,
    trains="what agreement of n answers does not exclude",
    hints=(
        "If a share s of prompts differs, how likely is it that n prompts show no "
        "difference?",
        "That probability is (1 - s)^n. Set it to 0.05 and solve for s.",
    ),
    mistakes={
        "between 0 and 1": lambda n: 3,
        "the chance that one": lambda n: 0.05**n,
        "as n grows": lambda n: 0.05,
        "95 of 100": lambda n: 1 - 0.95 ** (1 / n),
        "not what n trials": lambda n: 1 / n,
    },
)
def hidden_share(attempt: Callable) -> None:
    """The share s with (1 - s)^n = 0.05."""
    got = [as_number(returned(attempt, n), "the share") for n in (60, 120)]
    expected = [1 - 0.05 ** (1 / n) for n in (60, 120)]
    why = "a share lies between 0 and 1"
    expect(all(0 < value < 1 for value in got), why, got, expected)
    why = "this is the chance that one trial shows it n times, not a share"
    expect(got[0] > 1e-9, why, got, expected)
    why = "what stays hidden must shrink as n grows"
    expect(got[1] < got[0], why, got, expected)
    wrong = [1 - 0.95 ** (1 / n) for n in (60, 120)]
    why = "with this share 95 of 100 trials show nothing, and 5 of 100 are asked for"
    expect(not all(map(math.isclose, got, wrong)), why, got, expected)
    why = "this is not what n trials without a difference leave possible"
    expect(
        all(abs(a - b) < 1e-3 * b for a, b in zip(got, expected, strict=True)),
        why,
        got,
        expected,
    )


@exercise(
    "6.4",
    solutions.rotation_order,
    minutes=15,
    difficulty=3,
    trains="why llama.cpp orders the same weights otherwise",
    hints=(
        "Within a head, rows come in two halves. llama.cpp wants row i of the first "
        "half followed by row i of the second.",
        "Reshape to (heads, 2, d/2, in), exchange the two middle dimensions, and "
        "reshape back.",
    ),
    mistakes={
        "weight's own shape": lambda w, h: w.reshape(h, 2, -1, w.shape[1]),
        "as it was": lambda w, h: w,
        "within each head": lambda w, h: (
            w.reshape(2, -1, w.shape[1]).transpose(0, 1).reshape(w.shape)
        ),
        "other way round": lambda w, h: (
            w.reshape(h, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
        ),
        "not llama.cpp's order": lambda w, h: w.flip(0),
    },
)
def rotation_order(attempt: Callable) -> None:
    """Rows i and i + d/2 of each head next to each other."""
    heads, weight = 2, torch.arange(16.0)[:, None] * torch.ones(3)
    expected = [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    out = returned(attempt, weight.clone(), heads)
    what = "all rows, in the weight's own shape"
    out = as_tensor(out, tuple(weight.shape), what)
    got = [int(row) for row in out[:, 0]]
    expect(got != list(range(16)), "the rows are in the order as it was", got, expected)
    across = [i + j for i in range(8) for j in (0, 8)]
    why = "rows are paired within each head, not across the whole matrix"
    expect(got != across, why, got, expected)
    back = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    why = "that is the other way round: from llama.cpp's order to transformers'"
    expect(got != back, why, got, expected)
    expect(got == expected, "this is not llama.cpp's order", got, expected)
