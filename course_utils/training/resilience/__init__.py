"""A training that survives what a rented GPU does: kill, full memory, NaN, full disk.

with resilience.watched(trainer):
    last = resilience.last_whole_checkpoint(trainer.args.output_dir)
    trainer.train(resume_from_checkpoint=last)
"""

from course_utils.training.resilience.checkpoints import (
    broken_weights,
    last_whole_checkpoint,
    list_checkpoints,
    read_record,
    what_is_broken,
)
from course_utils.training.resilience.guard import NotFinite
from course_utils.training.resilience.lock import FolderInUse, locked
from course_utils.training.resilience.saving import (
    DiskFull,
    checkpoint_bytes,
    is_full,
    save_adapter,
)
from course_utils.training.resilience.watching import OutOfMemory, watched

__all__ = [
    "DiskFull",
    "FolderInUse",
    "NotFinite",
    "OutOfMemory",
    "broken_weights",
    "checkpoint_bytes",
    "is_full",
    "last_whole_checkpoint",
    "list_checkpoints",
    "locked",
    "read_record",
    "save_adapter",
    "watched",
    "what_is_broken",
]
