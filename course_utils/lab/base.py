"""The lab's base model and its tokenizer, ready to use."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import models
from course_utils.setup import places

BASE_MODEL = places.PACKAGE / "lab" / "base_model"
MAX_LENGTH = 256
BATCH = 8
# The lab's base knows ChatML from its corpus. The turn's last line break comes with the
# next turn, so that an answer ends with its end token and with nothing after it.
CHATML_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}{{ '\n' }}{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}"
)


def use_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the lab's tokenizer the one chat format that its base has read."""
    tokenizer.chat_template = CHATML_TEMPLATE
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|reserved_special_token_0|>"


def load_base(
    path: str | Path = BASE_MODEL, device: str = "cpu"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The lab's base in float32 and its tokenizer with ChatML.

    Raises: FileNotFoundError if the checkpoint is missing.
    """
    if not (Path(path) / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{path} holds no model.safetensors. Restore it with git, or pretrain it "
            "with `python -m course_utils.lab.pretraining course_utils/lab/base_model`."
        )
    model = models.load_model(path, dtype=torch.float32).to(device)
    tokenizer = models.load_tokenizer(path)
    use_chatml(tokenizer)
    return model, tokenizer
