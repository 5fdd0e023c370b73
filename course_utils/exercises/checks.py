"""Every check, and what helps with it: hints, solutions, quizzes, the map.

In a notebook, `checks.mask_prompt(mask_prompt)` checks an attempt, `checks.hint("1.2")`
gives a hint, `checks.solution("1.2")` shows a solution, and `checks.quiz("01")` asks
five questions.
"""
# ruff: noqa: F401 - the names that notebooks use

import pandas as pd

from course_utils.exercises.comparing import (
    acc_norm,
    paired_pairs_needed,
    seed_interval,
    suite_average,
)
from course_utils.exercises.data import my_rule, prompt_of, similarity, swapped_digits
from course_utils.exercises.hunts.comparing import (
    hunt_learned_nothing,
    hunt_not_found_again,
)
from course_utils.exercises.hunts.data import hunt_held_out, hunt_idle_source
from course_utils.exercises.hunts.publishing import (
    hunt_rambles_elsewhere,
    hunt_refused_merges,
)
from course_utils.exercises.hunts.speed import hunt_other_loss, hunt_too_fast
from course_utils.exercises.hunts.training import hunt_never_stops, hunt_talks_to_itself
from course_utils.exercises.loading import (
    better_code,
    bits_per_weight,
    for_a_t4,
    lora_parameters,
)
from course_utils.exercises.mechanism import EXERCISES, hint, material, solution
from course_utils.exercises.merging import (
    hidden_share,
    mean_kl,
    merged_weight,
    rotation_order,
)
from course_utils.exercises.quizzes import quiz
from course_utils.exercises.speed import branch_mask, padding_share
from course_utils.exercises.start import profile_of, seen
from course_utils.exercises.theory import delta, log_odds, mask_prompt
from course_utils.exercises.training import furthest_move, pairs_needed


def exercise_map() -> pd.DataFrame:
    """One row per exercise and hunt: notebook, kind, minutes, difficulty, what it
    trains; the index is its number.
    """
    rows = [
        {
            "number": each.number,
            "notebook": each.notebook,
            "kind": "hunt" if each.recipe else "exercise",
            "minutes": each.minutes,
            "difficulty": each.dots,
            "what it trains": each.trains,
        }
        for each in EXERCISES.values()
    ]
    return pd.DataFrame(rows).sort_values("number").set_index("number")
