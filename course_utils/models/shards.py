"""Checkpoints written tensor by tensor: a shard is never held in memory.

`safetensors.torch.save_file` wants an entire shard at once, and makes a copy of it.
Here the order and shapes are known beforehand, so a tensor's bytes can go to the file
as soon as they are made. huggingface_hub plans which tensor goes into which file.
Source: the format as documented by the safetensors library: 8 bytes with the length of
a JSON header, the header, then the tensors' bytes in its order.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open

from course_utils.setup import folders

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
Shapes = dict[str, tuple[int, ...]]
PLAIN = ("BF16", "F16", "F32")  # what weights are stored as
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class IncompleteCheckpoint(FileNotFoundError, ValueError):
    """A folder that lacks files of its checkpoint, or whose files contradict it."""


def plan(shapes: Shapes, dtype: torch.dtype, max_bytes: int) -> StateDictSplit:
    """Which tensor goes into which file, named as transformers names them."""
    return split_state_dict_into_shards_factory(
        shapes,
        get_storage_size=lambda shape: prod(shape) * dtype.itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_bytes,
    )


class ShardWriter:
    """Writes one safetensors file, tensor after tensor, in the order given.

    with ShardWriter(path, shapes, dtype) as shard:
        for name in shapes:
            for rows in ...:
                shard.write(rows)  # any number of rows at a time
    """

    def __init__(self, path: Path, shapes: Shapes, dtype: torch.dtype) -> None:
        """path: the file. shapes: {tensor: shape}, in order. dtype: of all of them."""
        self._dtype, self._path, self._left = dtype, Path(path), 0
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, shape in shapes.items():
            end = at + prod(shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [at, end],
            }
            at = end
        text = json.dumps(header).encode()
        self._header = text + b" " * (-len(text) % 8)  # tensors start at a multiple
        self._left = at

    def __enter__(self) -> "ShardWriter":
        self._file = open(self._path, "wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def write(self, values: torch.Tensor) -> None:
        """The next values in order: a CPU tensor of the file's dtype."""
        if values.dtype != self._dtype:
            raise TypeError(
                f"{self._path.name} holds {self._dtype}: got {values.dtype}"
            )
        view = values.detach().contiguous().view(torch.uint8).reshape(-1).numpy()
        self._left -= len(view)
        self._file.write(view.data)

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{self._path.name}: {self._left} bytes too few or many.")


def write_checkpoint(
    folder: Path,
    shapes: Shapes,
    dtype: torch.dtype,
    make: Callable[[str], torch.Tensor | Iterable[torch.Tensor]],
    max_bytes: int = 5_000_000_000,
) -> int:
    """Write weights, and the index if there are several files.

    shapes: {tensor: shape}. make(name): the tensor's values, as one CPU tensor or an
        iterable of parts of it in order; called once for each, in the order of shapes.
    max_bytes: of a file; a larger tensor gets a file of its own.
    Returns: the bytes of all tensors.
    """
    split = plan(shapes, dtype, max_bytes)
    with ExitStack() as stack:
        writers = {
            file: stack.enter_context(
                ShardWriter(Path(folder) / file, {n: shapes[n] for n in names}, dtype)
            )
            for file, names in split.filename_to_tensors.items()
        }
        for name in shapes:
            values, writer = make(name), writers[split.tensor_to_filename[name]]
            for part in [values] if torch.is_tensor(values) else values:
                writer.write(part)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        folders.write_json(Path(folder) / INDEX, index)
    return split.metadata["total_size"]


def weight_files(folder: Path) -> dict[str, Path]:
    """{tensor: Path of its file} of a saved checkpoint, in the files' own order.

    Raises: IncompleteCheckpoint, which is a FileNotFoundError and a ValueError, if
        there is no safetensors file, if the index names a file that is not there, or if
        files and index do not hold the same tensors; ValueError for a broken file.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise IncompleteCheckpoint(
                f"{folder} holds neither {SINGLE} nor {INDEX}{_pickled(folder)}."
            )
        return dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
    named = _weight_map(index)
    missing = sorted({f for f in named.values() if not (folder / f).is_file()})
    if missing:
        raise IncompleteCheckpoint(
            f"{folder} lacks {', '.join(missing)}, named in {INDEX}."
        )
    found = {
        n: folder / f for f in sorted({*named.values()}) for n in _names(folder / f)
    }
    differing = sorted(
        name
        for name in {*found, *named}
        if name not in found or found[name].name != named.get(name)
    )
    if differing:
        raise IncompleteCheckpoint(
            f"{INDEX} in {folder} and the files differ on {', '.join(differing[:3])}"
            f"{' and others' if len(differing) > 3 else ''}."
        )
    return found


def _pickled(folder: Path) -> str:
    found = sorted(
        p.name for end in ("*.bin", "*.pt", "*.pth") for p in folder.glob(end)
    )
    if not found:
        return ""
    return (
        f", but {found[0]}: the course reads safetensors only, because pickled weights "
        "can run code. Save it again with save_pretrained"
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        plain = all(Path(file).name == file for file in named.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a checkpoint: {error!r}.") from error
    if not plain:
        raise ValueError(f"{index} names files outside its own folder.")
    return named


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no complete safetensors file ({error}): copy it again."
        ) from error


class Reader:
    """Reads single tensors of a saved checkpoint, and keeps nothing of them.

    Each read opens the file anew: an open file stays mapped into memory, and with it
    every page that was read.
    """

    def __init__(self, folder: Path) -> None:
        self._files = weight_files(folder)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def read(self, name: str, rows: Iterable[int] | None = None) -> torch.Tensor:
        """A copy of the tensor, or of some rows of it."""
        with safe_open(self._files[name], framework="pt") as file:
            if rows is None:
                return file.get_tensor(name).clone()
            view = file.get_slice(name)
            return torch.cat([view[row : row + 1] for row in rows])

    def shapes(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """{tensor: (shape, name of its dtype)}, in the files' order."""
        found = {}
        with ExitStack() as stack:
            opened = {
                path: stack.enter_context(safe_open(path, framework="pt"))
                for path in set(self._files.values())
            }
            for name, path in self._files.items():
                view = opened[path].get_slice(name)
                found[name] = tuple(view.get_shape()), view.get_dtype()
        return found
