"""A tokenised preference pair: from a dataset's row, from a batch, and its length."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from course_utils.chat.tokens import IGNORE_INDEX
from course_utils.training.orpo_batches import no_room


@dataclass(frozen=True, eq=False)
class Pair:
    """Token ids of both conversations, and which of them belong to the answer.

    chosen_ids, rejected_ids: (n,) int64, prompt and answer, no padding.
    chosen_scored, rejected_scored: (n,) bool, True on the answer's tokens.
    """

    chosen_ids: np.ndarray
    chosen_scored: np.ndarray
    rejected_ids: np.ndarray
    rejected_scored: np.ndarray


def pair_from_row(row: Mapping, name: str = "this row") -> Pair:
    """The Pair of a row that ORPOTrainer tokenised.

    row: mapping with chosen_input_ids, chosen_labels and the same of rejected.
    name: what to call the row in an error.
    Raises: ValueError if an answer has no token to score.
    """
    columns = {}
    for side in ("chosen", "rejected"):
        columns[f"{side}_ids"] = np.asarray(row[f"{side}_input_ids"], dtype=np.int64)
        scored = np.asarray(row[f"{side}_labels"]) != IGNORE_INDEX
        if not scored[1:].any():
            raise ValueError(f"{name}: {no_room(len(scored), side)}")
        columns[f"{side}_scored"] = scored
    return Pair(**columns)


def pairs_from_batch(batch: dict) -> list[Pair]:
    """The Pairs of a padded batch, whichever side the padding is on.

    batch: what a collator returns: (B, T) tensors, attention masks among them.
    Raises: ValueError as pair_from_row, with the row's number in the batch.
    """
    arrays = {
        key: batch[key].cpu().numpy()
        for side in ("chosen", "rejected")
        for key in (f"{side}_input_ids", f"{side}_labels", f"{side}_attention_mask")
    }
    pairs = []
    for number in range(len(arrays["chosen_input_ids"])):
        row = {}
        for side in ("chosen", "rejected"):
            real = arrays[f"{side}_attention_mask"][number] == 1
            for key in (f"{side}_input_ids", f"{side}_labels"):
                row[key] = arrays[key][number][real]
        pairs.append(pair_from_row(row, f"row {number} of the batch"))
    return pairs


def filling_pairs(tokens: int, most: int) -> list[Pair]:
    """Pairs without content that fill a row of `tokens` tokens, at most `most` of them.

    For trying a row's shape out. Up to two tokens per pair are left for padding.
    """
    count = max(1, min(most, tokens // 16))
    size = tokens // count // 2
    chosen, rejected = np.zeros(size, int), np.ones(size, int)  # no common prefix
    scored = np.ones(size, dtype=bool)
    return [Pair(chosen, scored, rejected, scored)] * count


def shared_prefix(first: np.ndarray, second: np.ndarray) -> int:
    """Number of leading tokens that two sequences of ids have in common.

    first, second: (n,) and (m,) integer arrays. Returns: int between 0 and min(n, m).
    """
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


def packed_length(pair: Pair, share_prefix: bool = True) -> int:
    """Tokens that a pair takes in a row."""
    shared = shared_prefix(pair.chosen_ids, pair.rejected_ids) if share_prefix else 0
    return len(pair.chosen_ids) + len(pair.rejected_ids) - shared
