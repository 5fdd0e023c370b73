"""How good a model is: preference accuracy, verified generations, and their intervals.

Knows: held-out pairs, log-probabilities of answers, generation, the bootstrap. Does not
know: how the model was trained.

All methods are measured by the same functions, because trainers do not agree: TRL's ORPO
logs mean log-probs per token, its DPO logs sums.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from transformers import TrainerCallback

from . import chat, world


@dataclass(frozen=True)
class PairScores:
    """Mean log-probability per answer token of N held-out pairs, in nats.

    chosen, rejected: (N,) float64, < 0.
    """

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def margin(self):
        """(N,) log odds ratio, chosen over rejected, in nats. > 0 where chosen is preferred."""
        return _log_odds(self.chosen) - _log_odds(self.rejected)

    @property
    def preferred(self):
        """(N,) bool: the model finds the chosen answer likelier, per token."""
        return self.chosen > self.rejected


def _log_odds(logps):
    return logps - np.log(-np.expm1(logps))


@torch.no_grad()
def score_pairs(model, tokenizer, pairs, max_length=1024, batch_size=32):
    """Log-probs of chosen and rejected answers under the model.

    pairs: rows with prompt (messages), chosen and rejected (lists of one message).
    Returns: PairScores in the order of `pairs`.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 3 (mean over the answer's tokens,
    end-of-turn token included).
    """
    rows = [chat.tokenize_pair(tokenizer, pair, max_length) for pair in pairs]
    sequences = [(row.chosen_input_ids, row.chosen_labels) for row in rows]
    sequences += [(row.rejected_input_ids, row.rejected_labels) for row in rows]
    # Neighbours of like length share a batch, so that little of it is padding.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    scores = np.zeros(len(sequences))
    was_training = model.training
    model.eval()
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        scores[batch] = _answer_logps(model, tokenizer, [sequences[i] for i in batch])
    model.train(was_training)
    return PairScores(scores[: len(rows)], scores[len(rows) :])


def _answer_logps(model, tokenizer, sequences):
    """(B,) mean log-prob of the labelled tokens of each (input ids, labels)."""

    def padded(rows, value):
        rows = [torch.tensor(row) for row in rows]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
        return batch.to(model.device)

    ids = padded([ids for ids, _ in sequences], tokenizer.pad_token_id)
    labels = padded([labels for _, labels in sequences], -100)
    mask = padded([[1] * len(ids) for ids, _ in sequences], 0)
    # Only positions that predict an answer token need logits over the vocabulary.
    first = int((labels != -100).any(0).nonzero()[0])
    kept = ids.shape[1] - first + 1
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
    targets = labels[:, first:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, reduction="none", ignore_index=-100
    )
    return (-losses.sum(1) / (targets != -100).sum(1)).double().cpu().numpy()


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt, and whether it ended its turn by itself."""

    text: str
    ended: bool


@torch.no_grad()
def generate(model, tokenizer, prompts, temperature, max_new_tokens=112, batch_size=70, seed=0):
    """One answer per prompt. temperature 0 is greedy; otherwise plain sampling (top-p 1).

    prompts: list of lists of messages. Returns: list of Generation in the same order.
    The turn's end token is the tokenizer's eos token.
    """
    torch.manual_seed(seed)
    texts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    sampling = {"do_sample": False} if temperature == 0 else {
        "do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0
    }  # fmt: skip
    out = [None] * len(texts)
    was_training = model.training
    model.eval()
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        inputs = tokenizer(
            [texts[i] for i in batch],
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        ).to(model.device)
        ids = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )[:, inputs["input_ids"].shape[1] :]
        for i, answer in zip(batch, ids, strict=True):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            out[i] = Generation(text, bool((answer == tokenizer.eos_token_id).any()))
    model.train(was_training)
    return out


@dataclass(frozen=True)
class Verdicts:
    """The verifier's word on N generations of the small world; all arrays (N,) bool."""

    content: np.ndarray
    manners: np.ndarray
    ending: np.ndarray
    ended: np.ndarray

    @property
    def good(self):
        return self.content & self.manners & self.ending & self.ended


def verify_generations(prompts, generations):
    """Judge generations exactly, by program. Only prompts of the small world can be judged."""
    verdicts = [
        world.verify(prompt, g.text) for prompt, g in zip(prompts, generations, strict=True)
    ]
    columns = np.array(verdicts, dtype=bool).reshape(-1, 3).T
    return Verdicts(*columns, np.array([g.ended for g in generations], dtype=bool))


@dataclass(frozen=True)
class Estimate:
    """A mean of n items with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def estimate(values, seed=0):
    """Mean and 95 % interval over items: Wilson for yes/no, bootstrap (BCa) for numbers.

    values: (N,) bool or float. Raises: ValueError if there are fewer than two.
    """
    values = np.asarray(values)
    if len(values) < 2:
        raise ValueError(f"An interval needs at least 2 items, got {len(values)}.")
    if values.dtype == bool:
        count = stats.binomtest(int(values.sum()), len(values))
        interval = count.proportion_ci(method="wilson")
    else:
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=2000, rng=np.random.default_rng(seed)
        ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high), len(values))


class PreferenceCurve(TrainerCallback):
    """Scores held-out pairs while any trainer runs, always in the same way.

    `history` is a list of {"step", "chosen", "rejected", "margin", "accuracy"}: mean
    log-probs per token in nats, mean log odds ratio, share preferred.
    """

    def __init__(self, tokenizer, pairs, every):
        self.tokenizer, self.pairs, self.every = tokenizer, pairs, every
        self.history = []

    def _measure(self, model, step):
        scores = score_pairs(model, self.tokenizer, self.pairs)
        self.history.append(
            {
                "step": step,
                "chosen": scores.chosen.mean(),
                "rejected": scores.rejected.mean(),
                "margin": scores.margin.mean(),
                "accuracy": scores.preferred.mean(),
            }
        )

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._measure(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(model, state.global_step)
