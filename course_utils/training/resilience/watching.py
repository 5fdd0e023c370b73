"""Around `trainer.train()`: failures in words, and before they do harm."""

import contextlib
import gc
import re
import traceback
from collections.abc import Iterator

import torch
from transformers import Trainer

from course_utils.models import memory
from course_utils.setup.patching import replaced
from course_utils.training.resilience.guard import Guard
from course_utils.training.resilience.saving import save_checkpoint

GIB = 2**30


class OutOfMemory(RuntimeError):
    """The GPU's memory was not enough. changes: list of memory.Change, or empty."""

    def __init__(self, message: str, changes: list) -> None:
        super().__init__(message)
        self.changes = changes


@contextlib.contextmanager
def watched(trainer: Trainer, settings: dict | None = None) -> Iterator:
    """Let `trainer.train()` in this block fail in words, and before it does harm.

    trainer: an ORPOTrainer or PackedORPOTrainer with a LoRA adapter.
    settings: what makes the run what it is; each checkpoint's record keeps it.
    Raises: OutOfMemory with settings to change and the predicted saving of each;
        NotFinite before the first step if a weight came in broken, before the optimizer
        step that would write NaN into the adapter, with the rows, and before a
        checkpoint would hold NaN; DiskFull if a checkpoint does not fit, without a
        half-written one.
    """
    guard = Guard(trainer)
    step, save = trainer.training_step, trainer._save_checkpoint

    def training_step(model, inputs, *rest, **named):
        loss = step(model, inputs, *rest, **named)
        guard.saw(inputs, loss)
        return loss

    def save_whole(*arguments, **named):
        save_checkpoint(trainer, lambda: save(*arguments, **named), settings)

    trainer.add_callback(guard)
    try:
        with (
            replaced(trainer, "training_step", training_step),
            # Callbacks hear of a checkpoint when it is written, not when that fails.
            replaced(trainer, "_save_checkpoint", save_whole),
        ):
            yield trainer
    except torch.OutOfMemoryError as error:
        # Frames of the traceback hold the step's tensors.
        traceback.clear_frames(error.__traceback__)
        guard.forget()
        raise _explained(error, trainer) from error
    finally:
        trainer.remove_callback(guard)


def _explained(error, trainer):
    """The OutOfMemory for a torch.OutOfMemoryError, with settings to change."""
    trainer.model.zero_grad()
    gc.collect()
    torch.cuda.empty_cache()
    # What PyTorch wanted at once; the step would have wanted more after that.
    tried = re.search(r"Tried to allocate ([\d.]+) ([GM])iB", str(error))
    short = float(tried[1]) / (1024 if tried[2] == "M" else 1) if tried else 0.0
    try:
        settings = memory.Settings.of_trainer(trainer)
    except ValueError as unknown:
        return OutOfMemory(
            f"The GPU's memory is full. There is no prediction for these settings "
            f"({unknown}). Halve per_device_train_batch_size first.",
            [],
        )
    config = trainer.model.config
    predicted = memory.predict(config, settings)
    if torch.cuda.is_available():
        allowed = torch.cuda.memory.get_per_process_memory_fraction()
        has = allowed * torch.cuda.get_device_properties(0).total_memory / GIB
        short = max(short, predicted.peak_gib + memory.ALLOWANCE_GIB - has)
    changes = memory.what_would_save(config, settings, short)
    parts = sorted(predicted.gib().items(), key=lambda part: -part[1])[:3]
    shown = ", ".join(f"{name} {size:.1f}" for name, size in parts)
    lines = [
        f"The GPU's memory is full, at least {short:.1f} GiB short. Predicted peak at "
        f"max_length: {predicted.peak_gib:.1f} GiB ({shown}). What to change:",
        *(f"  {change}" for change in changes),
        "Checkpoints are whole: after the change, resume from the last one.",
    ]
    return OutOfMemory("\n".join(lines), changes)
