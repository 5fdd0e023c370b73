"""A training that survives what a rented GPU does: kill, full memory, NaN, full disk.

Knows: which checkpoint is whole, how a Trainer's step and save fail, and what to tell
the learner then. Does not know: settings' memory (`memory`), losses, models.

    with resilience.watched(trainer):
        last = resilience.last_whole_checkpoint(trainer.args.output_dir)
        trainer.train(resume_from_checkpoint=last)
"""

import contextlib
import errno
import gc
import json
import re
import shutil
import traceback
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from course_utils import memory

GIB = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch report the system's error in words only.
_FULL_IN_WORDS = re.compile(
    r"No space left|Disk quota|File too large|os error (28|122|27)\b|"
    r"PytorchStreamWriter failed|unexpected pos"
)
_FOLDER = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_BESIDES_TENSORS = 32 * 2**20  # tokenizer, states and configurations of a checkpoint


class OutOfMemory(RuntimeError):
    """The GPU's memory was not enough. changes: list of memory.Change, or empty."""

    def __init__(self, message, changes):
        super().__init__(message)
        self.changes = changes


class NotFinite(RuntimeError):
    """A loss or gradient was NaN or infinite; no weight was touched.

    step: the optimizer step that was not made. rows: of the train dataset.
    """

    def __init__(self, message, step, rows):
        super().__init__(message)
        self.step, self.rows = step, rows


class DiskFull(OSError):
    """A checkpoint could not be written; the ones before it are whole."""


# ---- which checkpoint to resume from ----


def last_whole_checkpoint(folder):
    """The newest checkpoint in a Trainer's output folder that is complete, or None.

    transformers' get_last_checkpoint takes the highest number, also where the process
    died while it wrote. The Trainer writes trainer_state.json last: a folder without
    it, or with a file that ends early, is no checkpoint. Such folders are left alone
    and named in one printed line.

    folder: may be missing. Returns: path as str.
    """
    folder = Path(folder)
    found = sorted(
        (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _number(path)),
        key=_number,
        reverse=True,
    )
    for path in found:
        broken = _what_is_broken(path)
        if not broken:
            return str(path)
        print(f"{path.name} is not whole ({broken}); looking for an earlier one")
    return None


def _number(path):
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match and path.is_dir() else 0


def _what_is_broken(checkpoint):
    """What is wrong with a checkpoint's files, in words, or ""."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except FileNotFoundError:
        return "trainer_state.json, written last, is missing"
    except ValueError:
        return "trainer_state.json is cut off"
    for path in sorted(checkpoint.iterdir()):
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError:
                return f"{path.name} is cut off"
        # torch.save writes zip files, whose table of contents comes last.
        elif path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
    if not any(checkpoint.glob("*.safetensors")):
        return "there are no weights"
    return ""


# ---- while it trains ----


@contextlib.contextmanager
def watched(trainer):
    """Let `trainer.train()` in this block fail in words, and before it does harm.

    trainer: an ORPOTrainer or PackedORPOTrainer with a LoRA adapter.
    Raises: OutOfMemory with settings to change and the predicted saving of each;
        NotFinite before the optimizer step that would write NaN into the adapter, with
        the rows; DiskFull if a checkpoint does not fit, without a half-written one.
    """
    guard = _Guard(trainer)
    step, save = trainer.training_step, trainer._save_checkpoint

    def training_step(model, inputs, *rest, **named):
        loss = step(model, inputs, *rest, **named)
        guard.saw(inputs, loss)
        return loss

    def save_checkpoint(*arguments, **named):
        with _whole_or_nothing(trainer):
            return save(*arguments, **named)

    trainer.add_callback(guard)
    try:
        with (
            _replaced(trainer, "training_step", training_step),
            # Callbacks hear of a checkpoint when it is written, not when that fails.
            _replaced(trainer, "_save_checkpoint", save_checkpoint),
        ):
            yield trainer
    except torch.OutOfMemoryError as error:
        # Frames of the traceback hold the step's tensors.
        traceback.clear_frames(error.__traceback__)
        guard.forget()
        raise _explained(error, trainer) from error
    finally:
        trainer.remove_callback(guard)


@contextlib.contextmanager
def _replaced(trainer, name, method):
    before = vars(trainer).get(name)
    setattr(trainer, name, method)
    try:
        yield
    finally:
        if before is None:
            delattr(trainer, name)
        else:
            setattr(trainer, name, before)


# ---- NaN ----


class _Guard(TrainerCallback):
    """Looks at losses and gradients once a step, before the optimizer does."""

    def __init__(self, trainer):
        self._trainer = trainer
        self.forget()

    def forget(self):
        self._batches, self._losses = [], []

    def saw(self, batch, loss):
        """Remember a micro-batch and its loss; asking for the value would wait."""
        self._batches.append(batch)
        self._losses.append(loss.detach())

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        # GradScaler meets infinite gradients in float16 by itself and skips the step.
        gradients = [
            p.grad for p in model.parameters() if p.grad is not None and not args.fp16
        ]
        losses = torch.stack([loss.float() for loss in self._losses])
        norms = torch._foreach_norm(gradients) if gradients else []
        values = torch.cat([losses, *(norm.float().reshape(1) for norm in norms)])
        if not values.isfinite().all():
            self._stop(state, losses.isfinite().tolist(), model)
        self.forget()

    def _stop(self, state, losses_finite, model):
        step = state.global_step + 1
        batches = [
            batch
            for batch, finite in zip(self._batches, losses_finite, strict=True)
            if not finite
        ]
        what = "loss" if batches else "gradient"
        rows, empty = _rows_of(self._trainer, batches or self._batches)
        self.forget()
        model.zero_grad()
        raise NotFinite(
            f"Step {step}: the {what} is not finite, and the step was not made: the "
            f"weights are those of step {step - 1}. Rows of the train dataset in it: "
            f"{', '.join(map(str, rows))}."
            + (
                f" Row {', '.join(map(str, empty))} has no token left to score: its "
                "prompt fills max_length. Drop it (chat.check_pairs)."
                if empty
                else " Look at these rows; or lower the learning rate."
            ),
            step,
            rows,
        )


def _rows_of(trainer, batches):
    """(row numbers in the train dataset, those without a token to score)."""
    wanted = {}
    for batch in batches:
        for number in range(len(batch["chosen_input_ids"])):
            ids, empty = [], False
            for side in ("chosen", "rejected"):
                real = batch[f"{side}_attention_mask"][number].bool()
                ids.append(tuple(batch[f"{side}_input_ids"][number][real].tolist()))
                empty |= not (batch[f"{side}_labels"][number][real][1:] != -100).any()
            wanted[tuple(ids)] = bool(empty)
    rows, empty = [], []
    columns = ["chosen_input_ids", "rejected_input_ids"]
    for number, row in enumerate(trainer.train_dataset.select_columns(columns)):
        ids = tuple(tuple(row[column]) for column in columns)
        if ids in wanted:
            rows.append(number)
            if wanted[ids]:
                empty.append(number)
    return rows, empty


# ---- memory ----


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


# ---- disk ----


def checkpoint_bytes(trainer):
    """What a checkpoint of this trainer takes on disk, about: trained weights and the
    optimizer's state, and 32 MiB for the rest."""
    weights = sum(p.nbytes for p in trainer.model.parameters() if p.requires_grad)
    state = getattr(getattr(trainer, "optimizer", None), "state", {})
    means = sum(
        value.nbytes
        for values in state.values()
        for value in values.values()
        if torch.is_tensor(value)
    )
    return weights + means + _BESIDES_TENSORS


@contextlib.contextmanager
def _whole_or_nothing(trainer):
    """Around the writing of a checkpoint: removes it again if that fails."""
    folder = Path(trainer.args.output_dir)
    made = folder / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    needs, free = checkpoint_bytes(trainer), shutil.disk_usage(folder).free
    if free < needs:
        raise DiskFull(_no_room(made, needs, free, "nothing was written"))
    # Where an older run left this step, its last file must not vouch for a mixture.
    (made / "trainer_state.json").unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        if made.is_dir() and _what_is_broken(made):
            shutil.rmtree(made)
        if not _is_full(error):
            raise
        free = shutil.disk_usage(folder).free
        text = _no_room(made, needs, free, "the half-written one was removed")
        raise DiskFull(text) from error


def _no_room(made, needs, free, done):
    return (
        f"No room for {made.name}: it takes about {needs / GIB:.2f} GiB, the disk of "
        f"{made.parent} has {free / GIB:.2f} GiB free; {done}. The checkpoints before "
        "it are whole. Free some space or set save_total_limit, then resume from the "
        "last one."
    )


def _is_full(error):
    """Does this error, or what caused it, say that the disk is full?"""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
