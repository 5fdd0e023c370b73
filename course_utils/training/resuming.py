"""Whether a run may go on in its output folder, and from which checkpoint."""

import hashlib
import json
from pathlib import Path

import torch

from course_utils.setup import folders
from course_utils.setup.profiles import is_hub_id
from course_utils.training import resilience

SETTINGS = "settings.json"
# What may change: then the losses are the same to rounding, not bit for bit. So may
# the fast trainer's levers, in "fast_config".
_TO_ROUNDING = ("trainer", "processes")
_OUTCOMES = (SETTINGS, "run.json", "adapter_model.safetensors")
_SMALL_FILE = 64 * 2**20  # bytes up to which a file is hashed as a whole
_SAMPLES, _SAMPLE_BYTES = 256, 4096


def require_room_for_run(folder: Path, resume: bool) -> None:
    """Raise ValueError if `folder` holds a run that must not be mixed with this one.

    resume: did the user ask to go on with what is there?
    """
    found = resilience.list_checkpoints(folder)
    there = [path.name for path in found[:1]]
    there += [name for name in _OUTCOMES if (folder / name).exists()]
    if there and not resume:
        raise ValueError(
            f"{folder} holds a run already ({', '.join(there)}). Go on with it by "
            "--resume, or name another folder."
        )
    if not found and set(there) - {SETTINGS}:
        raise ValueError(
            f"{folder} holds {' and '.join(there)}, and no checkpoint to go on from. "
            "Name another folder."
        )


def checkpoint_to_resume(folder: Path, resume: bool, settings: dict) -> str | None:
    """The checkpoint to go on from, or None to begin; leaves settings.json there.

    Prints what changed where that may change.
    Raises: ValueError if the run in `folder` or its checkpoint had other settings
        (names old and new), or if there are checkpoints and none is whole.
    """
    # What JSON makes of them, so that a list read back equals a list.
    settings = json.loads(json.dumps(settings))
    before = _read_settings(folder / SETTINGS)
    if before is not None:
        _require_same(before, settings, folder)
    last = resilience.last_whole_checkpoint(folder)
    found = resilience.list_checkpoints(folder)
    if found and last is None:
        raise ValueError(
            f"{folder} has checkpoints, and none is whole; {found[0].name}: "
            f"{resilience.what_is_broken(found[0])}. Remove them all to begin again, "
            "or name another folder."
        )
    if last:
        _require_checkpoint_of(settings, last)
    if resume:
        print(f"resuming from {last}" if last else "no checkpoint yet: from the start")
    folders.write_json(folder / SETTINGS, settings)
    return last


def base_fingerprint(source: str, model: torch.nn.Module) -> str:
    """What tells a base model from another one that has the same name.

    source: folder or hub id that `model` was loaded from. Large files count with their
        sizes and samples, so that 16 GB take no minute.
    """
    if is_hub_id(source):
        return f"{source} ({getattr(model.config, '_commit_hash', None)})"
    digest, folder = hashlib.sha256(), Path(source)
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        digest.update(_content_or_samples(path))
    return f"{folder.name} ({digest.hexdigest()[:12]})"


def adapter_fingerprint(folder: Path | None) -> str | None:
    """The hash of an adapter's weights and configuration, or None without one."""
    if folder is None:
        return None
    digest = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


def _content_or_samples(path):
    size = path.stat().st_size
    if size <= _SMALL_FILE:
        return path.read_bytes()
    parts = []
    with open(path, "rb") as file:
        for number in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            parts.append(file.read(_SAMPLE_BYTES))
    return b"".join(parts)


def _read_settings(path):
    if not path.is_file():
        return None
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        settings = error
    if not isinstance(settings, dict):
        raise ValueError(
            f"{path} cannot be read as settings ({settings}). Remove it: each "
            "checkpoint has the settings too."
        )
    return settings


def _require_checkpoint_of(settings, checkpoint):
    """Raise ValueError unless the checkpoint is of a run with these settings."""
    before = resilience.read_record(checkpoint)["settings"]
    if before is None:
        raise ValueError(
            f"{checkpoint} was not saved by this command. Start from its weights with "
            f"--adapter {checkpoint} and another --output."
        )
    _require_same(before, settings, checkpoint)
    changed = [
        f"{name} {_shown(before.get(name))} -> {_shown(settings.get(name))}"
        for name in _TO_ROUNDING
        if before.get(name) != settings.get(name)
    ]
    old, new = before.get("fast_config"), settings.get("fast_config")
    if old and new:
        changed += [
            f"lever {name} {_shown(old.get(name))} -> {_shown(value)}"
            for name, value in new.items()
            if old.get(name) != value
        ]
    if changed:
        print(
            f"{', '.join(changed)} since {Path(checkpoint).name}: from here on losses "
            "are the same to rounding, not bit for bit."
        )


def _require_same(before, settings, where):
    """ValueError that names every setting that was another one in `before`."""
    changed = [
        f"{name} {_shown(before.get(name))} -> {_shown(settings.get(name))}"
        for name in sorted(before.keys() | settings.keys())
        if before.get(name) != settings.get(name)
        and name not in (*_TO_ROUNDING, "fast_config")
    ]
    if changed:
        raise ValueError(
            f"{where} was begun with other settings: {', '.join(changed)}. Resume "
            "with the same, or name another folder."
        )


def _shown(value):
    """A setting in a message; hashes are cut."""
    text = json.dumps(value) if isinstance(value, dict | list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
