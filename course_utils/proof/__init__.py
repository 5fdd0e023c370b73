"""Proof that a merged model is the one that was trained and evaluated."""

from course_utils.proof.compare import MAX_KL, Proof, answer_from_folder, prove_equal
from course_utils.proof.record import (
    GATE_FILE,
    fingerprint,
    read_record,
    require_passed,
    write_record,
)

__all__ = [
    "GATE_FILE",
    "MAX_KL",
    "Proof",
    "answer_from_folder",
    "fingerprint",
    "prove_equal",
    "read_record",
    "require_passed",
    "write_record",
]
