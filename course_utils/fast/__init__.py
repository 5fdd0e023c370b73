"""The fast trainer: TRL's ORPO, packed, with the same results.

Knows: nothing itself; `trainer` is the way in, `levers` what can be switched.
"""

from course_utils.fast.levers import Levers
from course_utils.fast.trainer import PackedORPOTrainer

__all__ = ["Levers", "PackedORPOTrainer"]
