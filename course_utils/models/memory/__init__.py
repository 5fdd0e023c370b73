"""Memory of a training step, predicted from a configuration by arithmetic."""

from course_utils.models.memory.advice import (
    ALLOWANCE_GIB,
    CARDS_GIB,
    Change,
    Fit,
    fits,
    spare_gib,
    what_would_save,
)
from course_utils.models.memory.settings import Settings
from course_utils.models.memory.step import Prediction, predict
from course_utils.models.memory.weights import static_bytes, weight_shapes

__all__ = [
    "ALLOWANCE_GIB",
    "CARDS_GIB",
    "Change",
    "Fit",
    "Prediction",
    "Settings",
    "fits",
    "predict",
    "spare_gib",
    "static_bytes",
    "weight_shapes",
    "what_would_save",
]
