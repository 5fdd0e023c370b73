"""The Llama 3 chat format on a base model's tokenizer.

See `untrained` for the embedding rows of its special tokens in a model.
"""

import re

from transformers import PreTrainedTokenizerBase

BOS = "<|begin_of_text|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
END_OF_TURN = "<|eot_id|>"

# Numbered with gaps in some versions: Llama 3.1 took one of them for padding.
_RESERVED = re.compile(r"<\|reserved_special_token_(\d+)\|>")

# Contractions, words with what precedes them, up to three digits, signs, line breaks.
# Source: meta-llama/llama3, llama/tokenizer.py.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# {% generation %} marks what the model writes itself, its end of turn included:
# transformers' `return_assistant_tokens_mask` needs the mark, and it prints nothing.
LLAMA3_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if loop.first -%}{{ bos_token }}{%- endif -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{%- set text = message['content'] | trim -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ text + '<|eot_id|>' }}{%- endgeneration -%}"
    "{%- else -%}"
    "{{ text + '<|eot_id|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif -%}"
)


def use_llama3_chat(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Give a Llama 3 base tokenizer the chat format: template, end and padding token.

    tokenizer: changed in place. Its vocabulary keeps its size, so no embedding is
        resized. The end token becomes <|eot_id|>, which ends a turn: with the base's
        <|end_of_text|>, TRL would append a second end token to every answer. The
        padding token becomes the first reserved token, never the end token, which
        trainers that mask padding by its id would then never learn.
    Returns: ids of the control tokens that the template writes: start of header, end of
        header, end of turn. In a base model they are untrained: see
        `untrained_token_ids`.
    Raises: ValueError if the tokenizer lacks one of the tokens, naming all that are
        missing, or if it joins the header's line breaks with the answer.
    """
    names = (BOS, START_HEADER, END_HEADER, END_OF_TURN)
    missing = [name for name in names if not _is_one_token(tokenizer, name)]
    reserved = [name for name in tokenizer.get_vocab() if _RESERVED.fullmatch(name)]
    if not reserved:
        missing.append("<|reserved_special_token_0|> (or any other reserved token)")
    label = tokenizer.name_or_path or type(tokenizer).__name__
    if missing:
        raise ValueError(
            f"this tokenizer ({label}) has no single token for {', '.join(missing)}. "
            "The Llama 3 chat format needs Llama 3's special tokens: use a base model "
            "with the Llama 3 tokenizer. Adding them would resize the embedding by "
            "untrained rows."
        )
    if not _keeps_header_apart(tokenizer):
        raise ValueError(
            f"this tokenizer ({label}) reads the line breaks before an answer "
            "differently than at the end of a prompt: training and generation would "
            "see different prompts. Use a tokenizer that splits line breaks from text, "
            "as Llama 3's does."
        )
    tokenizer.chat_template = LLAMA3_TEMPLATE
    tokenizer.bos_token = BOS
    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = min(
        reserved, key=lambda name: int(_RESERVED.fullmatch(name)[1])
    )
    return tokenizer.convert_tokens_to_ids([START_HEADER, END_HEADER, END_OF_TURN])


def _is_one_token(tokenizer, name):
    # A name that is not a special token is spelled out in pieces.
    ids = tokenizer(name, add_special_tokens=False)["input_ids"]
    return len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == name


def _keeps_header_apart(tokenizer):
    header = tokenizer(END_HEADER + "\n\n", add_special_tokens=False)["input_ids"]
    answers = [
        tokenizer(f"{END_HEADER}\n\n{start}", add_special_tokens=False)["input_ids"]
        for start in ("A", "a", "1", ".", "\u00e9")
    ]
    return all(ids[: len(header)] == header for ids in answers)
