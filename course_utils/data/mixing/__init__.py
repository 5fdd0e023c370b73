"""The preference mix: all sources together, counted, cleaned, shuffled, split.

Knows: how to join sources (`build`), what repeats (`duplicates`), what a benchmark asks
(`contamination`), and how to write down what was done (`card`). Does not know: where
rows came from, tokens.
"""

from course_utils.data.mixing.build import (
    ASKED,
    CAP,
    LONG,
    WEIGHT,
    Mix,
    build,
    questions,
)
from course_utils.data.mixing.contamination import (
    BENCHMARKS,
    benchmark_prompts,
    find_overlap,
)
from course_utils.data.mixing.duplicates import (
    NEAR,
    REPEAT,
    near_repeats,
    overlap,
    repeats,
)
from course_utils.data.mixing.mix_card import card, write_card

__all__ = [
    "ASKED",
    "BENCHMARKS",
    "CAP",
    "LONG",
    "NEAR",
    "REPEAT",
    "WEIGHT",
    "Mix",
    "benchmark_prompts",
    "build",
    "card",
    "find_overlap",
    "near_repeats",
    "overlap",
    "questions",
    "repeats",
    "write_card",
]
