"""A merge that holds one layer at a time: 8B in ordinary memory.

Each weight becomes dequantised NF4 + alpha / r * B A, computed in float32 and rounded
once. Held entirely in memory, 8B in 16 bit are 15 GiB before anything is computed.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from course_utils.models import LINEAR_LAYERS, fingerprint, loading, shards
from course_utils.publishing.merging.adapter import Adapter, read_adapter
from course_utils.publishing.merging.saving import WRITER, give_end_of_turn
from course_utils.setup import folders

_SETTINGS_BYTES = 50_000_000


def merged_tensor(
    name: str, weight: torch.Tensor, adapter: Adapter, nf4: bool
) -> torch.Tensor:
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
        update = (high @ low) * adapter.scales[name]
        merged = update.add_(merged).to(weight.dtype)
    if name in adapter.rows:
        ids, rows = adapter.rows[name]
        rows, ids = rows.to(place, weight.dtype), torch.tensor(ids, device=place)
        merged = merged.index_copy(0, ids, rows)
    if not bool(merged.isfinite().all()):
        raise ValueError(f"{name} is not finite once merged: look at the training.")
    return merged.cpu()


def merge(
    base: str | Path,
    adapter: str | Path,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    nf4: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> int:
    """Merge an adapter into its base, tensor by tensor, and save the result.

    base: folder or hub id of what the adapter was trained on; a hub id's files are
        taken from the cache, or downloaded. adapter: folder that PEFT saved. folder:
        where to; an earlier merged model of this course there is replaced. tokenizer:
        the training's, with its chat template. nf4: was the base in NF4? dtype: in
        which the base was loaded, and the result is stored.
    Returns: bytes of the weights. Prints one line if the adapter does not say which
        base it was trained on.
    Raises: as read_adapter; ValueError if the adapter belongs to another base; as
        folders.written_whole. After an error nothing is left behind.
    """
    read = read_adapter(adapter)
    base = fingerprint.local_folder(base)
    loading.require_no_code(base)
    reader = shards.Reader(base)
    shapes = _plain_shapes(reader, base)
    _require_fit(read, shapes, base)
    note = fingerprint.require_same_base(adapter, base)
    if note:
        print(note)
    values = sum(torch.Size(shape).numel() for shape in shapes.values())
    needs = values * dtype.itemsize + _SETTINGS_BYTES
    sources = (base, adapter)
    with folders.written_whole(folder, needs, WRITER, sources) as partial:
        total = shards.write_checkpoint(
            partial,
            shapes,
            dtype,
            lambda name: merged_tensor(name, reader.read(name).to(dtype), read, nf4),
        )
        _save_settings(base, partial, tokenizer, dtype)
    return total


def _plain_shapes(reader: shards.Reader, base: Path) -> shards.Shapes:
    shapes = {}
    for name, (shape, stored) in reader.shapes().items():
        if stored not in shards.PLAIN:
            raise ValueError(
                f"{base} stores {name} as {stored}. An adapter is merged into the base "
                "in 16 or 32 bit, which this sends through NF4 itself."
            )
        shapes[name] = shape
    return shapes


def _require_fit(adapter: Adapter, shapes: shards.Shapes, base: Path) -> None:
    for name, (low, high) in adapter.updates.items():
        _require(name, shapes, (high.shape[0], low.shape[1]), base)
    for name, (ids, rows) in adapter.rows.items():
        _require(name, shapes, (shapes.get(name, (0,))[0], rows.shape[1]), base)
        fitting = min(ids) >= 0 and max(ids) < shapes[name][0]
        if not fitting or len(ids) != len(rows) or len(set(ids)) != len(ids):
            raise ValueError(f"The adapter's rows for {name} do not fit its token ids.")
    lacking = [n for n in shapes if adapter.trains(n) and n not in adapter.updates]
    if lacking:
        raise ValueError(
            f"The adapter's settings train {lacking[0]}, and its file holds no update "
            f"for it ({len(lacking)} such tensors): the file is not complete."
        )


def _require(
    name: str, shapes: shards.Shapes, wanted: tuple[int, ...], base: Path
) -> None:
    if shapes.get(name) != tuple(wanted):
        raise ValueError(
            f"The adapter changes {name} of shape {tuple(wanted)}, and {base} has "
            f"{shapes.get(name, 'no such tensor')}: it was trained on another base."
        )


def _save_settings(
    base: Path, folder: Path, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
) -> None:
    config = loading.load_config(base)
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
