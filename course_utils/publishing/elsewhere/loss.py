"""ORPO's loss by its two definitions: TRL's, and LLaMA-Factory's.

The tools' own values are recorded by `tests/elsewhere/validate.py`.
"""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import chat, orpo


def loss_by_definition(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[dict],
    max_length: int,
    beta: float,
) -> list[dict]:
    """ORPO's loss of one batch as TRL defines it, and in two steps LLaMA-Factory's.

    model: a causal language model, used as it is (call .eval() first).
    tokenizer: with a chat template. pairs: the batch, as for chat.tokenize_pair.
    Returns: list of three dicts, each one change away from the one before: definition,
        used_by, tokens (how many the NLL sees), nll, preference (mean odds-ratio loss,
        before beta), loss, change (of the loss, from the row above), because.
    Raises: ValueError as orpo.mean_logps, for a pair without an answer token.
    """
    rows = [chat.tokenize_pair(tokenizer, pair, max_length) for pair in pairs]
    device, sides = model.device, {}
    for side in ("chosen", "rejected"):
        # Labels (B, T): of prompt and answer, and of the answer alone.
        everything = _padded(
            [getattr(row, f"{side}_input_ids") for row in rows], device
        )
        answers = _padded([getattr(row, f"{side}_labels") for row in rows], device)
        present = everything != orpo.IGNORE_INDEX
        ids = everything.masked_fill(~present, 0)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=present.long()).logits
        sides[side] = logits, everything, answers, orpo.mean_logps(logits, answers)
    logits, everything, answers, chosen_logps = sides["chosen"]
    rejected_logps = sides["rejected"][-1]
    preference = orpo.odds_ratio_loss(chosen_logps, rejected_logps).mean()
    table = []
    for definition, used_by, labels, nll, because in (
        (
            "prompt and answer, every token weighs the same",
            "TRL, Axolotl, this course",
            everything,
            orpo.nll(logits, everything),
            "",
        ),
        (
            "answer only, every token weighs the same",
            "none of these",
            answers,
            orpo.nll(logits, answers),
            "the prompt is no longer scored",
        ),
        (
            "answer only, every answer weighs the same",
            "LLaMA-Factory",
            answers,
            -chosen_logps.mean(),
            "short answers weigh as much as long ones",
        ),
    ):
        loss = orpo.orpo_loss(nll, chosen_logps, rejected_logps, beta).item()
        table.append(
            {
                "definition": definition,
                "used_by": used_by,
                # The first token of a row is never predicted.
                "tokens": int((labels[:, 1:] != orpo.IGNORE_INDEX).sum()),
                "nll": nll.item(),
                "preference": preference.item(),
                "loss": loss,
                "change": loss - table[-1]["loss"] if table else 0.0,
                "because": because,
            }
        )
    return table


def _padded(rows, device):
    """Lists of ids as one (B, T) tensor, -100 behind the shorter ones."""
    rows = [torch.tensor(row, device=device) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True, padding_value=orpo.IGNORE_INDEX
    )
