"""What a tool's environment holds, against what the tool asks for.

Runs inside Axolotl's and LLaMA-Factory's environments: standard library and packaging.
"""

import importlib.metadata
import json
import platform

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

SHOWN = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
)


def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe(tool):
    """Versions, and every requirement of the tool that this environment does not meet.

    Returns: {"versions", "python_asked", "python_fits", "absent": [requirement],
        "other_version": {requirement: installed}}.
    """
    absent, other = [], {}
    for line in importlib.metadata.requires(tool):
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        here = installed(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if here is None:
            absent.append(wanted)
        elif not requirement.specifier.contains(here, prereleases=True):
            other[wanted] = here
    asked = importlib.metadata.metadata(tool)["Requires-Python"]
    return {
        "versions": {"python": platform.python_version(), tool: installed(tool)}
        | {name: installed(name) for name in SHOWN},
        "python_asked": asked,
        "python_fits": SpecifierSet(asked).contains(platform.python_version()),
        "absent": absent,
        "other_version": other,
    }


def attempt(action):
    """What a deliberately wrong input leads to: {"refused": bool, "says": str}.

    says: the error's type and the line of its text that tells most, "" if nothing was
    refused.
    """
    try:
        action()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # pydantic's first line counts its errors; a cause has its type behind it.
        telling = [line.split(" [type=")[0] for line in lines if " [type=" in line]
        said = (telling or lines or [""])[0]
        return {"refused": True, "says": f"{type(error).__name__}: {said[:200]}"}
    return {"refused": False, "says": ""}


def losses(trainer):
    """Train, and return {step: loss} as the trainer logged them."""
    trainer.train()
    log = trainer.state.log_history
    return {str(entry["step"]): entry["loss"] for entry in log if "loss" in entry}


def differing(ours, theirs):
    """Which keys the parser dropped, and which it gave another value."""
    return {
        "keys": list(ours),
        "dropped": sorted(key for key in ours if key not in theirs),
        "changed": {
            key: [value, theirs[key]]
            for key, value in ours.items()
            if key in theirs and not _same(value, theirs[key])
        },
    }


def _same(value, other):
    if isinstance(value, list) and value and isinstance(value[0], dict):
        # A parser may add its defaults to the entries of a list.
        return all(a.items() <= b.items() for a, b in zip(value, other, strict=True))
    return value == other


def write(path, answer):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(answer, file, indent=1)


def parameters(model):
    """{kind: {"tensors", "weights", "dtypes"}} of what is trained or in 4 bit.

    Kinds: "lora", "rows" (single token rows), "matrices" (whole ones).
    """
    found = {}
    for name, parameter in model.named_parameters():
        if getattr(parameter, "quant_state", None) is not None:
            kind = "frozen, " + parameter.quant_state.quant_type
        elif not parameter.requires_grad:
            continue
        elif "lora_" in name:
            kind = "lora"
        else:
            kind = "rows" if "trainable_tokens_delta" in name else "matrices"
        entry = found.setdefault(kind, {"tensors": 0, "weights": 0, "dtypes": []})
        entry["tensors"] += 1
        state = getattr(parameter, "quant_state", None)
        entry["weights"] += state.shape.numel() if state else parameter.numel()
        dtype = str(parameter.dtype).removeprefix("torch.")
        if dtype not in entry["dtypes"]:
            entry["dtypes"].append(dtype)
    return found
