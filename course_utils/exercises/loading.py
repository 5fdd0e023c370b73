"""Exercises of notebook 03: bits per weight, LoRA's size, a code, a smaller card."""

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import torch

from course_utils.exercises import solutions
from course_utils.exercises.feedback import (
    as_number,
    as_tensor,
    expect,
    no_return,
    returned,
)
from course_utils.exercises.mechanism import exercise, judge
from course_utils.models import memory

_BLOCK = 64


@exercise(
    "3.1",
    solutions.bits_per_weight,
    minutes=5,
    difficulty=1,
    trains="what block scales cost",
    hints=(
        "A weight has 4 bits of its own and a share of its block's scale. How many "
        "weights share one scale?",
        "With double quantisation a scale has 8 bits and serves `block` weights; a "
        "32-bit constant serves `second` scales, which are second * block weights.",
    ),
    mistakes={
        "the scales are missing": lambda block, second: 4,
        "the float32 constant for each second block is missing": (
            lambda block, second: 4 + 8 / block
        ),
        "the second level is one for every second * block weights": (
            lambda block, second: 4 + 8 / block + 32 / second
        ),
        "the first level costs 8 bits, not 32, once it is quantised itself": (
            lambda block, second: 4 + 32 / block + 32 / (block * second)
        ),
        "right for blocks of 64 and 256, and only there": (
            lambda block, second: solutions.bits_per_weight(64, 256)
        ),
        "is there a return": no_return,
        "these are not the bits": lambda block, second: 8,
    },
)
def bits_per_weight(attempt: Callable) -> None:
    """Bits a weight costs in NF4 with double quantisation."""
    cases = [(64, 256), (32, 128)]
    judge("3.1", attempt, cases, as_number, "the bits of a weight")


_LLAMA3 = SimpleNamespace(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    tie_word_embeddings=False,
)


def _sizes(config):
    """(inputs, outputs) of a layer's projections: attention's four, the MLP's three."""
    hidden, inner = config.hidden_size, config.intermediate_size
    key = hidden // config.num_attention_heads * config.num_key_value_heads
    sizes = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)]
    return [*sizes, (hidden, inner), (hidden, inner), (inner, hidden)]


def _count(sizes, config, rank):
    return config.num_hidden_layers * rank * sum(a + b for a, b in sizes)


@exercise(
    "3.2",
    solutions.lora_parameters,
    minutes=10,
    difficulty=2,
    trains="what LoRA trains, projection by projection",
    hints=(
        "A projection from n inputs to m outputs gets A (rank x n) and B (m x rank).",
        "Per layer: q and o are hidden x hidden, k and v have num_key_value_heads * "
        "(hidden / num_attention_heads) outputs, the MLP has three projections "
        "between hidden and inner.",
    ),
    mistakes={
        "keys and values have fewer heads than queries: 1,024 outputs, not 4,096": (
            lambda c, r: _count([(c.hidden_size,) * 2] * 4 + _sizes(c)[4:], c, r)
        ),
        "that is attention only; the MLP's three projections are adapted too": (
            lambda c, r: _count(_sizes(c)[:4], c, r)
        ),
        "that is one layer of 32": lambda c, r: solutions.lora_parameters(c, r) // 32,
        "these are the weights themselves; LoRA adds rank x (inputs + outputs) each": (
            lambda c, r: 32 * sum(a * b for a, b in _sizes(c))
        ),
        "each projection gets A and B: rank x inputs and outputs x rank": (
            lambda c, r: 32 * r * sum(a for a, _ in _sizes(c))
        ),
        "the rank must count, linearly": lambda c, r: solutions.lora_parameters(c, 16),
        "these are not LoRA's parameters": (
            lambda c, r: 2 * solutions.lora_parameters(c, r)
        ),
    },
)
def lora_parameters(attempt: Callable) -> None:
    """Trained weights of LoRA of this rank on all seven projections."""
    cases = [(_LLAMA3, 16), (_LLAMA3, 64)]
    judge("3.2", attempt, cases, as_number, "how many weights LoRA trains")


def _weights(seed, count=1 << 18):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def _error(weights, code):
    """Root mean square error of block quantisation with `code`, relative to the RMS."""
    code = torch.as_tensor(code, dtype=torch.float32)
    blocks = weights.view(-1, _BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    codes = torch.bucketize(blocks / scale, (code[1:] + code[:-1]) / 2)
    return ((code[codes] * scale - blocks).norm() / blocks.norm()).item()


def _unscaled_means(weights, code):
    values = weights.sort().values.view(16, -1).mean(1)
    return values / values.abs().max()


@exercise(
    "3.3",
    solutions.better_code,
    minutes=20,
    difficulty=3,
    trains="a 4-bit code fitted to its weights",
    hints=(
        "What is coded is a weight divided by the scale of its block of 64. Improve "
        "the values step by step, from NF4's.",
        "Lloyd's method: give each scaled weight its nearest value, then move each "
        "value to the mean of its weights, each counted by its scale squared; repeat "
        "some twenty times.",
    ),
    mistakes={
        "16 values": lambda weights, code: torch.linspace(-1, 1, 17),
        "ascending": lambda weights, code: code.flip(0),
        "larger than NF4's": lambda weights, code: torch.linspace(-1, 1, 16),
        "no smaller": lambda weights, code: code,
        "scale of its block": _unscaled_means,
        "is there a return": no_return,
    },
)
def better_code(attempt: Callable) -> None:
    """16 ascending values that err less than NF4 on normal weights."""
    from bitsandbytes.functional import get_4bit_type

    nf4 = get_4bit_type("nf4", device="cpu")
    got = returned(attempt, _weights(seed=1), nf4.clone())
    got = as_tensor(got, (16,), "the 16 values that four bits can name")
    why = "the values must be in ascending order"
    expect(bool((got.diff() > 0).all()), why, got.tolist(), "ascending")
    fresh = _weights(seed=2)  # a code may not know the weights that it is judged on
    mine, theirs = _error(fresh, got), _error(fresh, nf4)
    goal = f"below {theirs:.4f}"
    own = _unscaled_means(_weights(seed=1), nf4)
    why = "these fit the weights, but each weight is divided by the scale of its block"
    expect(not torch.allclose(got.float(), own, atol=1e-4), why, f"{mine:.4f}", goal)
    why = "that is no smaller than NF4's error"
    expect(not math.isclose(mine, theirs, rel_tol=1e-4), why, f"{mine:.4f}", goal)
    expect(mine < theirs, "that error is larger than NF4's", f"{mine:.4f}", goal)


@exercise(
    "3.4",
    solutions.for_a_t4,
    minutes=10,
    difficulty=2,
    trains="what to give up when a card is small",
    hints=(
        "Two things are wrong for a T4: the precision it computes in, and the memory "
        "that two pairs at a time take.",
        "replace(settings, compute=..., batch=..., accumulation=...): float16, and "
        "fewer pairs at a time, so that batch * accumulation stays 8.",
    ),
    mistakes={
        "has no bf16": lambda s: replace(s, batch=1, accumulation=8),
        "does not fit": lambda s: replace(s, compute="float16"),
        "other pairs per step": lambda s: replace(
            s, compute="float16", batch=1, accumulation=4
        ),
        "answers are cut": lambda s: replace(s, compute="float16", length=512),
        "its weights": lambda s: replace(
            s, precision="float16", compute="float16", batch=1, accumulation=8
        ),
        "is there a return": no_return,
    },
)
def for_a_t4(attempt: Callable) -> None:
    """Settings of Llama 3 8B that fit a T4 with the same pairs per step."""
    asked = memory.Settings(token_rows=3)
    got = returned(attempt, asked)
    why = "give back memory.Settings, with replace(settings, ...)"
    expect(isinstance(got, memory.Settings), why, type(got).__name__, "Settings")
    why = "a T4 has no bf16: what does it compute in?"
    expect(got.compute != "bfloat16", why, got.compute, "float16")
    why = "the model is to keep its weights in NF4"
    expect(got.precision == "nf4", why, got.precision, "nf4")
    why = "answers are cut that were not cut before"
    expect(got.length == asked.length, why, got.length, asked.length)
    pairs, wanted = got.batch * got.accumulation, asked.batch * asked.accumulation
    expect(pairs == wanted, "other pairs per step: another training", pairs, wanted)
    why = "trained token rows are what ends the answers"
    expect(got.token_rows == asked.token_rows, why, got.token_rows, asked.token_rows)
    fit = memory.fits("T4", _LLAMA3, got)
    parts = memory.predict(_LLAMA3, got).in_five()
    listed = ", ".join(f"{part} {size:.1f}" for part, size in parts.items())
    why = f"that does not fit a T4 yet; in GiB it needs {listed}"
    expect(fit.fits, why, f"{fit.needs_gib:.1f} GiB", f"{fit.has_gib:.1f} GiB at most")
