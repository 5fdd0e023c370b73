"""Proof that a merged model is the one that was trained and evaluated."""

from course_utils.publishing.gate.behaviour import (
    Distance,
    Observation,
    compare,
    distance,
    observe,
)
from course_utils.publishing.gate.gate_record import (
    GATE_FILE,
    fingerprint,
    model_files,
    read_record,
    require_passed,
    write_record,
)
from course_utils.publishing.gate.release import MAX_KL, Check, Gate, release_gate

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
