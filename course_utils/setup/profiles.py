"""Profiles: what the notebooks run on this machine, and why.

The variables: COURSE_PROFILE names a profile. COURSE_BASE_MODEL is a local folder with
a checkpoint, or a hub id "owner/name". COURSE_DATA is a local folder with the sources'
files, "world" or "hub". COURSE_PAIRS is a number, for a rehearsal: no notebook trains
on more pairs with the profile's model, or evaluates it on more.
"""

import importlib.resources
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from course_utils.setup.hardware import (
    Hardware,
    has_bf16,
    is_offline,
    probe,
    stay_offline,
)

__all__ = [
    "HUB",
    "WORLD",
    "Choice",
    "Hardware",
    "Profile",
    "all_profiles",
    "choose",
    "has_bf16",
    "is_hub_id",
    "is_offline",
    "lab_model_folder",
    "probe",
    "require_checkpoint",
    "stay_offline",
]

# Where a profile's data are, when it is not a folder.
WORLD, HUB = "world", "hub"
MIN_PAIRS = 8  # fewer leave intervals without meaning, and some without items
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Profile:
    """What the notebooks run on one kind of machine.

    base_model: folder or hub id; ungated_copy: hub id of the same weights without a
        licence form, or None. data: "world" (the lab's sources), "hub", or a folder.
    dtype: name of a torch dtype; nf4: base weights in 4 bit. needs_gib: free memory to
        ask for (GPU memory, or RAM on `cpu`), disk_gib: free disk for the download;
        both with headroom, measured values stand in the notebooks. note: what it is
        meant for. pairs: the cap that COURSE_PAIRS sets, or None.
    """

    name: str
    note: str
    base_model: str
    learning_rate: float
    per_device_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    train_pairs: int
    eval_pairs: int
    needs_gib: float
    disk_gib: float
    data: str = HUB
    dtype: str = "bfloat16"
    nf4: bool = False
    lora_rank: int = 16
    lora_alpha: int = 32
    beta: float = 0.1
    optim: str = "paged_adamw_8bit"
    gradient_checkpointing: bool = True
    ungated_copy: str | None = None
    max_pairs: int | None = None

    def at_most(self, count: int) -> int:
        """`count` items, or as many as COURSE_PAIRS allows."""
        return count if self.max_pairs is None else min(count, self.max_pairs)

    def steps(self, count: int) -> int:
        """`count` optimizer steps, or as many as COURSE_PAIRS has pairs for."""
        if self.max_pairs is None:
            return count
        batch = self.per_device_batch_size * self.gradient_accumulation_steps
        return min(count, max(1, self.max_pairs // batch))

    @property
    def needs_hub(self) -> bool:
        """Does it read the model or the data from the hub?"""
        return self.data == HUB or is_hub_id(self.base_model)


def is_hub_id(base_model: str) -> bool:
    """Is this "owner/name", and no folder here?"""
    return bool(_HUB_ID.fullmatch(base_model)) and not Path(base_model).is_dir()


def require_checkpoint(folder: str | Path) -> None:
    """Raise FileNotFoundError, saying what to do, if `folder` holds no checkpoint."""
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. If this is the course's own model, restore "
            "it with git; else point COURSE_BASE_MODEL to a folder with a checkpoint."
        )
    if not any(Path(folder).glob("*.safetensors")):
        raise FileNotFoundError(
            f"{folder} holds no .safetensors file, and the course reads no other kind "
            "of weights (pickled ones can run code). Convert them with "
            "save_pretrained."
        )


def lab_model_folder() -> Path:
    """The folder of the small base model that ships with the course."""
    return Path(str(importlib.resources.files("course_utils"))) / "lab" / "base_model"


def all_profiles() -> dict[str, Profile]:
    """{name: Profile}, smallest machine first."""
    cpu = Profile(
        name="cpu",
        note="CI, offline, first contact, every laptop",
        base_model=str(lab_model_folder()),
        data=WORLD,
        dtype="float32",
        learning_rate=3e-3,  # a 3M model wants far higher rates than 8B
        beta=0.5,
        per_device_batch_size=8,
        gradient_accumulation_steps=1,
        max_length=256,
        train_pairs=2000,
        eval_pairs=210,
        optim="adamw_torch",
        gradient_checkpointing=False,
        needs_gib=3,
        disk_gib=1,
    )
    t4 = Profile(
        name="t4",
        note="free Colab",
        # Meta's 1B is gated; this copy is not, and it has Llama 3's chat tokens, which
        # ungated 1B models of Llama architecture such as TinyLlama lack.
        base_model="unsloth/Llama-3.2-1B",
        dtype="float16",  # a T4 has no bf16
        learning_rate=1e-4,
        per_device_batch_size=1,
        gradient_accumulation_steps=8,
        max_length=512,
        train_pairs=400,
        eval_pairs=200,
        needs_gib=10,
        disk_gib=6,
    )
    l4 = Profile(
        name="l4",
        note="Llama 3 8B on the article's card, about 24 GB",
        base_model="meta-llama/Meta-Llama-3-8B",
        ungated_copy="NousResearch/Meta-Llama-3-8B",
        nf4=True,
        learning_rate=8e-5,
        per_device_batch_size=2,
        gradient_accumulation_steps=4,
        max_length=1024,
        train_pairs=1000,
        eval_pairs=800,
        needs_gib=16,
        disk_gib=20,
    )
    a100 = replace(
        l4,
        name="a100",
        note="workshops with budget: A100, H100, H200, 40 GB or more",
        per_device_batch_size=8,
        gradient_accumulation_steps=1,
        train_pairs=2000,
        needs_gib=36,
    )
    return {profile.name: profile for profile in (cpu, t4, l4, a100)}


class Choice(NamedTuple):
    """`profile, reason = choose()`"""

    profile: Profile
    reason: str


def choose(
    environ: Mapping[str, str] | None = None,
    hardware: Hardware | None = None,
    offline: Callable[[], bool] | None = None,
    *,
    profile: str | None = None,
    data: str | None = None,
) -> Choice:
    """The profile for this machine, and why.

    environ: where the COURSE_ variables are looked up.
    profile, data: taken instead of COURSE_PROFILE and COURSE_DATA.
    hardware: a Hardware; this machine's by default.
    offline: a function that says whether the hub is out of reach; `is_offline` by
        default, called only where a GPU profile would need the hub.
    Returns: Choice(profile, reason).
    Raises: ValueError for an unknown COURSE_PROFILE or an impossible COURSE_PAIRS;
        FileNotFoundError for a folder named by COURSE_BASE_MODEL or COURSE_DATA that is
        not there.
    """
    environ = os.environ if environ is None else environ
    hardware = hardware or probe()
    offline = offline or (lambda: is_offline(environ))
    profiles = all_profiles()
    wanted = profile or environ.get("COURSE_PROFILE", "").strip()
    if wanted and wanted not in profiles:
        raise ValueError(
            f"COURSE_PROFILE is {wanted!r}, but the profiles are "
            f"{', '.join(profiles)}. Set one of these, or unset it to have one chosen."
        )
    said = "as asked" if profile else "COURSE_PROFILE says so"
    name, reason = (wanted, said) if wanted else _fitting(hardware)
    chosen, overrides = _with_overrides(profiles[name], environ, data)
    if not wanted and name != "cpu" and chosen.needs_hub and offline():
        reason = (
            f"{reason}, but {name} needs the hub, which is not reachable; for a GPU "
            "run set COURSE_BASE_MODEL and COURSE_DATA to local folders, or "
            f"COURSE_PROFILE={name} if its cache has both"
        )
        rest = {"COURSE_PAIRS": environ.get("COURSE_PAIRS", "")}
        chosen, overrides = _with_overrides(profiles["cpu"], rest, data)
    if chosen.dtype == "bfloat16" and hardware.cuda and not has_bf16(hardware):
        chosen = replace(chosen, dtype="float16")
        overrides.append(f"float16, because {hardware.gpu_name} has no bf16")
    return Choice(chosen, "; ".join([reason, *overrides]))


def _fitting(hardware):
    """(name, reason) by hardware alone."""
    if not hardware.cuda:
        return "cpu", "no CUDA GPU"
    card = f"{hardware.gpu_name} has {hardware.gpu_memory_gib:.1f} GiB"
    # Cards show less than their label, in GiB: a T4 14.7, an L4 22.2, an A100 39.4.
    if hardware.gpu_memory_gib < 14:
        return "cpu", f"{card}, less than the 14 that the smallest GPU profile asks for"
    if not has_bf16(hardware):
        return "t4", f"{card} and no bf16"
    if hardware.gpu_memory_gib < 21:
        return "t4", f"{card}, less than the 21 that Llama 3 8B asks for"
    if hardware.gpu_memory_gib < 38:
        return "l4", f"{card} and bf16"
    return "a100", f"{card} and bf16"


def _with_overrides(profile, environ, data=None):
    """The profile with the other three variables applied, and a note on each."""
    notes = []
    model = environ.get("COURSE_BASE_MODEL", "").strip()
    if model:
        folder = Path(model).expanduser()
        if not folder.is_dir() and not is_hub_id(model):
            raise FileNotFoundError(
                f"COURSE_BASE_MODEL is {model!r}, and there is no such folder. Give a "
                "folder with a checkpoint (config.json, safetensors, tokenizer), or a "
                "hub id such as owner/name, or unset it."
            )
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"COURSE_BASE_MODEL is {model!r}, and this folder holds no "
                "config.json. Point it to the folder that save_pretrained wrote."
            )
        base_model = str(folder) if folder.is_dir() else model
        profile = replace(profile, base_model=base_model, ungated_copy=None)
        notes.append("base model from COURSE_BASE_MODEL")
        if folder.is_dir() and _is_random(folder):
            notes.append("its weights are RANDOM: this shows time and memory, no skill")
    if data:
        profile = replace(profile, data=data)
        notes.append(f"data from {data}")
    elif data := environ.get("COURSE_DATA", "").strip():
        folder = Path(data).expanduser()
        if data not in (WORLD, HUB) and not folder.is_dir():
            raise FileNotFoundError(
                f"COURSE_DATA is {data!r}, and there is no such folder. Give a folder "
                "with the files of the sources, or world, or hub, or unset it."
            )
        data = data if data in (WORLD, HUB) else str(folder)
        profile = replace(profile, data=data)
        notes.append("data from COURSE_DATA")
    pairs = environ.get("COURSE_PAIRS", "").strip()
    if pairs:
        if not pairs.isdecimal() or int(pairs) < MIN_PAIRS:
            raise ValueError(
                f"COURSE_PAIRS is {pairs!r}; give a whole number of at least "
                f"{MIN_PAIRS}, or unset it to use all pairs of the profile."
            )
        profile = replace(profile, max_pairs=int(pairs))
        profile = replace(
            profile,
            train_pairs=profile.at_most(profile.train_pairs),
            eval_pairs=profile.at_most(profile.eval_pairs),
        )
        notes.append(f"a rehearsal: {pairs} pairs at most, from COURSE_PAIRS")
    return profile, notes


def _is_random(folder):
    """Does the checkpoint say that its weights are random?"""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return "random_weights" in config
