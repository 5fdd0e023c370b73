"""The preference mix: all sources together, counted, cleaned, shuffled, split.

Modules: `build` joins the sources, `duplicates` finds what repeats, `contamination`
what a benchmark asks, `mix_card` writes down what was done.
"""

from course_utils.data.mixing.build import (
    ASKED,
    CAP,
    LONG,
    WEIGHT,
    Mix,
    build,
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
from course_utils.data.texts import questions

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
