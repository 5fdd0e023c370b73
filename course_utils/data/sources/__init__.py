"""One source of preference data: its card, its rows, its pairs.

Knows: the data cards (`cards`), where rows come from (`loading`), and how a row becomes
a pair or is dropped for a reason (`pairs`). Does not know: tokens, other sources.
"""

from course_utils.data.sources.data_cards import (
    Card,
    card_of,
    cards,
    read_card,
    read_front_matter,
)
from course_utils.data.sources.loading import SourceUnavailable, from_hub, load_rows
from course_utils.data.sources.mapping import PAIR, REASONS, to_pairs

__all__ = [
    "PAIR",
    "REASONS",
    "Card",
    "SourceUnavailable",
    "card_of",
    "cards",
    "from_hub",
    "load_rows",
    "read_card",
    "read_front_matter",
    "to_pairs",
]
