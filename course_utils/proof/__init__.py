"""Proof that a merged model is the one that was trained and evaluated."""

from course_utils.proof.behaviour import (
    Distance,
    Observation,
    compare,
    distance,
    observe,
)
from course_utils.proof.gate import MAX_KL, Check, Gate, release_gate
from course_utils.proof.record import (
    GATE_FILE,
    fingerprint,
    model_files,
    read_record,
    require_passed,
    write_record,
)

__all__ = [
    "GATE_FILE",
    "MAX_KL",
    "Check",
    "Distance",
    "Gate",
    "Observation",
    "compare",
    "distance",
    "fingerprint",
    "model_files",
    "observe",
    "read_record",
    "release_gate",
    "require_passed",
    "write_record",
]
