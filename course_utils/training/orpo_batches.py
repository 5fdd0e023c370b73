"""Tokenised rows as padded batches."""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from course_utils.chat.tokens import IGNORE_INDEX, has_answer

SIDES = ("chosen", "rejected")
PADDING = {"input_ids": None, "attention_mask": 0, "labels": IGNORE_INDEX}
NO_ANSWER = "no token of the"


def no_room(length: int, side: str) -> str:
    """What is wrong with a row of `length` tokens whose answer has no scored token."""
    return (
        f"{NO_ANSWER} {side} answer is left to score. Its prompt probably fills "
        f"max_length ({length} tokens in all), and TRL would compute NaN. Drop such "
        "rows (chat.check_pairs), or raise max_length."
    )


@dataclass
class PairCollator:
    """Pads rows on the right: (B, T) tensors, T the longest of either side.

    Raises: ValueError if a row has no answer to score.
    """

    pad_token_id: int

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = {}
        for side in SIDES:
            for number, row in enumerate(rows):
                labels = row[f"{side}_labels"]
                if not has_answer(labels):
                    text = no_room(len(labels), side)
                    raise ValueError(f"row {number} of a batch: {text}")
            for key, padding in PADDING.items():
                batch[f"{side}_{key}"] = pad_sequence(
                    [torch.tensor(row[f"{side}_{key}"]) for row in rows],
                    batch_first=True,
                    padding_value=self.pad_token_id if padding is None else padding,
                )
        return batch


def both_sides(batch: dict, key: str, padding: int) -> torch.Tensor:
    """(2B, T): the chosen rows of a padded batch, and below them the rejected ones."""
    rows = [*batch[f"chosen_{key}"], *batch[f"rejected_{key}"]]
    return pad_sequence(rows, batch_first=True, padding_value=padding)
