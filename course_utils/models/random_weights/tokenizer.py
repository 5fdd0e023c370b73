"""A tokenizer with Llama 3's ids, made from text that every Python carries.

It has Llama 3's special tokens with their ids and splits text as Llama 3 does. The
vocabulary is another one, because Llama 3's is covered by its licence: a text takes
about as many tokens, but not the same ones.
"""

import ast
import json
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from course_utils.chat.template import LLAMA3_SPLIT

BASE_TOKENS = 128_000
SPECIAL_TOKENS = 256
VOCABULARY = BASE_TOKENS + SPECIAL_TOKENS
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"
# Position among the special tokens; the others are reserved, numbered without gaps.
# Source: meta-llama/llama3, llama/tokenizer.py.
_NAMED = {
    0: BOS,
    1: EOS,
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}


def special_tokens() -> list[str]:
    """Llama 3's 256 special tokens in the order of their ids, from 128,000 on."""
    names, reserved = [], 0
    for position in range(SPECIAL_TOKENS):
        if position in _NAMED:
            names.append(_NAMED[position])
        else:
            names.append(f"<|reserved_special_token_{reserved}|>")
            reserved += 1
    return names


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Llama 3's 128,256 ids and no chat template.

    Returns: PreTrainedTokenizerFast. Its merges are learned from the documentation of
    Python's standard library, so they differ with Python's version. Ids below 128,000
    that no merge leads to are unused.
    """
    learned = _learn()
    vocabulary = dict(learned["vocab"])
    for number in range(len(vocabulary), BASE_TOKENS):
        vocabulary[f"<|unused_{number}|>"] = number
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = _pipeline(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.add_special_tokens(
        [AddedToken(n, special=True, normalized=False) for n in special_tokens()]
    )
    begin = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), begin]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _learn():
    """{"vocab", "merges"} of a BPE model learned from the standard library."""
    tokenizer = _pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=BASE_TOKENS,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_documentation(), trainer)
    return json.loads(tokenizer.to_str())["model"]


def _pipeline(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _documentation():
    """The texts of `help()`, and the docstrings of the standard library's modules."""
    yield from topics.values()
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if {"test", "site-packages", "idlelib"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue  # lib2to3 carries files of Python 2
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text
