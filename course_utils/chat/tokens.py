"""A pair of messages as token ids and labels, the same as TRL 1.16's ORPOTrainer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from transformers import PreTrainedTokenizerBase

from course_utils.orpo import IGNORE_INDEX


@dataclass(frozen=True)
class TokenizedPair:
    """Token ids of one pair, and what cutting cost.

    prompt_ids: the prompt alone, as for generation.
    chosen_ids, rejected_ids: the answers alone, cut to fit, end token included.
    chosen_input_ids, rejected_input_ids: what the model reads. That is prompt and
        answer, unless the tokenizer joins the prompt's last token with the answer.
    chosen_lost_end, rejected_lost_end: True where the cut took the answer's end token.
    """

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    chosen_input_ids: list[int]
    rejected_input_ids: list[int]
    chosen_lost_end: bool
    rejected_lost_end: bool

    @property
    def has_answers(self) -> bool:
        """Has each answer a token to score?"""
        return has_answer(self.chosen_labels) and has_answer(self.rejected_labels)

    @property
    def chosen_labels(self) -> list[int]:
        """As long as chosen_input_ids; -100 on the prompt."""
        return _labels(self.chosen_input_ids, self.chosen_ids)

    @property
    def rejected_labels(self) -> list[int]:
        """As long as rejected_input_ids; -100 on the prompt."""
        return _labels(self.rejected_input_ids, self.rejected_ids)


def _labels(input_ids, answer_ids):
    return [IGNORE_INDEX] * (len(input_ids) - len(answer_ids)) + answer_ids


def has_answer(labels: Sequence[int]) -> bool:
    """Is there an answer token to score? The first token is never predicted."""
    return bool((np.asarray(labels)[1:] != IGNORE_INDEX).any())


def scored_ids(labels: Sequence[int]) -> list[int]:
    """The labels that a loss reads: those of answer tokens."""
    return [label for label in labels if label != IGNORE_INDEX]


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    pair: dict,
    max_length: int,
    **template_arguments: object,
) -> TokenizedPair:
    """Tokenise a pair as TRL 1.16's ORPOTrainer does.

    tokenizer: with a chat template.
    pair: {"prompt": [messages], "chosen": [one assistant message], "rejected": [one
        assistant message]}; other keys are ignored.
    max_length: tokens of prompt and answer together; only the answer is cut.
    template_arguments: further ones of apply_chat_template, such as tools.
    Returns: TokenizedPair. A prompt of max_length tokens or more leaves no answer.
    Raises: ValueError if the tokens do not show where the answer begins.
    """
    texts = _render(tokenizer, pair, **template_arguments)
    return tokenize_texts(tokenizer, *texts, max_length)


def tokenize_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    chosen: str,
    rejected: str,
    max_length: int,
) -> TokenizedPair:
    """The same of texts: prompt, and prompt and answer together for either side."""
    prompt_ids = _encode(tokenizer, prompt)
    chosen_head, chosen_ids = _split(prompt_ids, _encode(tokenizer, chosen))
    rejected_head, rejected_ids = _split(prompt_ids, _encode(tokenizer, rejected))
    _check_same_prompt(chosen_head, rejected_head)

    shorter = min(len(chosen_head), len(rejected_head))
    columns = {"prompt_ids": _with_bos(tokenizer, prompt_ids[:shorter])}
    for side, head, answer in (
        ("chosen", chosen_head, chosen_ids),
        ("rejected", rejected_head, rejected_ids),
    ):
        head, answer = _with_bos(tokenizer, head), _with_eos(tokenizer, answer)
        kept = answer[: max(0, max_length - len(head))]
        columns[f"{side}_ids"] = kept
        columns[f"{side}_input_ids"] = head + kept
        columns[f"{side}_lost_end"] = len(kept) < len(answer)
    return TokenizedPair(**columns)


def pair_lengths(
    tokenizer: PreTrainedTokenizerBase, pairs: Iterable[dict]
) -> list[int]:
    """Tokens of prompt and the longer answer of every pair, end token included.

    tokenizer: with a chat template. pairs: iterable of pairs, as for `tokenize_pair`,
    which takes ten times as long for the same numbers.
    """
    texts = [_render(tokenizer, pair)[1:] for pair in pairs]
    lengths = []
    for at in range(0, len(texts), 1_000):
        flat = [text for two in texts[at : at + 1_000] for text in two]
        ids = [
            _with_eos(tokenizer, _with_bos(tokenizer, encoded))
            for encoded in _encode(tokenizer, flat)
        ]
        sizes = [len(one) for one in ids]
        lengths += map(max, sizes[::2], sizes[1::2])
    return lengths


def _render(tokenizer, pair, **template_arguments):
    """The text of the prompt, and of the conversation with either answer."""
    # A prompt that ends with the assistant's words is one that the answer continues.
    open_turn = pair["prompt"][-1]["role"] == "assistant"
    prompt = tokenizer.apply_chat_template(
        pair["prompt"],
        tokenize=False,
        add_generation_prompt=not open_turn,
        continue_final_message=open_turn,
        **template_arguments,
    )
    conversations = []
    for side in ("chosen", "rejected"):
        text = tokenizer.apply_chat_template(
            pair["prompt"] + pair[side], tokenize=False, **template_arguments
        )
        # Some templates end the generation prompt with text that no written answer
        # begins with.
        prompt = _common_prefix(prompt, text)
        conversations.append(text)
    return prompt, *conversations


def _common_prefix(first, second):
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return "".join(character for character, _ in alike)


def _encode(tokenizer, text):
    # The template wrote the BOS already.
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _split(prompt_ids, ids):
    """The ids of a conversation, cut into prompt and answer."""
    if len(ids) < len(prompt_ids):
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens, more than the {len(ids)} of "
            "prompt and answer together: this tokenizer joins them, so no label can "
            "be set."
        )
    end = len(prompt_ids)
    if ids[:end] != prompt_ids:
        # The prompt's last token is another one once an answer follows: TRL gives it
        # to the answer.
        end -= 1
    return ids[:end], ids[end:]


def _check_same_prompt(first, second):
    differing = sum(a != b for a, b in zip(first, second, strict=False))
    if differing > 1 or abs(len(first) - len(second)) > 1:
        raise ValueError(
            "the prompt's tokens differ between chosen and rejected by more than the "
            "last one: this tokenizer joins prompt and answer."
        )


def _with_bos(tokenizer, ids):
    bos = tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


def _with_eos(tokenizer, ids):
    eos = tokenizer.eos_token_id
    return ids if ids[-1:] == [eos] else [*ids, eos]
