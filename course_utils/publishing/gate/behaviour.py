"""What a model does on prompts, and how far two models are apart in that.

A trained and a merged 8B do not fit one card together. So the trained one is observed
first, kept as numbers in ordinary memory, and can be freed before the other is loaded.
"""

from dataclasses import dataclass

import numpy as np
import torch
from bitsandbytes.nn import Linear4bit
from scipy import stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.evaluation import Estimate, autocast, estimate

BATCH = 32


@dataclass(frozen=True)
class Behaviour:
    """A model's own answers, and its logits along a reference's answers.

    questions, answers: n lists of token ids; an answer ends with the end of turn, if it
        ends. logits: n CPU tensors (tokens of the reference's answer, vocabulary) in
        the model's dtype: row t is what predicts token t.
    """

    questions: list[list[int]]
    answers: list[list[int]]
    logits: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Distance:
    """How far a model is from the reference, on n prompts.

    kl: Estimate of KL(reference || other) in nats, a mean over the tokens of the
        reference's answers, with a 95 % interval over prompts. max_logit_difference:
        over these tokens and the whole vocabulary. same_next_token: share of tokens
        for which both have the same argmax. same_answers: Estimate, share of prompts
        with the same greedy answer. stop_is_argmax: share of the reference's ended
        answers after which the end of turn is the other's argmax, None if none ended.
        ended, reference_ended: share of greedy answers that end.
    """

    n: int
    tokens: int
    kl: Estimate
    max_logit_difference: float
    same_next_token: float
    same_answers: Estimate
    stop_is_argmax: float | None
    ended: float
    reference_ended: float

    def __str__(self) -> str:
        return (
            f"KL {self.kl.value:.1e} [{self.kl.low:.1e}, {self.kl.high:.1e}] nats "
            f"per token, max |Δlogit| {self.max_logit_difference:.2g}, same next token "
            f"{self.same_next_token:.1%}, same answers {self.same_answers} (n = "
            f"{self.n} answers, {self.tokens} tokens)"
        )


@dataclass(frozen=True)
class Observation:
    """A trained model's behaviour, and what a candidate needs to be compared with it.

    noise: Distance of the trained model from itself, computed another way.
    vocabulary: rows of its input table, rows of its head, its config's vocab_size.
    """

    prompts: list[list[dict]]
    reference: Behaviour
    noise: Distance
    vocabulary: tuple[int, int, int]
    end: int
    pad: int
    max_new_tokens: int


def observe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict]],
    max_new_tokens: int = 112,
) -> Observation:
    """Observe the model that was trained and evaluated.

    model: a causal language model, with its adapter. tokenizer: with chat template, and
        the end of turn as eos. prompts: list of lists of messages.
    Returns: Observation, with nothing of the model in it.
    Raises: ValueError without at least two prompts.

    It is computed as training computed it. The noise is what the same model does in
    other batches and, for 4-bit weights, with the kernels of evaluation. On CPUs with
    bf16 instructions these kernels round differently, and bitsandbytes repacks the
    weights for them permanently. So give a model that was not evaluated yet, or the
    noise will be too small.
    """
    if len(prompts) < 2:
        raise ValueError(f"A proof needs at least two prompts, and got {len(prompts)}.")
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    questions, stop = encode(tokenizer, prompts), {"eos_token_id": end}
    model.eval()
    quantised = [m for m in model.modules() if isinstance(m, Linear4bit)]
    for layer in quantised:
        layer.train()  # which kernel, and nothing else: dropout is a module of its own
    answers = greedy(model, questions, pad, max_new_tokens, **stop)
    logits = logits_along(model, questions, answers, pad)
    reference = Behaviour(questions, answers, logits)
    for layer in quantised:
        layer.eval()
    other = Behaviour(
        questions,
        greedy(model, questions, pad, max_new_tokens, batch=BATCH // 3, **stop),
        logits_along(model, questions, answers, pad, batch=8),
    )
    noise = distance(reference, other, end)
    tables = vocabulary(model)
    return Observation(prompts, reference, noise, tables, end, pad, max_new_tokens)


def compare(observation: Observation, model: PreTrainedModel) -> Distance:
    """Distance of a model in memory from the observed one.

    Raises: ValueError if its vocabulary has another size: then no logits compare.
    """
    if vocabulary(model) != observation.vocabulary:
        raise ValueError(
            f"The vocabulary has {vocabulary(model)} rows and ids; the trained model's "
            f"has {observation.vocabulary}. Was it resized?"
        )
    o = observation
    model.eval()
    stop = {"eos_token_id": o.end}
    answers = greedy(model, o.reference.questions, o.pad, o.max_new_tokens, **stop)
    logits = logits_along(model, o.reference.questions, o.reference.answers, o.pad)
    return distance(
        o.reference, Behaviour(o.reference.questions, answers, logits), o.end
    )


def distance(reference: Behaviour, other: Behaviour, end: int) -> Distance:
    """Distance between two Behaviours along the same reference's answers."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    kl, tokens, same, largest, stops = [], [], [], [], []
    alike = zip(reference.answers, reference.logits, other.logits, strict=True)
    for answer, p, q in alike:
        p, q = p.to(place).double(), q.to(place).double()
        log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
        kl.append(float((log_p.exp() * (log_p - log_q)).sum()))
        same.append(int((p.argmax(-1) == q.argmax(-1)).sum()))
        largest.append(float((p - q).abs().max()))
        tokens.append(len(answer))
        if answer[-1] == end:
            stops.append(int(q[-1].argmax()) == end)
    pairs = zip(reference.answers, other.answers, strict=True)
    equal = np.array([first == second for first, second in pairs])
    return Distance(
        n=len(kl),
        tokens=sum(tokens),
        kl=_per_token(np.array(kl), np.array(tokens)),
        max_logit_difference=float(np.max(largest)),  # NaN stays NaN
        same_next_token=sum(same) / sum(tokens),
        same_answers=estimate(equal),
        stop_is_argmax=sum(stops) / len(stops) if stops else None,
        ended=_ended(other.answers, end),
        reference_ended=_ended(reference.answers, end),
    )


def _per_token(sums, tokens):
    """Estimate of sum / tokens; the bootstrap draws entire prompts."""

    def mean(sums, tokens, axis=-1):
        return sums.sum(axis) / tokens.sum(axis)

    value = float(mean(sums, tokens))
    if not np.isfinite(value) or len(np.unique(sums / tokens)) == 1:
        return Estimate(value, value, value, len(sums))  # nothing to resample
    interval = stats.bootstrap(
        (sums, tokens),
        mean,
        paired=True,
        vectorized=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high), len(sums))


def _ended(answers, end):
    return sum(answer[-1:] == [end] for answer in answers) / len(answers)


def vocabulary(model: PreTrainedModel) -> tuple[int, int, int]:
    """(rows of the input table, rows of the head, the config's vocab_size)."""
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return (*(table.weight.shape[0] for table in tables), model.config.vocab_size)


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: list[list[dict]]
) -> list[list[int]]:
    """Token ids of the prompts, ready for an answer."""
    texts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    # The template has written the BOS.
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def greedy(
    model: PreTrainedModel,
    questions: list[list[int]],
    pad: int,
    max_new_tokens: int,
    batch: int = BATCH,
    **stop: int,
) -> list[list[int]]:
    """Token ids of each greedy answer, up to and including the end token.

    stop: eos_token_id; without it the model's own generation config says where to stop.
    """
    answers = []
    for start in range(0, len(questions), batch):
        ids, mask = _left_padded(questions[start : start + batch], pad, model.device)
        with autocast(model):
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **stop,
            )[:, ids.shape[1] :].tolist()
        for answer in out:
            while len(answer) > 1 and answer[-1] == pad:
                answer.pop()
            answers.append(answer)
    return answers


def _left_padded(rows, pad, device):
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@torch.no_grad()
def logits_along(
    model: PreTrainedModel,
    questions: list[list[int]],
    answers: list[list[int]],
    pad: int,
    batch: int = 1,
) -> tuple[torch.Tensor, ...]:
    """n CPU tensors (tokens of the answer, vocabulary): what predicts its tokens."""
    found = []
    for start in range(0, len(questions), batch):
        part = slice(start, start + batch)
        pairs = zip(questions[part], answers[part], strict=True)
        rows = [question + answer for question, answer in pairs]
        ids, mask = _left_padded(rows, pad, model.device)
        longest = max(map(len, answers[part]))
        with autocast(model):
            logits = model(
                input_ids=ids, attention_mask=mask, logits_to_keep=longest + 1
            ).logits.cpu()
        # The positions that predict the answer's tokens: one before each.
        found += [
            row[-1 - len(answer) : -1].clone()
            for row, answer in zip(logits, answers[part], strict=True)
        ]
    return tuple(found)
