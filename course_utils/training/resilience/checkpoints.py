"""Checkpoints that are whole, or not there.

Knows: the order in which a Trainer writes a checkpoint's files, and how a full disk
reads in the libraries' words. Does not know: training.
"""

import contextlib
import errno
import json
import re
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

GIB = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# safetensors and torch report the system's error in words only.
_FULL_IN_WORDS = re.compile(
    r"No space left|Disk quota|File too large|os error (28|122|27)\b|"
    r"PytorchStreamWriter failed|unexpected pos"
)
_FOLDER = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_BESIDES_TENSORS = 32 * 2**20  # tokenizer, states and configurations of a checkpoint


class DiskFull(OSError):
    """A checkpoint could not be written; the ones before it are whole."""


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
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
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
def whole_or_nothing(trainer):
    """Around the writing of a checkpoint: removes it again if that fails."""
    folder = Path(trainer.args.output_dir)
    made = folder / f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
    folder.mkdir(parents=True, exist_ok=True)
    needs, free = checkpoint_bytes(trainer), shutil.disk_usage(folder).free
    if free < needs:
        raise DiskFull(_no_room(made, needs, free, "nothing was written"))
    # Where an older run left this step, its last file must not vouch for a mixture.
    if trainer.args.should_save:  # of several processes, the one that writes it
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
