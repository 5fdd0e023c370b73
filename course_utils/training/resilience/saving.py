"""Saving so that a full disk, a kill or NaN leaves what was whole before."""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from course_utils.setup.patching import replaced
from course_utils.training.resilience.checkpoints import (
    STATE,
    WEIGHTS,
    broken_weights,
    list_checkpoints,
    what_is_broken,
    write_record,
)
from course_utils.training.resilience.finite import (
    first_not_finite,
    optimizer_state,
    weights,
)
from course_utils.training.resilience.guard import NotFinite

GIB = 2**30
UNFINISHED = ".unfinished"  # in the output folder: what is being written
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch report the system's error in words only.
_FULL_IN_WORDS = re.compile(
    r"No space left|Disk quota|File too large|os error (28|122|27)\b|"
    r"PytorchStreamWriter failed|unexpected pos"
)
_BESIDES_TENSORS = 32 * 2**20  # tokenizer, states and configurations of a checkpoint


class DiskFull(OSError):
    """Something could not be written; the checkpoints before it are whole."""


def checkpoint_bytes(trainer: Trainer) -> int:
    """What a checkpoint of this trainer takes on disk, about: trained weights and the
    optimizer's state, and 32 MiB for the rest."""
    trained = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    state = optimizer_state(getattr(trainer, "optimizer", None))
    return trained + sum(tensor.nbytes for _, tensor in state) + _BESIDES_TENSORS


def require_finite(trainer: Trainer) -> None:
    """Raise NotFinite if a trained weight or the optimizer's state is not finite."""
    broken = first_not_finite(
        [*weights(trainer.model, trained=True), *optimizer_state(trainer.optimizer)]
    )
    if broken:
        step = trainer.state.global_step
        raise NotFinite(
            f"Step {step} left NaN or infinite values in {broken}, and nothing was "
            f"saved. The learning rate, {trainer.args.learning_rate:g}, is the first "
            f"suspect: lower it. {_kept(Path(trainer.args.output_dir))}",
            step,
            [],
        )


def save_checkpoint(
    trainer: Trainer, save: Callable[[], None], settings: dict | None
) -> None:
    """Let the Trainer save a checkpoint, which gets its name once it is whole.

    save: what Trainer._save_checkpoint does; it writes into trainer's output folder.
    settings: what to write into the checkpoint's record about the run.
    Raises: DiskFull, NotFinite, or what `save` raises; then the checkpoints before are
        as they were, and nothing of the new one is left.
    """
    folder = Path(trainer.args.output_dir)
    name = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    require_finite(trainer)
    needs = checkpoint_bytes(trainer)
    with _unfinished(trainer, folder, name, needs) as place:
        with replaced(trainer, "_get_output_dir", lambda trial=None: str(place)):
            save()
        trainer.accelerator.wait_for_everyone()
        if not trainer.args.should_save:  # of several processes, one writes the rest
            return
        made = place / name
        if trainer.state.best_model_checkpoint == str(made):
            trainer.state.best_model_checkpoint = str(folder / name)
            trainer.state.save_to_json(str(made / STATE))
        write_record(made, trainer.accelerator.num_processes, settings)
        broken = what_is_broken(made)
        if broken:
            raise OSError(f"{name} was written and is not whole: {broken}.")
        if (folder / name).exists():  # of an earlier try, not whole
            os.replace(folder / name, place / "replaced")
        os.replace(made, folder / name)
    rotate_checkpoints(
        output_dir=str(folder),
        save_total_limit=trainer.args.save_total_limit,
        best_model_checkpoint=trainer.state.best_model_checkpoint,
        use_mtime=True,
    )


def save_adapter(trainer: Trainer, folder: str | Path) -> None:
    """Save the trained adapter and its tokenizer in `folder`, or leave it as it is.

    Raises: DiskFull or NotFinite, saying what is kept.
    """
    folder = Path(folder)
    require_finite(trainer)
    with _unfinished(trainer, folder, "the adapter", 0) as place:
        trainer.save_model(str(place / "adapter"))
        # FSDP's shares are still on their way to the main process when the others are
        # done, and a process that ends takes its share with it.
        trainer.accelerator.wait_for_everyone()
        if not trainer.args.should_save:
            return
        broken = broken_weights(place / "adapter" / WEIGHTS)
        if broken:
            raise OSError(f"The adapter was written and is not whole: {broken}.")
        for path in sorted((place / "adapter").iterdir()):
            os.replace(path, folder / path.name)


@contextlib.contextmanager
def _unfinished(trainer, folder, what, needs):
    """A folder for what is being written; it goes in the end, whatever happens.

    needs: bytes without which not to begin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / UNFINISHED
    free = shutil.disk_usage(folder).free
    if free < needs:
        raise DiskFull(_no_room(folder, what, needs, "nothing was written"))
    main = trainer.args.should_save
    if main:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    trainer.accelerator.wait_for_everyone()
    try:
        yield place
    except Exception as error:
        if not is_full(error):
            raise
        text = _no_room(folder, what, needs, "the half-written one was removed")
        raise DiskFull(text) from error
    finally:
        if main:
            shutil.rmtree(place, ignore_errors=True)


def _no_room(folder, what, needs, done):
    takes = f"it takes about {needs / GIB:.2f} GiB, " if needs else ""
    free = shutil.disk_usage(folder).free
    return (
        f"No room for {what}: {takes}the disk of {folder} has {free / GIB:.2f} GiB "
        f"free; {done}. {_kept(folder)} Free some space first."
    )


def _kept(folder):
    """What is kept in an output folder, and how to go on, in a sentence or two."""
    found = list_checkpoints(folder)
    if not found:
        return "No checkpoint was kept."
    return f"Kept: {found[0].name}, from which --resume goes on."


def is_full(error: BaseException | None) -> bool:
    """Does this error, or what caused it, say that the disk is full?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
