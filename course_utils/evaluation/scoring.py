"""Log-probabilities of given answers: of held-out pairs, and of any text after any."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import chat, orpo


@dataclass(frozen=True)
class PairScores:
    """Mean log-probability per answer token of N held-out pairs, in nats.

    chosen, rejected: (N,) float64, < 0.
    """

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def margin(self) -> np.ndarray:
        """(N,) log odds ratio, chosen over rejected, in nats; > 0: chosen preferred."""
        return _log_odds(self.chosen) - _log_odds(self.rejected)

    @property
    def preferred(self) -> np.ndarray:
        """(N,) bool: the model finds the chosen answer likelier, per token."""
        return self.chosen > self.rejected


@dataclass(frozen=True)
class AnswerScores:
    """Log-likelihood of N answers. total: (N,) float64, nats. tokens: (N,) int, > 0."""

    total: np.ndarray
    tokens: np.ndarray


_LOGITS_BYTES = 2**30  # in float32
_COLUMNS = (
    "chosen_input_ids",
    "chosen_labels",
    "rejected_input_ids",
    "rejected_labels",
)


def _log_odds(logps: np.ndarray) -> np.ndarray:
    """As orpo.log_odds; infinite, and no error, for an answer that is certain."""
    logps = torch.from_numpy(np.asarray(logps, dtype=float))
    return (logps - orpo.log1mexp(logps)).numpy()


def score_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[dict],
    max_length: int = 1024,
    batch_size: int = 32,
) -> PairScores:
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


def score_rows(
    model: PreTrainedModel, rows: list[dict], pad_token_id: int, batch_size: int = 32
) -> PairScores:
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
        if not chat.has_answer(labels):
            raise ValueError(
                f"Row {i % len(rows)} has no answer token to score: its prompt fills "
                "max_length. Raise max_length, or drop it with chat.check_pairs."
            )
    totals, tokens = _score_sequences(model, sequences, pad_token_id, batch_size)
    means = totals / tokens
    return PairScores(means[: len(rows)], means[len(rows) :])


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contexts: list[str],
    answers: list[str],
    batch_size: int = 32,
) -> AnswerScores:
    """Log-likelihood of each answer as the text that follows its context.

    contexts, answers: N strings each; a context holds the chat format, if there is
    one. The beginning-of-text token is added where the text does not begin with it.
    Returns: AnswerScores, in the same order.
    Raises: ValueError naming the first item whose answer has no token of its own, e.g.
    because its first letter shares a token with the end of the context.
    """
    sequences = []
    for i, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        before, ids = _encode(tokenizer, context), _encode(tokenizer, context + answer)
        if len(ids) <= len(before) or ids[: len(before)] != before:
            raise ValueError(
                f"Item {i}: in {(context[-20:] + answer[:20])!r} the answer does not "
                "begin with a token of its own. Move the space between context and "
                "answer to the answer."
            )
        sequences.append((ids, [-100] * len(before) + ids[len(before) :]))
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad  # masked, any id will do
    return AnswerScores(*_score_sequences(model, sequences, pad, batch_size))


def _encode(tokenizer, text):
    begun = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
    return tokenizer(text, add_special_tokens=not begun)["input_ids"]


@torch.no_grad()
def _score_sequences(model, sequences, pad_token_id, batch_size):
    """Of each (input ids, labels): summed log-prob of its labels, and their number."""
    # Neighbours of like length share a batch, so that little of it is padding.
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))
    totals = np.zeros(len(sequences))
    tokens = np.zeros(len(sequences), dtype=int)
    was_training = model.training
    model.eval()
    for batch in _batches(order, sequences, batch_size, model.config.vocab_size):
        totals[batch], tokens[batch] = _answer_logps(
            model, pad_token_id, [sequences[i] for i in batch]
        )
    model.train(was_training)
    return totals, tokens


def _batches(order, sequences, batch_size, vocabulary):
    """Parts of `order`, shortest sequences first, of at most batch_size sequences.

    With 128,256 tokens the logits of 32 long sequences would not fit a card beside an
    8B model, so a batch also ends where they could take more than _LOGITS_BYTES.
    """
    batch = []
    for i in order:
        values = (len(batch) + 1) * len(sequences[i][0]) * vocabulary
        if batch and (len(batch) == batch_size or 4 * values > _LOGITS_BYTES):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def half_precision(model: PreTrainedModel) -> torch.dtype | None:
    """The 16-bit dtype that the model computes in, as in training; None for float32.

    Preparing a 4-bit model for training leaves its norms and its head in float32, so
    outside autocast float32 and half-precision matrices would meet and raise.
    """
    config = getattr(model.config, "quantization_config", None)
    dtype = config.bnb_4bit_compute_dtype if config is not None else model.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


def autocast(model: PreTrainedModel) -> torch.autocast:
    """A context in which the model computes as it did in training."""
    dtype = half_precision(model)
    return torch.autocast(model.device.type, dtype, enabled=dtype is not None)


def _answer_logps(model, pad_token_id, sequences):
    """(B,) summed log-prob of the labelled tokens of each sequence; (B,) how many."""

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
    # Flat: over a transposed vocabulary the CPU kernel is off by 5e-6 nats per token.
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        targets.flatten(),
        reduction="none",
        ignore_index=-100,
    ).view_as(targets)
    counts = (targets != -100).sum(1)
    return (-losses.sum(1)).double().cpu().numpy(), counts.cpu().numpy()
