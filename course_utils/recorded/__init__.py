"""Recorded results: what ran, where, when, with which versions, and what came out.

Knows: the folder `course_utils/recorded`, the description of a run. Does not know: what
a result means. No result is ever typed in: every file here was written by the command
it names.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable
from importlib import resources

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
)


def machine() -> str:
    """The hardware in words, e.g. "NVIDIA H200, 16 cores" or "AMD EPYC, 2 cores"."""
    import torch

    cores = f"{os.cpu_count()} cores"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {cores}"
    return f"{platform.machine()} CPU, {cores}"


def versions(libraries: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """{library: version} of those that are installed, and of Python."""
    found = {"python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # absent is a fact too: the record simply does not list it
    return found


def describe_run(command: str, start: float) -> dict:
    """The head of a record. start: `time.perf_counter()` when the run began."""
    return {
        "command": command,
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "versions": versions(),
    }


def load(name: str) -> dict:
    """The record `name` (without .json).

    Raises: FileNotFoundError that lists the records there are.
    """
    folder = resources.files("course_utils") / "recorded"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = sorted(
            p.name[:-5] for p in folder.iterdir() if p.name.endswith(".json")
        )
        raise FileNotFoundError(f"No record {name!r}. There are: {', '.join(known)}.")
    return json.loads(path.read_text(encoding="utf-8"))


def load_if_there(*names: str) -> dict[str, dict]:
    """{name: record} of those records that are there, in the order of `names`."""
    folder = resources.files("course_utils") / "recorded"
    return {n: load(n) for n in names if (folder / f"{n}.json").is_file()}


def caption(record: dict) -> str:
    """One line that says where a recorded result comes from."""
    added = " (the last of several calls)" if " --add" in record["command"] else ""
    return (
        f"recorded {record['date']} on {record['machine']}, {record['minutes']} min, "
        f"torch {record['versions']['torch']}, by `{record['command']}`{added}"
    )
