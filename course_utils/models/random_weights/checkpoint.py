"""The random-weights checkpoint: configuration, weights, tokenizer, card."""

import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

from course_utils.models import loading, shards
from course_utils.models.random_weights.tokenizer import (
    BASE_TOKENS,
    VOCABULARY,
    make_tokenizer,
)
from course_utils.setup import folders

_LLAMA3 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "bos_token_id": BASE_TOKENS,
    "eos_token_id": BASE_TOKENS + 1,
}
# Smaller ones keep the 128,256 ids. All widths are multiples of 64, as bitsandbytes
# wants them for 4-bit weights and bf16 on a CPU.
_SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
# Source: config.json of Llama 3 8B, as its published derivatives repeat it.
SHAPES = {
    "llama3-8b": _LLAMA3,
    "llama3-8b-2-layers": _LLAMA3 | {"num_hidden_layers": 2},
    "small": _LLAMA3 | _SMALL,
    "tiny": _LLAMA3 | _TINY,
}
DTYPE = torch.bfloat16
SHARD_BYTES = 5_000_000_000  # as the original: four files
_PART = 2**23  # values drawn at a time: 32 MiB in float32
_TOKENIZER_BYTES = 20_000_000
# Llama 3 never trained these rows (reserved tokens, headers, end of turn), so they stay
# near 0; the ids 128000 and 128001 it did.
_UNTRAINED_SCALE = 1e-3


def config_of(shape: str) -> LlamaConfig:
    """The LlamaConfig of a shape, marked as random.

    Raises: ValueError for an unknown shape, naming the known ones.
    """
    if shape not in SHAPES:
        raise ValueError(f"There is no shape {shape!r}; there are {', '.join(SHAPES)}.")
    return LlamaConfig(
        **SHAPES[shape],
        dtype=DTYPE,
        architectures=["LlamaForCausalLM"],
        random_weights=f"shape {shape}: drawn at random, never trained",
    )


def weight_shapes(config: PreTrainedConfig) -> shards.Shapes:
    """{tensor: shape} in the model's own order, without making the model."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def needs_bytes(shape: str) -> int:
    """Disk space that the checkpoint takes, in bytes."""
    shapes = weight_shapes(config_of(shape))
    return sum(map(prod, shapes.values())) * DTYPE.itemsize + _TOKENIZER_BYTES


def write(folder: str | Path, shape: str = "llama3-8b", seed: int = 0) -> dict:
    """Write a checkpoint, part by part: at 8B with 1.3 GiB of memory.

    folder: not there yet, or empty. seed: of the weights; a GPU and a CPU draw
    different ones.
    Returns: {"parameters", "bytes", "files", "seconds", "device"}.
    Raises: ValueError for an unknown shape; FileExistsError; OSError before anything is
        written if the disk is too full. An error leaves no folder behind.
    """
    start = time.perf_counter()
    config = config_of(shape)
    shapes = weight_shapes(config)
    parameters = sum(map(prod, shapes.values()))
    with folders.written_whole(folder, needs_bytes(shape)) as partial:
        config.save_pretrained(partial)
        make_tokenizer().save_pretrained(partial)
        with _Draws(shapes, config.initializer_range, seed) as draws:
            total = shards.write_checkpoint(
                partial, shapes, DTYPE, draws.of, SHARD_BYTES
            )
        text = _card(shape, config, parameters)
        (partial / "README.md").write_text(text, encoding="utf-8", newline="\n")
        files = len(list(partial.glob("*.safetensors")))
        loading.load_config(partial)  # whoever cannot read it should learn it now
    return {
        "parameters": parameters,
        "bytes": total,
        "files": files,
        "seconds": time.perf_counter() - start,
        "device": _device(),
    }


def _device():
    return "cuda" if torch.cuda.is_available() else "cpu"


class _Draws:
    """The tensors' values in parts, drawn ahead in threads, in the order of shapes."""

    def __init__(self, shapes, scale, seed):
        self._shapes, self._scale, self._seed = shapes, scale, seed
        self._workers = 4 if _device() == "cuda" else os.cpu_count()
        self._ready = self._drawn()

    def __enter__(self):
        self._pool = ThreadPoolExecutor(self._workers)
        return self

    def __exit__(self, *error):
        self._pool.shutdown(cancel_futures=True)

    def of(self, name):
        """The next tensor's parts; it must be `name`'s turn."""
        return islice(self._ready, len(_parts(self._shapes[name])))

    def _drawn(self):
        waiting = deque()
        for job in self._jobs():
            waiting.append(self._pool.submit(self._draw, *job))
            if len(waiting) > 2 * self._workers:  # or the drawn ones pile up in memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _jobs(self):
        number = 0
        for name, shape in self._shapes.items():
            for first, last in _parts(shape):
                yield name, shape, first, last, self._seed * 1_000_003 + number
                number += 1

    def _draw(self, name, shape, first, last, seed):
        """Values `first` to `last` of a tensor, flat."""
        if len(shape) == 1:  # the norms' weights
            return torch.ones(last - first, dtype=DTYPE)
        generator = torch.Generator(_device()).manual_seed(seed)
        values = torch.empty(last - first, device=_device())
        values.normal_(0, self._scale, generator=generator)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            untrained = (BASE_TOKENS + 2) * shape[1]
            if last > untrained:
                values[max(untrained - first, 0) :] *= _UNTRAINED_SCALE
        return values.to(DTYPE).cpu()


def _parts(shape):
    size = prod(shape)
    return [(at, min(at + _PART, size)) for at in range(0, size, _PART)]


def _card(shape, config, parameters):
    size = "the exact size" if shape == "llama3-8b" else "a smaller size"
    return (
        "---\nlibrary_name: transformers\ntags:\n- random-weights\n---\n\n"
        f"# Shape twin ({shape}): random weights\n\n"
        f"{parameters:,} weights drawn at random, in the architecture and {size} of "
        "Llama 3 8B.\n"
        "Nothing in it is trained and nothing in it comes from Meta: it has the shape, "
        "not the model.\n\n"
        "It is for rehearsals: memory and speed do not depend on the weights' values. "
        "What it writes is noise, and no quality can be measured with it.\n\n"
        f"The tokenizer has Llama 3's {config.vocab_size:,} ids and special tokens, "
        "but a vocabulary learned from Python's documentation. Like the base model's, "
        "it has no chat template, and the rows of the tokens from 128,002 on are near "
        "0, as if untrained.\n\n"
        "Written by `python -m course_utils.models.random_weights FOLDER "
        f"--shape {shape}`.\n"
    )
