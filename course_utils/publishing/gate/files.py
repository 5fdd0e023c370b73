"""What a model's folder must hold, and must not, before anybody runs it.

Each function returns what is wrong, in words; an empty list if nothing is.
"""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from course_utils.models import load_tokenizer, require_no_code, shards
from course_utils.publishing.gate.behaviour import encode

# Pickles run code when they are loaded, and Python files when a reader trusts them.
CODE = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".py", ".so")
ADAPTER = ("lora_", "token_adapter", "trainable_tokens", "base_layer")
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def runnable(folder: Path) -> list[str]:
    """Files that can run code on the machine that loads them."""
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.suffix in CODE
    )
    wrong = [f"{name} can run code; only safetensors are published" for name in found]
    try:
        require_no_code(folder)
    except ValueError as error:
        wrong.append(str(error).rstrip("."))
    return wrong


def incomplete(folder: Path) -> list[str]:
    """Weights or settings that are missing."""
    needed = ("config.json", "generation_config.json", "tokenizer.json")
    wrong = [f"{n} is missing" for n in needed if not (Path(folder) / n).is_file()]
    try:
        shards.weight_files(folder)
    except (FileNotFoundError, ValueError) as error:
        wrong.append(str(error).rstrip("."))
    return wrong


def not_finite(folder: Path) -> list[str]:
    """Tensors with NaN or infinity in them."""
    reader = shards.Reader(folder)
    broken = [n for n in reader if not bool(torch.isfinite(reader.read(n)).all())]
    return [f"{name} holds NaN or infinity" for name in broken]


def left_over(folder: Path) -> list[str]:
    """What quantisation or the adapter left behind."""
    wrong = []
    for name in ("config.json", "generation_config.json"):
        if "quantization_config" in _json(folder, name):
            wrong.append(f"{name} still has a quantization_config")
    if (Path(folder) / "adapter_config.json").exists():
        wrong.append("adapter_config.json is there: was the adapter merged?")
    for name, (_, dtype) in shards.Reader(folder).shapes().items():
        if dtype not in shards.PLAIN:
            wrong.append(f"{name} is stored as {dtype}, not in 16 or 32 bit")
        elif any(part in name for part in ADAPTER):
            wrong.append(f"{name} belongs to an adapter")
    return wrong


def vocabulary_of(folder: Path) -> tuple[int, int, int]:
    """(rows of the input table, rows of the head, the config's vocab_size)."""
    shapes = shards.Reader(folder).shapes()
    config = _json(folder, "config.json")
    if config.get("tie_word_embeddings"):
        rows = shapes[TABLES[0]][0][0]
        return rows, rows, config["vocab_size"]
    return (*(shapes[name][0][0] for name in TABLES), config["vocab_size"])


def other_vocabulary(folder: Path, expected: tuple[int, int, int]) -> list[str]:
    """Differences from the trained model's vocabulary; expected: as vocabulary_of."""
    found = vocabulary_of(folder)
    wrong = []
    if found != tuple(expected):
        wrong.append(
            f"the vocabulary has {found} rows and ids, the trained model's {expected}"
        )
    highest = max(load_tokenizer(folder).get_vocab().values())
    if highest >= min(found):
        wrong.append(f"the tokenizer has id {highest}, and the model {min(found)} rows")
    return wrong


def other_chat(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: list[list[dict]]
) -> list[str]:
    """Ways in which the saved chat format is not the one that was trained with."""
    saved = load_tokenizer(folder)
    if not saved.chat_template:
        return ["no chat template was saved"]
    wrong = []
    if encode(saved, prompts) != encode(tokenizer, prompts):
        wrong.append("the saved template and tokenizer give other tokens for a prompt")
    answered = [*prompts[0], {"role": "assistant", "content": "Yes, it does."}]
    text = saved.apply_chat_template(answered, tokenize=False)
    ids = saved(text, add_special_tokens=False)["input_ids"]
    if saved.decode(ids) != text:
        wrong.append("a conversation does not come back from its tokens")
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if ids[:1] != [bos] or ids.count(bos) != 1:
        wrong.append("a conversation does not begin with exactly one BOS")
    if ids[-1] != end or ids[-2] == end:
        wrong.append("an answer does not end with exactly one end of turn")
    if saved.eos_token_id != end:
        wrong.append(f"the saved tokenizer ends at {saved.eos_token!r}, not the turn")
    if saved.pad_token_id in (None, end):
        wrong.append("the padding token is missing, or the end of turn itself")
    return wrong


def does_not_stop(folder: Path, end: int) -> list[str]:
    """Why a program that reads the folder would write on after the end of turn."""
    stops = _json(folder, "generation_config.json").get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    if end in stops:
        return []
    return [f"generation_config.json ends at {stops}, and the turn ends with {end}"]


def _json(folder, name):
    return json.loads((Path(folder) / name).read_text(encoding="utf-8"))
