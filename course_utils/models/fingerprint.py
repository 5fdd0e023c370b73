"""Which base model an adapter was trained on, so that it is merged into no other.

Two bases of one shape take the same adapter without an error. A fingerprint over the
base's weights lies beside the adapter and is compared when the two are merged.
"""

import hashlib
import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from course_utils.models import shards
from course_utils.setup import folders
from course_utils.setup.profiles import is_hub_id

FILE = "base_fingerprint.json"
_ENTIRE = 2**20  # values up to which a tensor is read entirely
_ROWS = 8  # of a larger one


def local_folder(base: str | Path | torch.nn.Module) -> Path:
    """The folder with a base's weights.

    base: folder, hub id (its files come from the cache, or are downloaded), or a model
    that was loaded from either, with or without an adapter around it.
    Raises: FileNotFoundError for a model that was loaded from no folder.
    """
    if isinstance(base, torch.nn.Module):
        inner = base.get_base_model() if hasattr(base, "get_base_model") else base
        base = getattr(inner.config, "_name_or_path", "")
    if base and is_hub_id(str(base)):
        base = snapshot_download(str(base), allow_patterns=["*.safetensors", "*.json"])
    if not base or not Path(base).is_dir():
        raise FileNotFoundError(f"There is no folder of a base model at {str(base)!r}.")
    return Path(base)


def base_fingerprint(base: str | Path | torch.nn.Module) -> str:
    """SHA-256 over names, shapes and values of a base's weights, as hex.

    base: as for `local_folder`. Of tensors with over a million values eight rows count,
    so 8B take a second. Values are rounded to bfloat16: a copy in float32 is the same.
    """
    reader, digest = shards.Reader(local_folder(base)), hashlib.sha256()
    for name, (shape, _) in sorted(reader.shapes().items()):
        rows = None
        if torch.Size(shape).numel() > _ENTIRE:
            rows = sorted({i * (shape[0] - 1) // (_ROWS - 1) for i in range(_ROWS)})
        values = reader.read(name, rows)
        values = values.bfloat16() if values.is_floating_point() else values
        digest.update(json.dumps([name, shape]).encode())
        digest.update(values.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def record_base(adapter: str | Path, base: str | Path | torch.nn.Module) -> None:
    """Write the base's fingerprint into an adapter's folder, for the merge to compare.

    base: what the adapter was trained on, as for `local_folder`.
    """
    folders.write_json(Path(adapter) / FILE, {"sha256": base_fingerprint(base)})


def require_same_base(adapter: str | Path, base: str | Path) -> str:
    """Raise ValueError if an adapter's folder names another base than this one.

    Without a fingerprint the folder counts that PEFT noted as the base's, if it is
    still there. Returns: "" or, if nothing names the base, one line that says so.
    """
    file = Path(adapter) / FILE
    if not file.is_file():
        noted = _noted_by_peft(Path(adapter))
        if noted is not None:
            _require_equal(base_fingerprint(noted), adapter, base)
            return ""
        return (
            f"{Path(adapter).name} holds no {FILE}, so only shapes can say whether it "
            "belongs to this base; models.record_base writes one after training."
        )
    try:
        expected = json.loads(file.read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read: {error!r}. Train again.") from error
    _require_equal(expected, adapter, base)
    return ""


def _noted_by_peft(adapter: Path) -> Path | None:
    text = (adapter / "adapter_config.json").read_text(encoding="utf-8")
    noted = json.loads(text).get("base_model_name_or_path")
    names = (shards.SINGLE, shards.INDEX)
    there = noted and any((Path(noted) / name).is_file() for name in names)
    return Path(noted) if there else None


def _require_equal(expected: str, adapter: str | Path, base: str | Path) -> None:
    if expected != base_fingerprint(base):
        raise ValueError(
            f"The adapter in {adapter} was trained on another base than {base}: the "
            "shapes agree, and the weights do not. Name the base of its training."
        )
