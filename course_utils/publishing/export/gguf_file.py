"""A merged model as one GGUF file, which llama.cpp and the programs around it read.

It writes the Llama architecture with byte-level BPE, in 16 or 32 bit. For Llama 3's own
tokenizer llama.cpp's `convert_hf_to_gguf.py` does the same. That script knows a
tokenizer by a hash over its tokens, so it refuses any other vocabulary, such as the
lab's. Here the way of *splitting* text is recognised, whose name llama.cpp needs; the
vocabulary goes into the file.
"""

import json
import re
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

import gguf
import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from course_utils import models
from course_utils.chat.template import LLAMA3_SPLIT
from course_utils.models import shards
from course_utils.models.random_weights.checkpoint import weight_shapes
from course_utils.setup import folders

# How a matrix is stored. llama.cpp rounds activations to the weights' 16-bit type.
TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
_VECTOR = gguf.GGMLQuantizationType.F32  # norms, always
_KEY_BYTES = 50_000_000  # the tokenizer
_MARK = "orpo_course.version"  # the key by which a file of this writer is known
# transformers marks with it what the assistant writes; it prints nothing, and other
# programs' template engines do not know it.
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


def to_gguf(folder: str | Path, path: str | Path, dtype: str = "float16") -> int:
    """Write a saved Llama and its tokenizer as one GGUF file.

    folder: a merged model's. path: ends in .gguf; a file of this writer is replaced.
        dtype: of the matrices: "float16", "bfloat16" or "float32".
    Returns: bytes written.
    Raises: ValueError for another architecture, a RoPE or a way of splitting text that
    llama.cpp would not read alike, a tokenizer without end of turn or chat format, a
    tensor that is missing, of a wrong shape, extra or not finite, and a weight that
    float16 cannot hold; as folders.written_file. After an error there is no file.
    """
    folder, path = Path(folder), Path(path)
    if path.suffix != ".gguf":
        raise ValueError(f"{path} should end in .gguf: programs go by the name.")
    if dtype not in TYPES:
        raise ValueError(f"There is no dtype {dtype!r}: choose {', '.join(TYPES)}.")
    config = models.load_config(folder)
    _require_readable(config)
    reader = shards.Reader(folder)
    shapes = _complete_shapes(reader, config, folder)
    names = _gguf_names(shapes, config.num_hidden_layers)
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json, which the file needs.")
    tokenizer = models.load_tokenizer(folder)
    _require_chat(tokenizer, folder)
    size = sum(prod(s) for s in shapes.values()) * _bytes(TYPES[dtype][0])
    with folders.written_file(
        path, _MARK.encode(), size + _KEY_BYTES, inputs=[folder]
    ) as partial:
        writer = gguf.GGUFWriter(partial, "llama")
        try:
            _add_keys(writer, config, tokenizer, folder.resolve().name, dtype)
            _write_tensors(writer, reader, shapes, names, config, dtype)
        finally:
            writer.close()
    return path.stat().st_size


def _require_readable(config: PreTrainedConfig) -> None:
    if config.model_type != "llama":
        raise ValueError(
            f"Only Llama is written here, and this is {config.model_type}."
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ValueError(
            f"This model scales its RoPE ({rope['rope_type']}), which needs factors "
            "that are not written here: use llama.cpp's convert_hf_to_gguf.py."
        )
    if config.attention_bias or config.mlp_bias:
        raise ValueError("This model has biases, which are not written here.")
    if config.hidden_act != "silu":
        raise ValueError(f"llama.cpp computes silu, and this uses {config.hidden_act}.")
    if getattr(config, "quantization_config", None):
        raise ValueError("This model is quantised: write its 16-bit weights instead.")


def _complete_shapes(
    reader: shards.Reader, config: PreTrainedConfig, folder: Path
) -> shards.Shapes:
    """{tensor: shape}, which are exactly those that the configuration asks for."""
    stored = reader.shapes()
    wanted = weight_shapes(config)
    if config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    for name, shape in wanted.items():
        if name not in stored:
            raise ValueError(f"{folder} lacks the tensor {name}: save the model again.")
        if stored[name][0] != shape:
            raise ValueError(
                f"{folder} holds {name} of shape {stored[name][0]}, and its "
                f"configuration asks for {shape}."
            )
    for name, (shape, kind) in stored.items():
        if name not in wanted:
            raise ValueError(
                f"{folder} holds {name} of shape {shape}, for which its configuration "
                "has no place."
            )
        if kind not in shards.PLAIN:
            raise ValueError(f"{folder} stores {name} as {kind}, not in 16 or 32 bit.")
    return {name: stored[name][0] for name in stored}


def _require_chat(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    for what, value in (
        ("end of turn (eos_token)", tokenizer.eos_token_id),
        ("chat template", tokenizer.chat_template),
    ):
        if not isinstance(value, int | str) or value == "":
            raise ValueError(
                f"The tokenizer in {folder} has no {what}, and llama.cpp would take "
                "one of its own: save the tokenizer that the training used."
            )


def _gguf_names(shapes: shards.Shapes, layers: int) -> dict[str, str]:
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    names = {name: known.get_name(name, (".weight",)) for name in shapes}
    unknown = [name for name, found in names.items() if found is None]
    if unknown:
        raise ValueError(f"GGUF has no name for {', '.join(unknown)}.")
    return names


def _add_keys(
    writer: gguf.GGUFWriter,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    dtype: str,
) -> None:
    writer.add_string(_MARK, _course_version())
    writer.add_name(name)
    writer.add_file_type(TYPES[dtype][1])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_tokenizer(writer, tokenizer, config.vocab_size)


def _course_version() -> str:
    try:
        return version("orpo-course")
    except PackageNotFoundError:
        return "unknown"


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int
) -> None:
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, kinds = tokens_and_kinds(tokenizer, data, rows)
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")  # GGUF's word for byte-level BPE
    writer.add_tokenizer_pre(splitting(data))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:  # llama.cpp pads nothing without one
        writer.add_pad_token_id(tokenizer.pad_token_id)
    begin = tokenizer.bos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    # A plain text gets a BOS as transformers gives it; a template writes its own.
    writer.add_add_bos_token(begin is not None and tokenizer("a").input_ids[0] == begin)
    writer.add_chat_template(_GENERATION_TAG.sub("", tokenizer.chat_template))


def tokens_and_kinds(
    tokenizer: PreTrainedTokenizerBase, data: dict, rows: int
) -> tuple[list[str], list[gguf.TokenType]]:
    """(the text of each id, its gguf.TokenType), for `rows` ids.

    data: the tokenizer's JSON. Raises: ValueError if it has more ids than rows.
    """
    vocabulary, added = data["model"]["vocab"], data["added_tokens"]
    ids = {number: text for text, number in vocabulary.items()}
    added = {each["id"]: each for each in added}
    highest = max({*ids, *added})
    if highest >= rows:
        raise ValueError(f"The tokenizer has id {highest}, and the model {rows} rows.")
    tokens, kinds = [], []
    for number in range(rows):
        if number in added:
            text, special = added[number]["content"], added[number]["special"]
            kind = gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED
        elif number in ids:
            text, kind = ids[number], gguf.TokenType.NORMAL
        else:
            text, kind = f"[PAD{number}]", gguf.TokenType.UNUSED
        tokens.append(text)
        kinds.append(kind)
    return tokens, kinds


def splitting(data: dict) -> str:
    """llama.cpp's name for how a tokenizer cuts text before it applies its merges.

    data: the tokenizer's JSON. Raises: ValueError for a way that llama.cpp has no name
    for, or that this module does not know.
    """
    model, steps = data["model"], data["pre_tokenizer"] or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    whole = bool(model.get("ignore_merges"))  # a known word needs no merges
    last_splits = bool(steps[-1].get("use_regex"))
    plain = model["type"] == "BPE" and data["normalizer"] is None
    plain = plain and not steps[-1].get("add_prefix_space")
    if plain and kinds == ["Split", "ByteLevel"] and whole and not last_splits:
        first = steps[0]
        if first["pattern"] == {"Regex": LLAMA3_SPLIT} and not first["invert"]:
            return "llama-bpe"
    if plain and kinds[-1] == "ByteLevel" and last_splits and not whole:
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
            return "smollm"
    raise ValueError(
        f"This tokenizer splits text by {' and '.join(map(str, kinds))}, and llama.cpp "
        "has no known name for exactly that: the model would read other tokens."
    )


def _write_tensors(
    writer: gguf.GGUFWriter,
    reader: shards.Reader,
    shapes: shards.Shapes,
    names: dict[str, str],
    config: PreTrainedConfig,
    dtype: str,
) -> None:
    for name, shape in shapes.items():
        kind = TYPES[dtype][0] if len(shape) > 1 else _VECTOR
        size = prod(shape) * _bytes(kind)
        numpy_type = np.dtype(np.float16 if _bytes(kind) == 2 else np.float32)
        writer.add_tensor_info(names[name], shape, numpy_type, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in shapes.items():
        weight = for_rotation(name, reader.read(name), config)
        kind = TYPES[dtype][0] if len(shape) > 1 else _VECTOR
        writer.write_tensor_data(_stored(name, weight, kind))


def _bytes(kind: gguf.GGMLQuantizationType) -> int:
    return 4 if kind == _VECTOR else 2


def _stored(
    name: str, weight: torch.Tensor, kind: gguf.GGMLQuantizationType
) -> np.ndarray:
    if not bool(weight.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity: look at the training.")
    if kind == gguf.GGMLQuantizationType.F32:
        return weight.float().numpy()
    if kind == gguf.GGMLQuantizationType.BF16:
        return weight.bfloat16().view(torch.int16).numpy()  # NumPy has no bfloat16
    half = weight.half()
    if bool(half.isinf().any()):
        raise ValueError(f"{name} has values too large for float16: use bfloat16.")
    return half.numpy()


def for_rotation(
    name: str, weight: torch.Tensor, config: PreTrainedConfig
) -> torch.Tensor:
    """The weight with the rows of queries and keys in llama.cpp's order.

    transformers rotates value i of a head with value i + half, llama.cpp value 2 i with
    2 i + 1: the rows of each head are interleaved.
    """
    heads = {
        "self_attn.q_proj.weight": config.num_attention_heads,
        "self_attn.k_proj.weight": config.num_key_value_heads,
    }
    for ending, count in heads.items():
        if name.endswith(ending):
            halves = weight.view(count, 2, config.head_dim // 2, weight.shape[1])
            return halves.transpose(1, 2).reshape(weight.shape).contiguous()
    return weight
