"""Which checkpoint is whole: all parts there, readable, finite, and as written."""

import hashlib
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_pt_utils import safe_globals
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from course_utils.setup import folders
from course_utils.training.resilience.finite import first_not_finite

# Written last: the names, sizes and hashes of the other files, and the run's settings.
RECORD = "complete.json"
WEIGHTS = "adapter_model.safetensors"
STATE = "trainer_state.json"
ARGUMENTS = "training_args.bin"
_PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle")
_FOLDER = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
# Where the classes in the Trainer's arguments come from; nothing loads that file.
_ARGUMENT_CLASS = re.compile(
    r"((transformers|trl|accelerate|peft|course_utils)\.[\w.]+|__main__)\.[A-Z]\w*"
)
# What stands in a file of the Trainer's, by the first word of its name.
_PARTS = {
    "optimizer": ("state", "param_groups"),
    "scheduler": ("last_epoch",),
    "rng": ("python", "numpy", "cpu"),
}


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint in a Trainer's output folder that is complete, or None.

    transformers' get_last_checkpoint takes the highest number, whatever is in it. Here
    a checkpoint counts if it has all its parts, if each can be read without running
    code, if its numbers are finite, and if every file is as it was written. The others
    are left alone, and a printed line says what is wrong with each.

    folder: may be missing.
    """
    for path in list_checkpoints(folder):
        broken = what_is_broken(path)
        if not broken:
            return str(path)
        print(f"{path.name} is not whole ({broken}); looking for an earlier one")
    return None


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders in an output folder, newest first, whole or not."""
    found = [p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if _step(p)]
    return sorted(found, key=_step, reverse=True)


def read_record(checkpoint: str | Path) -> dict:
    """What was written last: {"files": …, "processes": …, "settings": …}."""
    return json.loads((Path(checkpoint) / RECORD).read_text(encoding="utf-8"))


def write_record(checkpoint: Path, processes: int, settings: dict | None) -> None:
    """Write the record of a checkpoint that has all its other files."""
    files = {
        path.relative_to(checkpoint).as_posix(): _size_and_hash(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    record = {"files": files, "processes": processes, "settings": settings}
    folders.write_json(checkpoint / RECORD, record)


def what_is_broken(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, naming the file, or ""."""
    return next(_faults(checkpoint), "")


def broken_weights(path: Path) -> str:
    """What is wrong with a file of safetensors, in words, or ""."""
    try:
        with safe_open(path, "pt") as file:
            named = [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        return f"{path.name} cannot be read: {_first_line(error)}"
    if not named:
        return f"{path.name} holds no weights"
    broken = first_not_finite(named)
    if broken:
        return f"{path.name} holds NaN or infinite values, in {broken}"
    return ""


def _step(path):
    match = _FOLDER.fullmatch(path.name)
    return int(match[1]) if match and path.is_dir() else 0


def _faults(checkpoint) -> Iterator[str]:
    """The faults of a checkpoint, those that say most first."""
    for name in (STATE, RECORD, WEIGHTS, "adapter_config.json", "scheduler.pt"):
        if not (checkpoint / name).is_file():
            by = ": it was cut off, or saved without resilience.watched"
            yield f"{name} is missing{by if name == RECORD else ''}"
    if not any((checkpoint / f"optimizer.{kind}").is_file() for kind in ("pt", "bin")):
        yield "optimizer.pt is missing"
    if not (checkpoint / ARGUMENTS).is_file():
        yield f"{ARGUMENTS} is missing"
    contents = {}
    for name in (STATE, RECORD, "adapter_config.json"):
        try:
            contents[name] = json.loads((checkpoint / name).read_text("utf-8"))
        except (ValueError, OSError) as error:
            yield f"{name} cannot be read: {_first_line(error)}"
        if not isinstance(contents[name], dict):
            yield f"{name} is not an object"
    if contents[STATE].get("global_step") != _named_step(checkpoint):
        yield f"{STATE} is of step {contents[STATE].get('global_step')}"
    if "peft_type" not in contents["adapter_config.json"]:
        yield "adapter_config.json has no peft_type"
    files, processes = (contents[RECORD].get(key) for key in ("files", "processes"))
    if not isinstance(files, dict) or not isinstance(processes, int):
        yield f"{RECORD} does not list the files"
    alone = processes == 1
    for name in (
        ["rng_state.pth"] if alone else [f"rng_state_{i}.pth" for i in range(processes)]
    ):
        if not (checkpoint / name).is_file():
            yield f"{name} is missing"
    for path in sorted(checkpoint.rglob("*")):
        if path.suffix == ".safetensors":
            yield from filter(None, [broken_weights(path)])
        elif path.suffix in _PICKLED:
            yield from filter(None, [_broken_state(path)])
            if path.relative_to(checkpoint).as_posix() not in files:
                yield f"{path.name} was added later"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            yield f"{name} is missing"
        if _size_and_hash(path) != expected:
            yield f"{name} is not as it was written"


def _named_step(checkpoint):
    match = _FOLDER.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def _broken_state(path):
    """What is wrong with a file of torch.save, in words, or ""."""
    with open(path, "rb") as file:
        if file.read(4) != b"PK\x03\x04":  # bare pickles and older formats
            return (
                f"{path.name} cannot be read: it is no zip file, as torch.save writes"
            )
    if path.name == ARGUMENTS:  # a pickled object, which is looked at and not loaded
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except Exception as error:  # whatever garbage brings about
            return f"{path.name} cannot be read: {_first_line(error)}"
        strange = [name for name in names if not _ARGUMENT_CLASS.fullmatch(name)]
        return f"{path.name} asks to run code: {strange[0]}" if strange else ""
    try:
        with safe_globals():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return f"{path.name} holds more than tensors and numbers, and could run code"
    except Exception as error:  # whatever garbage brings about
        return f"{path.name} cannot be read: {_first_line(error)}"
    parts = _PARTS.get(path.name.partition(".")[0].partition("_")[0], ())
    if not isinstance(content, dict) or any(part not in content for part in parts):
        return f"{path.name} is not what the Trainer writes"
    broken = first_not_finite(_tensors(content))
    return f"{path.name} holds NaN or infinite values{broken}" if broken else ""


def _tensors(content, name=""):
    """(name, tensor) of all tensors in nested dicts and lists."""
    if torch.is_tensor(content):
        yield name, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{name or ', in'} {key}")
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _tensors(value, name)


def _size_and_hash(path):
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _first_line(error):
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]
