"""What a method costs, counted in sequences that go through the model."""

from typing import NamedTuple

from course_utils.lab.base import BATCH


class Cost(NamedTuple):
    """Sequences of a run: learned with a gradient, and looked at without."""

    learned: int
    looked_at: int


# Of one pair and one step: SFT reads the chosen answer, ORPO both, DPO both twice: once
# with the model that learns and once with the one it started from.
PER_PAIR = {
    "none": Cost(learned=0, looked_at=0),
    "sft": Cost(learned=1, looked_at=0),
    "orpo": Cost(learned=2, looked_at=0),
    "dpo": Cost(learned=2, looked_at=2),
}


def sequences(run: dict) -> Cost:
    """Cost of a recorded run. DPO's holds its own steps, not those of its SFT."""
    pairs = run.get("steps", 0) * BATCH
    return Cost(*(pairs * each for each in PER_PAIR[run["method"]]))
