"""The fast trainer: ORPO, packed, with the same results as ORPOTrainer's.

`trainer` is the way in, `config` says what can be switched.
"""

from course_utils.training.fast.config import FastTrainingConfig
from course_utils.training.fast.trainer import PackedORPOTrainer

__all__ = ["FastTrainingConfig", "PackedORPOTrainer"]
