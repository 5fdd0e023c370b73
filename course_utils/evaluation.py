"""How good a model is: preference accuracy, verified generations, and their intervals.

Knows: held-out pairs, log-probabilities of answers, generation, the bootstrap. Does not
know: how the model was trained.

All methods are measured by the same functions, because trainers do not agree: TRL's
ORPO logs mean log-probs per token, its DPO logs sums.
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
        """(N,) log odds ratio, chosen over rejected, in nats; > 0: chosen preferred."""
        return _log_odds(self.chosen) - _log_odds(self.rejected)

    @property
    def preferred(self):
        """(N,) bool: the model finds the chosen answer likelier, per token."""
        return self.chosen > self.rejected


_COLUMNS = (
    "chosen_input_ids",
    "chosen_labels",
    "rejected_input_ids",
    "rejected_labels",
)


def _log_odds(logps):
    return logps - np.log(-np.expm1(logps))


@torch.no_grad()
def score_pairs(model, tokenizer, pairs, max_length=1024, batch_size=32):
    """Log-probs of chosen and rejected answers under the model.

    pairs: rows with prompt (messages), chosen and rejected (lists of one message).
    Returns: PairScores in the order of `pairs`.
    Raises: ValueError for a pair whose prompt leaves no answer within max_length.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 3 (mean over the answer's tokens,
    end-of-turn token included).
    """
    tokenized = [chat.tokenize_pair(tokenizer, pair, max_length) for pair in pairs]
    rows = [{name: getattr(row, name) for name in _COLUMNS} for row in tokenized]
    return score_rows(model, rows, tokenizer.pad_token_id, batch_size)


@torch.no_grad()
def score_rows(model, rows, pad_token_id, batch_size=32):
    """As `score_pairs`, of rows that are tokens already.

    rows: dicts with the four columns that TRL's ORPOTrainer makes (input ids and
    labels of chosen and rejected); -100 marks what is not scored.
    """
    sequences = [
        (row[f"{side}_input_ids"], row[f"{side}_labels"])
        for side in ("chosen", "rejected")
        for row in rows
    ]
    for i, (_, labels) in enumerate(sequences):
        if all(label == -100 for label in labels):
            raise ValueError(
                f"Row {i % len(rows)} has no answer token to score: its prompt fills "
                "max_length. Raise max_length, or drop it with chat.check_pairs."
            )
    # Neighbours of like length share a batch, so that little of it is padding.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    scores = np.zeros(len(sequences))
    was_training = model.training
    model.eval()
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        scores[batch] = _answer_logps(
            model, pad_token_id, [sequences[i] for i in batch]
        )
    model.train(was_training)
    return PairScores(scores[: len(rows)], scores[len(rows) :])


def autocast(model):
    """The precision that a half-precision or 4-bit model computes in, as in training.

    Preparing a 4-bit model for training leaves its norms and its head in float32, so
    outside autocast float32 and half-precision matrices would meet and raise.
    """
    config = getattr(model.config, "quantization_config", None)
    dtype = config.bnb_4bit_compute_dtype if config is not None else model.dtype
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(model.device.type, dtype if half else None, enabled=half)


def _answer_logps(model, pad_token_id, sequences):
    """(B,) mean log-prob of the labelled tokens of each (input ids, labels)."""

    def padded(rows, value):
        rows = [torch.tensor(row) for row in rows]
        batch = torch.nn.utils.rnn.pad_sequence(
            rows, batch_first=True, padding_value=value
        )
        return batch.to(model.device)

    ids = padded([ids for ids, _ in sequences], pad_token_id)
    labels = padded([labels for _, labels in sequences], -100)
    mask = padded([[1] * len(ids) for ids, _ in sequences], 0)
    # Only positions that predict an answer token need logits over the vocabulary.
    first = int((labels != -100).any(0).nonzero()[0])
    kept = ids.shape[1] - first + 1
    with autocast(model):
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept).logits
    targets = labels[:, first:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2),
        targets,
        reduction="none",
        ignore_index=-100,
    )
    return (-losses.sum(1) / (targets != -100).sum(1)).double().cpu().numpy()


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt, and whether it ended its turn by itself."""

    text: str
    ended: bool


@torch.no_grad()
def generate(
    model, tokenizer, prompts, temperature, max_new_tokens=112, batch_size=70, seed=0
):
    """One answer per prompt. temperature 0: greedy; otherwise plain sampling (top-p 1).

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
        with autocast(model):
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
    """Judge generations exactly, by program; only the small world's prompts can be."""
    verdicts = [
        world.verify(prompt, g.text)
        for prompt, g in zip(prompts, generations, strict=True)
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
    """Mean and 95 % interval over items: Wilson for yes/no, BCa bootstrap for numbers.

    values: (N,) bool or float. Raises: ValueError if there are fewer than two, or if
    all numbers are equal.
    """
    values = np.asarray(values)
    if len(values) < 2:
        raise ValueError(f"An interval needs at least 2 items, got {len(values)}.")
    if values.dtype != bool and (values == values[0]).all():
        raise ValueError(
            f"All {len(values)} numbers are {values[0]}: resampling them cannot say "
            "how sure that is. If they count yes and no, give them as bool."
        )
    if values.dtype == bool:
        count = stats.binomtest(int(values.sum()), len(values))
        interval = count.proportion_ci(method="wilson")
    else:
        interval = stats.bootstrap(
            (values,), np.mean, n_resamples=2000, rng=np.random.default_rng(seed)
        ).confidence_interval
    return Estimate(
        float(values.mean()), float(interval.low), float(interval.high), len(values)
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same n items, each right or wrong on each item.

    difference: Estimate of second minus first. gained, lost: items that the second, or
    the first, alone got right. p_value: McNemar's exact test, two-sided.
    """

    difference: Estimate
    gained: int
    lost: int
    p_value: float

    def __str__(self):
        d, counts = self.difference, f"{self.gained} gained and {self.lost} lost"
        interval = f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]"
        return f"{interval}, {counts} of {d.n}, p = {self.p_value:.2g}"


def compare_paired(first, second, seed=0):
    """Comparison of two models; its bootstrap keeps an item's two answers together.

    first, second: (N,) yes/no in the same order of items.
    Raises: ValueError if the two are not yes/no of equally many items, at least 2.
    """
    first, second = np.asarray(first), np.asarray(second)
    alike = first.shape == second.shape and first.ndim == 1
    if not alike or not np.isin([first, second], (0, 1)).all():
        raise ValueError(
            "A paired comparison needs yes or no of the same items from both models, "
            f"in bool or 0 and 1; got shapes {first.shape} and {second.shape}."
        )
    change = second.astype(float) - first.astype(float)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if gained + lost == 0:  # nothing to resample, but a share may differ elsewhere
        possible = estimate(change != 0).high
        return Comparison(Estimate(0.0, -possible, possible, len(change)), 0, 0, 1.0)
    if len(change) in (gained, lost):  # nothing to resample here either
        share, sign = estimate(change != 0), float(change[0])
        ends = sorted((sign * share.low, sign * share.high))
        difference = Estimate(sign, *ends, len(change))
    else:
        difference = estimate(change, seed)
    # Only items on which they differ can tell: a coin toss each, if neither is better.
    p_value = stats.binomtest(gained, gained + lost).pvalue
    return Comparison(difference, gained, lost, p_value)


class PreferenceCurve(TrainerCallback):
    """Scores held-out pairs while any trainer runs, always in the same way.

    `history` is a list of {"step", "chosen", "rejected", "margin", "accuracy"}: mean
    log-probs per token in nats, mean log odds ratio, share preferred.
    """

    def __init__(self, tokenizer, pairs, every, max_length=1024, on_point=None):
        """every: steps between points. on_point: called with the history at each."""
        self.tokenizer, self.pairs, self.every = tokenizer, pairs, every
        self.max_length, self.on_point = max_length, on_point
        self.history = []

    def _measure(self, model, step):
        scores = score_pairs(model, self.tokenizer, self.pairs, self.max_length)
        self.history.append(
            {
                "step": step,
                "chosen": scores.chosen.mean(),
                "rejected": scores.rejected.mean(),
                "margin": scores.margin.mean(),
                "accuracy": scores.preferred.mean(),
            }
        )
        if self.on_point:
            self.on_point(self.history)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 0:
            self._measure(model, 0)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(model, state.global_step)
