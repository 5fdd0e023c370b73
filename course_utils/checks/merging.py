"""Exercises of notebook 06: the merge, and how far two models are apart."""

import math

import torch

from course_utils.checks import solutions
from course_utils.checks.mechanism import exercise, expect, returned


def _close(got, expected):
    return (
        isinstance(got, torch.Tensor)
        and got.shape == expected.shape
        and torch.allclose(got, expected, atol=1e-5)
    )


def _layer():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=draw) for s in ((5, 5), (2, 5), (5, 2))]


@exercise(
    "6.1",
    solutions.merged_weight,
    mistakes={
        "scale alpha / r is missing": lambda w, a, b, alpha: w + b @ a,
        "divided by the rank": lambda w, a, b, alpha: w + alpha * b @ a,
        "out_features x in_features": lambda w, a, b, alpha: w + alpha / 2 * (b @ a).T,
        "base's weight": lambda w, a, b, alpha: alpha / 2 * b @ a,
        "2 x 5": lambda w, a, b, alpha: a,
        "not the merged weight": lambda w, a, b, alpha: w,
    },
)
def merged_weight(attempt):
    """W + alpha / r * B A, shapes (out, in), (r, in), (out, r)."""
    weight, lora_a, lora_b = _layer()
    update = lora_b @ lora_a
    expected = weight + 32 / 2 * update
    got = returned(attempt, weight.clone(), lora_a.clone(), lora_b.clone(), 32)
    shown = tuple(got.shape) if isinstance(got, torch.Tensor) else got
    shape = tuple(expected.shape)
    why = "the merged weight has the weight's shape, not 2 x 5 or another"
    expect(shown == shape, why, shown, shape)
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
def mean_kl(attempt):
    """KL(trained || merged) in nats, mean over tokens, from (tokens, vocabulary)."""
    draw = torch.Generator().manual_seed(1)
    p, q = (2 * torch.randn(4, 6, generator=draw) for _ in range(2))
    expected = _kl(p, q).sum(-1).mean()
    got = torch.as_tensor(returned(attempt, p.clone(), q.clone()))
    why = "return one number, the mean over the tokens"
    expect(got.numel() == 1, why, tuple(got.shape), "one number")
    got = got.reshape(())
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
