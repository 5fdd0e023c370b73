"""A merge that holds one layer at a time: 8B in ordinary memory.

Knows: PEFT's adapter files for LoRA and trained token rows, bitsandbytes' NF4.
Does not know: whether the result is the trained model (`proof`).

Each weight becomes dequantised NF4 + alpha / r * B A, computed in float32 and rounded
once. Whole models need more: 8B in 16 bit are 15 GiB before anything is computed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftConfig
from peft.utils import load_peft_weights
from transformers import AutoConfig, GenerationConfig

from course_utils.models import LINEAR_LAYERS, shards
from course_utils.publishing.merging.saving import give_end_of_turn
from course_utils.setup import folders
from course_utils.setup.profiles import is_hub_id

_LORA = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_ROWS = re.compile(
    r"base_model\.model\.(.+)\.token_adapter\.(?:base_layer\.)?trainable_tokens_delta"
)
# What would need other arithmetic than W + alpha / r * B A.
_UNKNOWN = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")
_SETTINGS_BYTES = 50_000_000


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter on the CPU. All names are the base's tensors.

    updates: {tensor: (A (r, in), B (out, r))}; scale: alpha / r.
    rows: {tensor: (ids, their new rows (k, hidden))}.
    """

    updates: dict
    rows: dict
    scale: float


def read_adapter(folder):
    """Read an adapter that PEFT saved.

    Returns: Adapter.
    Raises: ValueError for anything but plain LoRA and trained token rows, naming it.
    """
    config = PeftConfig.from_pretrained(folder)
    unknown = [name for name in _UNKNOWN if getattr(config, name, None)]
    if not isinstance(config, LoraConfig) or unknown or config.bias != "none":
        what = ", ".join(unknown) or f"{config.peft_type}, bias {config.bias!r}"
        raise ValueError(
            f"The adapter in {folder} uses {what}, which this merge does not know. "
            "Load it with PEFT on the dequantised base and call merge_and_unload."
        )
    halves, rows = {}, {}
    for name, values in load_peft_weights(str(folder), device="cpu").items():
        lora, row = _LORA.fullmatch(name), _ROWS.fullmatch(name)
        if lora:
            halves.setdefault(f"{lora[1]}.weight", {})[lora[2]] = values
        elif row:
            rows[f"{row[1]}.weight"] = (_token_ids(config, row[1]), values)
        else:
            raise ValueError(f"{folder} holds {name}, which this merge does not know.")
    updates = {name: (half["A"], half["B"]) for name, half in halves.items()}
    divisor = config.r**0.5 if config.use_rslora else config.r
    return Adapter(updates, rows, config.lora_alpha / divisor)


def _token_ids(config, module):
    ids = config.trainable_token_indices
    return ids[module.rsplit(".", 1)[-1]] if isinstance(ids, dict) else ids


def merged_tensor(name, weight, adapter, nf4):
    """One of the base's tensors as it belongs into the merged model.

    weight: in the dtype in which the base was loaded for training. nf4: was it then
        quantised, with double quantisation?
    Returns: a CPU tensor of the same dtype. Raises: ValueError if it is not finite.
    """
    place = "cuda" if torch.cuda.is_available() else "cpu"
    merged = weight.to(place)
    if nf4 and name.endswith(tuple(f".{layer}.weight" for layer in LINEAR_LAYERS)):
        merged = bnb.dequantize_4bit(
            *bnb.quantize_4bit(
                merged, blocksize=64, compress_statistics=True, quant_type="nf4"
            )
        )
    if name in adapter.updates:
        low, high = (half.to(place).float() for half in adapter.updates[name])
        update = (high @ low) * adapter.scale
        merged = update.add_(merged).to(weight.dtype)
    if name in adapter.rows:
        ids, rows = adapter.rows[name]
        rows, ids = rows.to(place, weight.dtype), torch.tensor(ids, device=place)
        merged = merged.index_copy(0, ids, rows)
    if not bool(merged.isfinite().all()):
        raise ValueError(f"{name} is not finite once merged: look at the training.")
    return merged.cpu()


def merge(base, adapter, folder, tokenizer, nf4=True, dtype=torch.bfloat16):
    """Merge an adapter into its base, tensor by tensor, and save the result.

    base: folder or hub id of what the adapter was trained on; a hub id's files are
        taken from the cache, or downloaded. adapter: folder that PEFT saved. folder:
        where to, replaced if it is there. tokenizer: the training's, with its chat
        template. nf4: was the base in NF4? dtype: in which the base was loaded, and the
        result is stored.
    Returns: bytes of the weights.
    Raises: as read_adapter; ValueError if the adapter belongs to another base; OSError
        if the disk is too full. After an error nothing is left behind.
    """
    if is_hub_id(str(base)):
        base = snapshot_download(base, allow_patterns=["*.safetensors", "*.json"])
    read, reader = read_adapter(adapter), shards.Reader(base)
    shapes = {name: shape for name, (shape, _) in reader.shapes().items()}
    _require_fit(read, shapes, base)
    values = sum(torch.Size(shape).numel() for shape in shapes.values())
    needs = values * dtype.itemsize + _SETTINGS_BYTES
    with folders.written_whole(folder, needs, replace=True) as partial:
        total = shards.write_checkpoint(
            partial,
            shapes,
            dtype,
            lambda name: merged_tensor(name, reader.read(name).to(dtype), read, nf4),
        )
        _save_settings(base, partial, tokenizer, dtype)
    return total


def _require_fit(adapter, shapes, base):
    for name, (low, high) in adapter.updates.items():
        _require(name, shapes, (high.shape[0], low.shape[1]), base)
    for name, (ids, rows) in adapter.rows.items():
        _require(name, shapes, (shapes.get(name, (0,))[0], rows.shape[1]), base)
        if len(ids) != len(rows) or max(ids) >= shapes[name][0]:
            raise ValueError(f"The adapter's rows for {name} do not fit its token ids.")


def _require(name, shapes, wanted, base):
    if shapes.get(name) != tuple(wanted):
        raise ValueError(
            f"The adapter changes {name} of shape {tuple(wanted)}, and {base} has "
            f"{shapes.get(name, 'no such tensor')}: it was trained on another base."
        )


def _save_settings(base, folder, tokenizer, dtype):
    config = AutoConfig.from_pretrained(base)
    config.dtype = dtype
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    has_own = (Path(base) / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(base) if has_own else None
    generation = generation or GenerationConfig.from_model_config(config)
    for settings in (config, generation):
        give_end_of_turn(settings, tokenizer)
        settings.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
