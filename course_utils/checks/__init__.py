"""Exercises: their checks, their tested solutions.

Knows: which exercises there are. In a notebook, `checks.mask_prompt(mask_prompt)`
    checks
an attempt, and `checks.solution("1.2")` shows a solution.
Does not know: the notebooks.
"""

from course_utils.checks.mechanism import EXERCISES, solution
from course_utils.checks.start import seen
from course_utils.checks.theory import delta, log_odds, mask_prompt
from course_utils.checks.training import furthest_move, pairs_needed

__all__ = [
    "EXERCISES",
    "delta",
    "furthest_move",
    "log_odds",
    "mask_prompt",
    "pairs_needed",
    "seen",
    "solution",
]
