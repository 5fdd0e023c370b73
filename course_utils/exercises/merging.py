"""Exercises of notebook 06: the merge, how far models are apart, what a file holds."""

import math
from collections.abc import Callable

import torch

from course_utils.exercises import solutions
from course_utils.exercises.feedback import as_number, as_tensor
from course_utils.exercises.mechanism import exercise, judge


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
        "the scale alpha / r is missing: LoRA multiplies its update by it": (
            lambda w, a, b, alpha: w + b @ a
        ),
        "alpha must be divided by the rank, the number of lora_a's rows": (
            lambda w, a, b, alpha: w + alpha * b @ a
        ),
        "the update is B A, out_features x in_features; yours is its transpose": (
            lambda w, a, b, alpha: w + alpha / 2 * (b @ a).T
        ),
        "that is the update alone: the base's weight must be added": (
            lambda w, a, b, alpha: alpha / 2 * b @ a
        ),
        "has the weight's shape, not 2 x 5 or another": lambda w, a, b, alpha: a,
        "this is not the merged weight": lambda w, a, b, alpha: w,
    },
)
def merged_weight(attempt: Callable) -> None:
    """W + alpha / r * B A, shapes (out, in), (r, in), (out, r)."""
    draw = torch.Generator().manual_seed(0)
    layer = [torch.randn(*s, generator=draw) for s in ((5, 5), (2, 5), (5, 2))]
    what = "the merged weight, which has the weight's shape, not 2 x 5 or another"
    judge("6.1", attempt, [(*layer, 32)], as_tensor, (5, 5), what)


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
        "return one number": lambda p, q: _kl(p, q).sum(-1),
        "logits are not probabilities yet: log_softmax first": (
            lambda p, q: (p.exp() * (p - q)).sum(-1).mean()
        ),
        "that is the KL the other way round: the trained model gives the weights": (
            lambda p, q: _kl(q, p).sum(-1).mean()
        ),
        "a KL sums over the vocabulary; you took the mean over the vocabulary": (
            lambda p, q: _kl(p, q).mean()
        ),
        "that is the sum over the tokens: it would grow with the text": (
            lambda p, q: _kl(p, q).sum()
        ),
        "that is in bits; natural logarithms give nats": (
            lambda p, q: _kl(p, q).sum(-1).mean() / math.log(2)
        ),
        "this is not the mean KL": lambda p, q: (p - q).abs().max(),
    },
)
def mean_kl(attempt: Callable) -> None:
    """KL(trained || merged) in nats, mean over tokens, from (tokens, vocabulary)."""
    draw = torch.Generator().manual_seed(1)
    case = tuple(2 * torch.randn(4, 6, generator=draw) for _ in range(2))
    judge("6.2", attempt, [case], as_number, "the mean over the tokens")


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
        "a share lies between 0 and 1": lambda n: 3,
        "this is the chance that one trial shows it n times, not a share": (
            lambda n: 0.05**n
        ),
        "what stays hidden must shrink as n grows": lambda n: 0.05,
        "with this share 95 of 100 trials show nothing, and 5 of 100 are asked for": (
            lambda n: 1 - 0.95 ** (1 / n)
        ),
        "this is not what n trials without a difference leave possible": (
            lambda n: 1 / n
        ),
    },
)
def hidden_share(attempt: Callable) -> None:
    """The share s with (1 - s)^n = 0.05."""
    judge("6.3", attempt, [(60,), (120,)], as_number, "the share", tolerance=1e-3)


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
        "all rows, in the weight's own shape": (
            lambda w, h: w.reshape(h, 2, -1, w.shape[1])
        ),
        "the rows are in the order as it was": lambda w, h: w,
        "rows are paired within each head, not across the whole matrix": (
            lambda w, h: w.reshape(2, -1, w.shape[1]).transpose(0, 1).reshape(w.shape)
        ),
        "that is the other way round: from llama.cpp's order to transformers'": (
            lambda w, h: (
                w.reshape(h, -1, 2, w.shape[1]).transpose(1, 2).reshape(w.shape)
            )
        ),
        "this is not llama.cpp's order": lambda w, h: w.flip(0),
    },
)
def rotation_order(attempt: Callable) -> None:
    """Rows i and i + d/2 of each head next to each other."""
    weight = torch.arange(16.0)[:, None] * torch.ones(3)
    what = "all rows, in the weight's own shape"
    judge("6.4", attempt, [(weight, 2)], as_tensor, tuple(weight.shape), what)
