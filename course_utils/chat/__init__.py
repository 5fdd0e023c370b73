"""Chat format: how messages become tokens, and which tokens each loss term sees.

Here are the Llama 3 format, its control tokens, the tokens and labels of a pair, and
what a pair needs to survive tokenisation.
"""

from course_utils.chat.loss_view import LossView, loss_view, show_loss_view
from course_utils.chat.template import LLAMA3_TEMPLATE, use_llama3_chat
from course_utils.chat.tokens import (
    TokenizedPair,
    has_answer,
    pair_lengths,
    tokenize_pair,
)
from course_utils.chat.untrained import untrained_token_ids
from course_utils.chat.validation import assert_labels_hold_no_user_text, check_pairs

__all__ = [
    "LLAMA3_TEMPLATE",
    "LossView",
    "TokenizedPair",
    "assert_labels_hold_no_user_text",
    "check_pairs",
    "has_answer",
    "loss_view",
    "pair_lengths",
    "show_loss_view",
    "tokenize_pair",
    "untrained_token_ids",
    "use_llama3_chat",
]
