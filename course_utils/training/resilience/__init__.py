"""A training that survives what a rented GPU does: kill, full memory, NaN, full disk.

Knows: which checkpoint is whole, how a Trainer's step and save fail, and what to tell
the learner then. Does not know: settings' memory (`memory`), losses, models.

    with resilience.watched(trainer):
        last = resilience.last_whole_checkpoint(trainer.args.output_dir)
        trainer.train(resume_from_checkpoint=last)
"""

from course_utils.training.resilience.checkpoints import (
    DiskFull,
    checkpoint_bytes,
    last_whole_checkpoint,
)
from course_utils.training.resilience.guard import NotFinite
from course_utils.training.resilience.watching import OutOfMemory, watched

__all__ = [
    "DiskFull",
    "NotFinite",
    "OutOfMemory",
    "checkpoint_bytes",
    "last_whole_checkpoint",
    "watched",
]
