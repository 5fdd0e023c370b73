"""The fast trainer: TRL's ORPO, packed, with the same results.

Knows: nothing itself; `trainer` is the way in, `fast_config` what can be switched.
"""

from course_utils.training.fast.config import FastTrainingConfig
from course_utils.training.fast.trainer import PackedORPOTrainer

__all__ = ["FastTrainingConfig", "PackedORPOTrainer"]
