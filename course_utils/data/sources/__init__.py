"""One source of preference data: its card, its rows, its pairs.

Modules: `data_cards`, `rules` (which rows a card keeps), `loading` and `files` (where
rows come from), `mapping` (how a row becomes a pair, or is dropped for a reason).
Knows neither tokens nor other sources.
"""

from course_utils.data.sources.data_cards import (
    Card,
    card_of,
    cards,
    read_card,
    read_front_matter,
)
from course_utils.data.sources.files import read_json_lines
from course_utils.data.sources.loading import SourceUnavailable, from_hub, load_rows
from course_utils.data.sources.mapping import PAIR, REASONS, to_pairs
from course_utils.data.sources.rules import Rule

__all__ = [
    "PAIR",
    "REASONS",
    "Card",
    "Rule",
    "SourceUnavailable",
    "card_of",
    "cards",
    "from_hub",
    "load_rows",
    "read_card",
    "read_front_matter",
    "read_json_lines",
    "to_pairs",
]
