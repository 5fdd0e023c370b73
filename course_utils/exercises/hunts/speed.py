"""The hunts of notebook 07: a packed row with another loss, a time too good."""

from collections.abc import Callable
from itertools import pairwise

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils.exercises.feedback import STILL, as_number, expect, returned
from course_utils.exercises.hunts import recipes, repairs
from course_utils.exercises.mechanism import exercise

_BOS, _EOS, _VOCABULARY = 0, 1, 50


def tiny_sequences(seed: int = 1) -> list[torch.Tensor]:
    """Sequences as hunt 7.3 packs them: ids (T_i,), from <bos> (0) to <eos> (1)."""
    draw = torch.Generator().manual_seed(seed)
    sequences = []
    for length in (6, 3, 9, 4):
        words = torch.randint(2, _VOCABULARY, (length,), generator=draw)
        sequences.append(torch.tensor([_BOS, *words.tolist(), _EOS]))
    return sequences


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A random Llama of two layers that reads them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def _plain_causal(sequences):
    packed = repairs.pack(sequences)
    size = packed["input_ids"].shape[1]
    mask = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
    return {**packed, "attention_mask": mask}


def _ends_masked(sequences):
    packed = recipes.pack(sequences)
    labels = packed["labels"].clone()
    labels[labels == _EOS] = -100
    return {**packed, "labels": labels}


def _first_two_masked(sequences):
    packed = recipes.pack(sequences)
    labels = packed["labels"].clone()
    labels[packed["position_ids"] <= 1] = -100
    return {**packed, "labels": labels}


def _labels_shifted(sequences):
    packed = repairs.pack(sequences)
    return {**packed, "labels": packed["labels"].roll(-1, dims=1)}


def _one_by_one(sequences):
    return repairs.pack(sequences[:1])


@exercise(
    "7.3",
    repairs.pack,
    recipe=recipes.pack,
    material=tiny_sequences,
    minutes=15,
    difficulty=2,
    trains="packing sequences into a row",
    hints=(
        "Compare token by token: count the scored tokens of the packed row, and of the "
        "sequences one by one. How many are there too many?",
        "The model scores label t with the logits of token t - 1. At a seam, token "
        "t - 1 ends another sequence. Give the first token of each sequence -100.",
    ),
    mistakes={
        "symptom is still there": lambda s: {**recipes.pack(s)},
        "see another sequence": _plain_causal,
        "end of a sequence is not": _ends_masked,
        "fewer tokens are scored": _first_two_masked,
        "labels are other tokens": _labels_shifted,
        "all sequences": _one_by_one,
        "return a dict": lambda sequences: torch.cat(sequences),
    },
)
@torch.no_grad()
def hunt_other_loss(attempt: Callable) -> None:
    """A packed row whose loss is that of its sequences one by one."""
    model, sequences = tiny_model(), tiny_sequences(seed=2)
    got = returned(attempt, [sequence.clone() for sequence in sequences])
    names = ("input_ids", "position_ids", "attention_mask", "labels")
    fits = isinstance(got, dict) and {*names} <= {*got}
    fits = fits and all(isinstance(got[name], torch.Tensor) for name in names)
    expect(fits, "return a dict of tensors for the model", type(got), names)
    tokens = sum(map(len, sequences))
    shape = tuple(got["input_ids"].shape)
    why = "all sequences belong into one row"
    expect(shape == (1, tokens), why, shape, (1, tokens))
    shape = tuple(got["labels"].shape)
    expect(shape == (1, tokens), "there is one label per token", shape, (1, tokens))
    loss = float(model(**got).loss)
    wrong = float(model(**recipes.pack(sequences)).loss)
    losses = [model(each[None], labels=each[None]).loss for each in sequences]
    weights = [len(each) - 1 for each in sequences]
    right = sum(float(x) * w for x, w in zip(losses, weights, strict=True))
    right /= sum(weights)
    shown, goal = f"loss {loss:.4f}", f"loss {right:.4f}"
    why = f"{STILL}: the packed loss is not the loss of the sequences"
    expect(abs(loss - wrong) > 1e-5, why, shown, goal)
    row = got["input_ids"][0]
    starts = (row == _BOS).nonzero().flatten().tolist()
    parts = [row[a:b].tolist() for a, b in pairwise([*starts, tokens])]
    why = "the row does not hold the sequences, one after another"
    expect(
        sorted(parts) == sorted(s.tolist() for s in sequences), why, parts, "all four"
    )
    other = got["input_ids"].clone()
    other[0, 1 : starts[1]] = 7  # the first sequence says something else
    logits, changed = (
        model(**{**got, "input_ids": ids, "labels": None}).logits[0, starts[1] :]
        for ids in (got["input_ids"], other)
    )
    why = "tokens see another sequence: what they predict depends on it"
    expect(torch.allclose(logits, changed, atol=1e-4), why, shown, goal)
    labels, ids = got["labels"][0, 1:], got["input_ids"][0, 1:]  # label 0 has no logits
    scored = labels != -100
    why = "the labels are other tokens than the row's own; the model shifts them"
    expect(bool((labels == ids)[scored].all()), why, shown, goal)
    ends = ids == _EOS
    why = "the end of a sequence is not scored, so a model would never learn to stop"
    expect(bool(scored[ends].all()), why, shown, goal)
    count = f"{int(scored.sum())} scored tokens"
    why = "fewer tokens are scored than in the sequences one by one"
    expect(int(scored.sum()) >= sum(weights), why, count, sum(weights))
    expect(abs(loss - right) < 1e-4, "this is another loss", shown, goal)


class Card:
    """A make-believe GPU with a clock of its own: it takes no real time.

    step() starts a training step and returns before it is done, as on a real card;
    the first `compiled` steps are compiled first, and that the CPU waits for.
    synchronize() waits until all is done. clock() is the time in seconds.
    """

    def __init__(
        self, step: float = 0.18, compiled: int = 3, waits: bool = False
    ) -> None:
        self._step, self._compiled, self._waits = step, compiled, waits
        self._now = self._done = 0.0

    def step(self) -> None:
        """Start a step."""
        self._now += 0.001  # to launch it
        if self._compiled:
            self._compiled -= 1
            self._now += 4.0
        self._done = max(self._now, self._done) + self._step
        if self._waits:
            self._now = self._done

    def synchronize(self) -> None:
        """Wait until the card is done."""
        self._now = max(self._now, self._done)

    def clock(self) -> float:
        """Seconds since the card was made."""
        return self._now


def _waits_only(card, steps=10):
    start = card.clock()
    for _ in range(steps):
        card.step()
    card.synchronize()
    return (card.clock() - start) / steps


def _warm_only(card, steps=10):
    for _ in range(10):
        card.step()
    card.synchronize()
    return recipes.seconds_per_step(card, steps)


def _warm_and_left_over(card, steps=10):
    for _ in range(10):
        card.step()
    return _waits_only(card, steps)


def _one_warm_step(card, steps=10):
    card.step()
    card.synchronize()
    return _waits_only(card, steps)


def _total(card, steps=10):
    return repairs.seconds_per_step(card, steps) * steps


@exercise(
    "7.4",
    repairs.seconds_per_step,
    recipe=recipes.seconds_per_step,
    material=Card,
    minutes=15,
    difficulty=2,
    trains="timing a training step",
    hints=(
        "Measure 10, 100 and 1,000 steps of a new card each. Then read the clock once "
        "more after card.synchronize(). What was not counted, and what was too much?",
        "Start ten steps and synchronize; read the clock; start the steps to be timed "
        "and synchronize again before you read the clock a second time.",
    ),
    mistakes={
        "symptom is still there": lambda card: recipes.seconds_per_step(card),
        "first steps": _waits_only,
        "still working": _warm_only,
        "before the first reading": _warm_and_left_over,
        "compile, are counted": _one_warm_step,
        "per step": _total,
        "one number": lambda card: "fast",
    },
)
def hunt_too_fast(attempt: Callable) -> None:
    """Seconds per step of a long training, on cards that compile and work ahead."""
    what = "seconds per step"
    for step in (0.18, 0.05):
        ahead, compiling = Card(step, compiled=0), Card(step, compiled=4, waits=True)
        got = as_number(returned(attempt, ahead), what)
        slow = as_number(returned(attempt, compiling), what)
        both = as_number(returned(attempt, Card(step, compiled=6)), what)
        as_before = recipes.seconds_per_step(Card(step, compiled=6))
        shown, goal = f"{both:.3f} s", f"{step:.3f} s"
        why = f"{STILL}: the time is not that of a long training"
        expect(abs(both - as_before) > 1e-6, why, shown, goal)
        why = "the card is still working when the clock is read"
        expect(got > 0.9 * step, why, f"{got:.3f} s", goal)
        why = "steps from before the first reading are counted too"
        expect(not 1.5 * step < got < 3 * step, why, f"{got:.3f} s", goal)
        why = "this is the time of all steps; return the time per step"
        expect(got < 3 * step, why, f"{got:.3f} s", goal)
        why = "the first steps, which compile, are counted: a long training has few"
        expect(slow < 1.1 * step, why, f"{slow:.3f} s", goal)
        expect(abs(both - step) < 0.1 * step, "this is another time", shown, goal)
