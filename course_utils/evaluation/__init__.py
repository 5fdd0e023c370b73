"""How good a model is, and how sure one can be of it.

All methods are measured by the same functions, because trainers do not agree: TRL's
ORPO logs mean log-probs per token, its DPO logs sums.
"""

from course_utils.evaluation.curve import PreferenceCurve
from course_utils.evaluation.generating import (
    Generation,
    Verdicts,
    generate,
    verify_generations,
)
from course_utils.evaluation.intervals import (
    Estimate,
    estimate,
    estimate_over_seeds,
    paired_difference,
)
from course_utils.evaluation.paired import (
    Comparison,
    compare_paired,
    detectable_difference,
)
from course_utils.evaluation.reading import SideBySide, side_by_side
from course_utils.evaluation.scoring import (
    AnswerScores,
    PairScores,
    autocast,
    half_precision,
    score_answers,
    score_pairs,
    score_rows,
)

__all__ = [
    "AnswerScores",
    "Comparison",
    "Estimate",
    "Generation",
    "PairScores",
    "PreferenceCurve",
    "SideBySide",
    "Verdicts",
    "autocast",
    "compare_paired",
    "detectable_difference",
    "estimate",
    "estimate_over_seeds",
    "generate",
    "half_precision",
    "paired_difference",
    "score_answers",
    "score_pairs",
    "score_rows",
    "side_by_side",
    "verify_generations",
]
