"""The same run in Axolotl and in LLaMA-Factory: their files, and whose loss is whose.

Knows: which files make a run of either tool. Does not know: the tools themselves. What
their own parsers and trainers say of these files is recorded by
`tests/elsewhere/validate.py` in `recorded/elsewhere.json`.
"""

import json

from course_utils.publishing.elsewhere.files import to_yaml, write
from course_utils.publishing.elsewhere.keys import (
    LLAMA3_CONTROL_IDS,
    axolotl_keys,
    llama_factory_keys,
)
from course_utils.publishing.elsewhere.loss import loss_by_definition
from course_utils.publishing.elsewhere.tool_rows import axolotl_rows, llama_factory_rows

__all__ = ["LLAMA3_CONTROL_IDS", "axolotl", "llama_factory", "loss_by_definition"]

_WRITTEN = "Written by orpo-course from the settings of profile {}: {} pairs."


def axolotl(
    profile, mix, folder, control_ids=LLAMA3_CONTROL_IDS, steps=124, warmup_steps=10
):
    """Write the course's run for Axolotl: axolotl.yaml and train.jsonl.

    profile: a profiles.Profile. mix: a mixing.Mix, or an iterable of pairs.
    folder: made, or replaced if it holds nothing but these two files.
    control_ids: token ids whose rows are trained, as chat.use_llama3_chat returns them;
        Llama 3's by default.
    steps, warmup_steps: optimizer steps; notebook 04's by default.
    Returns: Path of the configuration.
    Raises: ValueError naming the row that the format cannot hold; FileExistsError if
        the folder holds something else. Nothing is left half written.
    """
    rows = axolotl_rows(mix)
    header = [
        _WRITTEN.format(profile.name, len(rows)),
        "Run it in this folder: axolotl train axolotl.yaml",
        "Check the spelling of what you change: Axolotl drops an unknown key without a "
        "word, and its default takes over.",
        "What differs from the course: Axolotl shuffles the rows itself, and leaves a "
        "pair out where the course cuts its answer.",
    ]
    keys = axolotl_keys(profile, control_ids, steps, warmup_steps)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return write(
        folder,
        {"axolotl.yaml": to_yaml(header, keys), "train.jsonl": "".join(lines)},
    )


def llama_factory(profile, mix, folder, steps=124, warmup_steps=10):
    """Write the course's run for LLaMA-Factory: llama_factory.yaml, dataset_info.json
    and train.json.

    Arguments, result and errors as axolotl; LLaMA-Factory cannot train single token
    rows, so there are no control_ids.
    """
    rows = llama_factory_rows(mix)
    header = [
        _WRITTEN.format(profile.name, len(rows)),
        "Run it in this folder: llamafactory-cli train llama_factory.yaml",
        "What differs from the course, and no key can change: the NLL sees answers "
        "only and every answer weighs the same, so loss values are not comparable. A "
        "long prompt may be cut too. <|eot_id|> is the padding; its label is masked. "
        "The template adds <|eom_id|>, which Llama 3.0 lacks, to the saved tokenizer: "
        "one id more than the model has rows. Publish the base's tokenizer with the "
        "course's chat format instead.",
    ]
    keys = llama_factory_keys(profile, steps, warmup_steps)
    tags = {"role": "role", "content": "content", "user": "user"}
    tags |= {"assistant": "assistant", "system": "system"}
    info = {
        "course": {
            "file_name": "train.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {name: name for name in ("messages", "chosen", "rejected")},
            # Its defaults are from, value, human and gpt.
            "tags": {f"{name}_tag": value for name, value in tags.items()},
        }
    }
    return write(
        folder,
        {
            "llama_factory.yaml": to_yaml(header, keys),
            "dataset_info.json": json.dumps(info, indent=2) + "\n",
            "train.json": json.dumps(rows, ensure_ascii=False, indent=1) + "\n",
        },
    )
