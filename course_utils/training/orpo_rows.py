"""From rows of pairs to token ids: tokenised, checked, counted, padded.

Takes rows as TRL 1.16 does: messages or strings, with or without `prompt`, and the
columns `chat_template_kwargs` and `tools`.
"""

import json
import logging
from typing import NamedTuple

import jinja2
import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from course_utils.chat.tokens import IGNORE_INDEX, tokenize_pair, tokenize_texts
from course_utils.training.orpo_batches import (
    NO_ANSWER,
    PADDING,
    SIDES,
    has_answer,
    no_room,
)
from course_utils.training.orpo_config import ORPOConfig

LISTED = 5  # rows that an error names
logger = logging.getLogger(__name__)


class Lengths(NamedTuple):
    """How long the pairs of a dataset are, in tokens; each array has one per pair.

    prompt, chosen, rejected: of the prompt and of either answer, as trained.
    chosen_cut, rejected_cut: bool, did the answer lose its end to max_length?
    """

    name: str
    max_length: int
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    chosen_cut: np.ndarray
    rejected_cut: np.ndarray

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{part} {np.median(values):.0f} ({values.max()})"
            for part in ("prompt", *SIDES)
            for values in [getattr(self, part)]
        )
        return (
            f"{self.name}: {len(self.prompt)} pairs; tokens, median (longest): {sizes};"
            f" max_length {self.max_length} cuts {self.chosen_cut.sum()} chosen and "
            f"{self.rejected_cut.sum()} rejected answers, which lose their end token."
        )


def tokenize_rows(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    args: ORPOConfig,
    name: str = "train_dataset",
) -> tuple[Dataset | IterableDataset, Lengths | None]:
    """Token ids and labels of every row, with TRL's names, and how long they are.

    name: what to call the dataset in an error.
    Returns: (dataset with input_ids, attention_mask and labels of chosen and rejected,
        and prompt_input_ids; Lengths). A dataset that can only be iterated is tokenised
        while it is read, and has no Lengths.
    Raises: ValueError that names the faulty rows and what to do.
    """
    settings = {"tokenizer": tokenizer, "max_length": args.max_length}
    if isinstance(dataset, IterableDataset):
        return dataset.map(
            _tokenize_or_raise,
            with_indices=True,
            remove_columns=dataset.column_names,
            fn_kwargs=settings | {"name": name, "strict": args.refuse_prompt_twice},
        ), None
    with PartialState().main_process_first():
        rows = dataset.map(
            _tokenize,
            remove_columns=dataset.column_names,
            fn_kwargs=settings,
            num_proc=args.dataset_num_proc,
            desc=f"Tokenizing {name}",
        )
    _raise_problems(rows, name)
    if args.refuse_prompt_twice:
        _raise_prompts_counted_twice(rows, name)
    answers = [
        np.array([len(row) - row.count(IGNORE_INDEX) for row in rows[f"{side}_labels"]])
        for side in SIDES
    ]
    prompts = np.array([len(ids) for ids in rows["prompt_input_ids"]])
    cut = [np.array(rows[f"{side}_cut"], dtype=bool) for side in SIDES]
    extra = ["problem", "repeats_prompt", *(f"{side}_cut" for side in SIDES)]
    lengths = Lengths(name, args.max_length, prompts, *answers, *cut)
    return rows.remove_columns(extra), lengths


def _tokenize(row, tokenizer, max_length):
    """The columns of a tokenised row, and what is wrong with it."""
    out = {"problem": "", "repeats_prompt": "", "prompt_input_ids": []}
    for side in SIDES:
        out |= {f"{side}_{key}": [] for key in PADDING} | {f"{side}_cut": False}
    try:
        pair = with_prompt(row)
        out["repeats_prompt"] = _repeats_prompt(pair, tokenizer)
        if isinstance(pair["prompt"], str):
            texts = [pair["prompt"] + part for part in ("", *map(pair.get, SIDES))]
            tokens = tokenize_texts(tokenizer, *texts, max_length)
        else:
            extra = dict(row.get("chat_template_kwargs") or {})
            if tools := row.get("tools"):
                extra["tools"] = json.loads(tools) if isinstance(tools, str) else tools
            tokens = tokenize_pair(tokenizer, pair, max_length, **extra)
    except (ValueError, jinja2.TemplateError) as error:
        return out | {"problem": f"{error}"}
    out["prompt_input_ids"] = tokens.prompt_ids
    for side in SIDES:
        ids = getattr(tokens, f"{side}_input_ids")
        labels = getattr(tokens, f"{side}_labels")
        out[f"{side}_input_ids"], out[f"{side}_labels"] = ids, labels
        out[f"{side}_attention_mask"] = [1] * len(ids)
        out[f"{side}_cut"] = getattr(tokens, f"{side}_lost_end")
        if not has_answer(labels):
            out["problem"] = no_room(len(ids), side)
    return out


def _tokenize_or_raise(row, number, tokenizer, max_length, name, strict):
    out = _tokenize(row, tokenizer, max_length)
    problem = out.pop("problem")
    repeats = out.pop("repeats_prompt")
    if problem or (strict and repeats == "certain"):
        raise ValueError(f"{name}, row {number}: {problem or PROMPT_TWICE}")
    for side in SIDES:
        del out[f"{side}_cut"]
    return out


def with_prompt(row: dict) -> dict:
    """prompt, chosen and rejected of a row, the prompt made explicit as TRL does.

    Without a prompt of the answers' own kind (messages or string), what chosen and
    rejected have in common from the start becomes the prompt.
    Raises: ValueError if a column is missing, empty, or of another kind.
    """
    kinds = {}
    for name in SIDES:
        value = row.get(name)
        if not value:
            raise ValueError(f"`{name}` is missing or empty.")
        kinds[name] = _is_messages(value, name)
    if kinds["chosen"] != kinds["rejected"]:
        raise ValueError(
            "one of `chosen` and `rejected` is a string, the other holds messages."
        )
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if prompt and _is_messages(prompt, "prompt") == kinds["chosen"]:
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if prompt and not kinds["chosen"]:
        raise ValueError("`prompt` holds messages, the answers are strings.")
    if prompt == "" and not kinds["chosen"]:
        return {"prompt": "", "chosen": chosen, "rejected": rejected}
    size = _common(chosen, rejected)
    if size == min(len(chosen), len(rejected)):
        raise ValueError(
            "there is no `prompt` of the answers' kind, and one answer begins with all "
            "of the other, so that where the prompt ends is unknown. Add `prompt`."
        )
    if not kinds["chosen"] and chosen[size - 1 : size] == " ":
        size -= 1  # TRL leaves the space to the answer
    if kinds["chosen"] and not size:
        raise ValueError(
            "chosen and rejected are messages without a common first turn, and there "
            "is no `prompt` of messages. Give one."
        )
    return {
        "prompt": chosen[:size],
        "chosen": chosen[size:],
        "rejected": rejected[size:],
    }


def _common(first, second):
    """Number of leading items (characters or messages) that both have in common."""
    size = min(len(first), len(second))
    return next((i for i in range(size) if first[i] != second[i]), size)


def _is_messages(value, name):
    if isinstance(value, str):
        return False
    if isinstance(value, list) and all(
        isinstance(message, dict) and "role" in message for message in value
    ):
        return True
    raise ValueError(f"`{name}` is neither a string nor a list of messages.")


# ---- what is refused ----

PROMPT_TWICE = (
    "both answers repeat the prompt, so that it would be read twice and the user's "
    "words scored as response. Give messages: prompt, and the answer alone in chosen "
    "and rejected; or leave the column prompt out. If it is meant: "
    "refuse_prompt_twice=False."
)


def _repeats_prompt(pair, tokenizer):
    """ "certain", "likely" or "": do both answers hold the prompt once more?

    Between strings it is certain where the repeated text has a special token in it.
    """
    prompt, answers = pair["prompt"], [pair[side] for side in SIDES]
    if not isinstance(prompt, str):
        last = prompt[-1]
        asked = last["role"] != "assistant" and all(last in each for each in answers)
        return "certain" if asked else ""
    common, text = answers[0][: _common(*answers)], prompt.strip()
    if not text or text not in common:
        return ""
    special = any(token in common for token in tokenizer.all_special_tokens)
    return "certain" if special else "likely"


def _raise_prompts_counted_twice(rows, name):
    found = {"certain": [], "likely": []}
    for number, kind in enumerate(rows["repeats_prompt"]):
        if kind:
            found[kind].append(number)
    likely = found["likely"]
    if 2 * len(likely) >= len(rows):  # one answer may repeat its question, not all
        found["certain"] += likely
    elif likely:
        logger.warning(
            f"{name}: in {len(likely)} of {len(rows)} rows (row {shown(likely)}) both "
            "answers begin with the prompt. Is it there twice?"
        )
    if found["certain"]:
        raise ValueError(
            f"{name}: in {len(found['certain'])} of {len(rows)} rows (row "
            f"{shown(sorted(found['certain']))}) {PROMPT_TWICE}"
        )


def _raise_problems(rows, name):
    """ValueError with the faulty rows, those of the first row's fault counted."""
    problems = {n: text for n, text in enumerate(rows["problem"]) if text}
    if not problems:
        return
    no_answer = [n for n, text in problems.items() if text.startswith(NO_ANSWER)]
    if len(no_answer) == len(problems):
        raise ValueError(
            f"{name}: {len(problems)} of {len(rows)} rows leave no room for an answer "
            f"(row {shown(no_answer)}): {problems[no_answer[0]]}"
        )
    listed = [f"row {n}: {problems[n]}" for n in list(problems)[:LISTED]]
    raise ValueError(
        f"{name}: {len(problems)} of {len(rows)} rows cannot be trained on.\n"
        + "\n".join(listed)
    )


def shown(numbers: list[int]) -> str:
    """Row numbers for an error: the first five."""
    return ", ".join(map(str, numbers[:LISTED])) + (", ..." if numbers[LISTED:] else "")
