"""Checkpoints written tensor by tensor: a shard is never held in memory.

Knows: the safetensors format, the index of a sharded checkpoint.
Does not know: models, where the tensors come from.

`safetensors.torch.save_file` wants a whole shard at once, and makes a copy of it. Here
the order and shapes are known beforehand, so a tensor's bytes can go to the file as
soon as they are made.
Source: the format as documented by the safetensors library: 8 bytes with the length of
a JSON header, the header, then the tensors' bytes in its order.
"""

import json
from contextlib import ExitStack
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def plan(shapes, dtype, max_bytes):
    """Which tensor goes into which file.

    shapes: {tensor: shape}, in the order in which they will be written. dtype: of all.
    Returns: {file: [tensor, ...]}, named as transformers names them.
    """
    groups, size = [[]], 0
    for name, shape in shapes.items():
        bytes_ = prod(shape) * dtype.itemsize
        if groups[-1] and size + bytes_ > max_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += bytes_
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {
        f"model-{i:05d}-of-{count:05d}.safetensors": group
        for i, group in enumerate(groups, 1)
    }


class ShardWriter:
    """Writes one safetensors file, tensor after tensor, in the order given.

    with ShardWriter(path, shapes, dtype) as shard:
        for name in shapes:
            for rows in ...:
                shard.write(rows)  # any number of rows at a time
    """

    def __init__(self, path, shapes, dtype):
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

    def __enter__(self):
        self._file = open(self._path, "wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def write(self, values):
        """The next values in order: a CPU tensor of the file's dtype."""
        if values.dtype != self._dtype:
            raise TypeError(
                f"{self._path.name} holds {self._dtype}: got {values.dtype}"
            )
        view = values.detach().contiguous().view(torch.uint8).reshape(-1).numpy()
        self._left -= len(view)
        self._file.write(view.data)

    def __exit__(self, kind, *rest):
        self._file.close()
        if kind is None and self._left:
            raise ValueError(f"{self._path.name}: {self._left} bytes too few or many.")


def write_checkpoint(folder, shapes, dtype, make, max_bytes=5_000_000_000):
    """Write weights, and the index if there are several files.

    shapes: {tensor: shape}. make(name): the tensor's values, as one CPU tensor or an
        iterable of parts of it in order; called once for each, in the order of shapes.
    Returns: the bytes of all tensors.
    """
    files = plan(shapes, dtype, max_bytes)
    for file, names in files.items():
        own = {name: shapes[name] for name in names}
        with ShardWriter(Path(folder) / file, own, dtype) as shard:
            for name in names:
                values = make(name)
                for part in [values] if torch.is_tensor(values) else values:
                    shard.write(part)
    total = sum(prod(shape) for shape in shapes.values()) * dtype.itemsize
    if len(files) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {
                name: file for file, names in files.items() for name in names
            },
        }
        text = json.dumps(index, indent=1) + "\n"
        (Path(folder) / INDEX).write_text(text, encoding="utf-8", newline="\n")
    return total


def weight_files(folder):
    """{tensor: Path of its file} of a saved checkpoint, in the files' own order.

    Raises: FileNotFoundError if there is no safetensors file, or if the index names a
        file that is not there; ValueError if files and index do not hold the same
        tensors.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}.")
        return dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    missing = sorted({f for f in named.values() if not (folder / f).is_file()})
    if missing:
        raise FileNotFoundError(
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
        raise ValueError(
            f"{INDEX} in {folder} and the files differ on {', '.join(differing[:3])}"
            f"{' and others' if len(differing) > 3 else ''}."
        )
    return found


def _names(file):
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


class Reader:
    """Reads single tensors of a saved checkpoint, and keeps nothing of them.

    Each read opens the file anew: an open file stays mapped into memory, and with it
    every page that was read.
    """

    def __init__(self, folder):
        self._files = weight_files(folder)

    def __iter__(self):
        return iter(self._files)

    def read(self, name):
        """A copy of the tensor."""
        with safe_open(self._files[name], framework="pt") as file:
            return file.get_tensor(name).clone()

    def shapes(self):
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
