"""An adapter that PEFT saved: plain LoRA and trained token rows, or a clear refusal."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from course_utils.models import loading

_LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_ROWS = re.compile(
    r"base_model\.model\.(.+)\.token_adapter\.(?:base_layer\.)?trainable_tokens_delta"
)
# Settings that are read here, or that leave W + alpha / r * B A as it is.
_UNDERSTOOD = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "trainable_token_indices",
    "use_rslora",
}
# Initialisations that leave the base's weights as they are. PiSSA, OLoRA, CorDA, LoftQ
# and LoRA-GA subtract their start from them, so that the update fits another base.
_BASE_KEPT = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the CPU. All names are the base's tensors.

    updates: {tensor: (A (r, in), B (out, r))}; scales: {tensor: alpha / r}.
    rows: {tensor: (ids, their new rows (k, hidden))}.
    settings: adapter_config.json.
    """

    updates: dict[str, tuple[torch.Tensor, torch.Tensor]]
    rows: dict[str, tuple[list[int], torch.Tensor]]
    scales: dict[str, float]
    settings: dict

    def trains(self, tensor: str) -> bool:
        """Do the settings say for certain that this tensor gets an update?"""
        limited = ("layers_to_transform", "exclude_modules")
        if any(self.settings.get(name) for name in limited):
            return False
        module, names = tensor.removesuffix(".weight"), self.settings["target_modules"]
        if isinstance(names, str):
            return re.fullmatch(names, module) is not None
        return any(
            module == name or module.endswith(f".{name}") for name in names or ()
        )


def read_adapter(folder: str | Path) -> Adapter:
    """Read an adapter that PEFT saved.

    Raises: FileNotFoundError if its settings or safetensors weights are missing;
    ValueError, naming it, for anything but plain LoRA and trained token rows, for a
    rank or scale that differs from the settings, half an update, and NaN.
    """
    loading.require_adapter(folder)
    settings = _settings(Path(folder))
    halves, rows = {}, {}
    for name, values in _tensors(Path(folder)).items():
        lora, row = _LORA.fullmatch(name), _ROWS.fullmatch(name)
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name} in {folder} is not finite: look at the training.")
        if lora:
            halves.setdefault(lora[1], {})[lora[2]] = values
        elif row:
            rows[f"{row[1]}.weight"] = (_token_ids(settings, row[1]), values)
        else:
            raise ValueError(f"{folder} holds {name}, which this merge does not know.")
    updates, scales = {}, {}
    for module, half in halves.items():
        name = f"{module}.weight"
        updates[name], scales[name] = _update(module, half, settings)
    wanted = settings.get("trainable_token_indices")
    if wanted and not rows:
        raise ValueError(
            f"The settings in {folder} train token rows, and its file holds none."
        )
    if not updates and not rows:
        raise ValueError(f"The adapter in {folder} changes nothing: its file is empty.")
    return Adapter(updates, rows, scales, settings)


def _settings(folder: Path) -> dict:
    file = folder / "adapter_config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind, rank, alpha = (settings[k] for k in ("peft_type", "r", "lora_alpha"))
        settings["target_modules"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no adapter's settings: {error!r}.") from error
    unknown = [
        f"{name} = {value!r}"
        for name, value in settings.items()
        if name not in _UNDERSTOOD and value and (name, value) != ("bias", "none")
    ]
    if kind != "LORA":
        unknown.insert(0, f"peft_type = {kind!r}")
    start = settings.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if start not in _BASE_KEPT:
        unknown.append(f"init_lora_weights = {start!r}, which changes the base,")
    if unknown:
        raise ValueError(
            f"The adapter in {folder} uses {', '.join(unknown)}: this merge would be "
            "wrong. Load it with PEFT as it was trained and call merge_and_unload."
        )
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise ValueError(f"{file} says r = {rank!r} and lora_alpha = {alpha!r}.")
    return settings


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "adapter_model.safetensors"
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no complete safetensors file ({error}): copy it again."
        ) from error


def _update(
    module: str, half: dict[str, torch.Tensor], settings: dict
) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """((A, B), alpha / r) of one module."""
    if set(half) != {"A", "B"}:
        raise ValueError(f"{module} has a lora_{min(half)} and not its other half.")
    low, high = half["A"], half["B"]
    rank = _own(settings, "rank_pattern", module, settings["r"])
    alpha = _own(settings, "alpha_pattern", module, settings["lora_alpha"])
    if low.ndim != 2 or high.ndim != 2 or {low.shape[0], high.shape[1]} != {rank}:
        raise ValueError(
            f"{module} has lora_A {tuple(low.shape)} and lora_B {tuple(high.shape)}, "
            f"and the adapter's settings say r = {rank}. Which is right decides the "
            "scale, so nothing was merged."
        )
    return (low, high), alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _own(settings: dict, pattern: str, module: str, default: float) -> float:
    """The module's own rank or alpha, chosen as PEFT does: the first key that fits."""
    for key, value in (settings.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _token_ids(settings: dict, module: str) -> list[int]:
    ids, name = settings.get("trainable_token_indices"), module.rsplit(".", 1)[-1]
    ids = ids.get(name) if isinstance(ids, dict) else ids
    if not ids:
        raise ValueError(f"The adapter holds rows of {module} and no ids for them.")
    return ids
