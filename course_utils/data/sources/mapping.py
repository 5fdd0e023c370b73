"""From a source's rows to pairs, by its card; every row that falls away has a reason.

A card says how columns become messages; here is what makes a row unusable, and where a
pair came from.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from course_utils.data import texts
from course_utils.data.sources.data_cards import Card, kind_of, read_rule
from course_utils.data.sources.files import rows_to_dataset

_MESSAGES = List({"role": Value("string"), "content": Value("string")})
# What a pair is, provenance included: `row` counts the source's own rows from 0,
# `hash` is the first 16 hexadecimal digits of the SHA-256 of its messages.
PAIR = Features(
    {
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "source": Value("string"),
        "row": Value("int64"),
        "hash": Value("string"),
    }
)

MISSING = "an answer is missing"
NOT_TEXT = "content is not text"
TURNS = "turns are out of order"
CONTEXTS = "the answers have two prompts"
SAME = "both answers are the same"
CONTROL = "control tokens in the text"
UNRATED = "a rating is missing"
RULE = "rule"
REASONS = (MISSING, NOT_TEXT, TURNS, CONTEXTS, SAME, CONTROL, UNRATED, RULE)

_CONTROL = texts.control_pattern()


def to_pairs(
    card: Card, rows: Dataset | Iterable[dict]
) -> tuple[Dataset, texts.Dropped]:
    """Apply the card to its rows.

    Returns: (pairs, dropped): a Dataset with the columns of `PAIR`, and counts
    {reason: rows}, the reasons as in `REASONS`; a row has the first that fits, and
    `dropped.rows[reason]` has the rows' numbers. The pairs and the dropped rows sum to
    the rows.
    Raises: ValueError naming the card and the column that the rows lack or hold in
    another type than the card says, or the rule that cannot be applied.
    """
    if not isinstance(rows, Dataset):
        rows = rows_to_dataset(rows, card.path.name, card.mapped)
    _check_columns(card, rows)
    rule = _rule(card, rows)
    used = list(dict.fromkeys(card.mapped))
    marked = rows.select_columns(used).add_column("follows_rule", rule)
    mapped = marked.map(
        _read_batch,
        batched=True,
        with_indices=True,
        remove_columns=marked.column_names,
        fn_kwargs={"card": card},
        features=Features({**PAIR, "reason": Value("string")}),
        num_proc=texts.processes(rows),
    )
    reasons = np.array(mapped.with_format("arrow")["reason"], dtype=object)
    pairs = mapped.select(np.flatnonzero(reasons == "")).remove_columns("reason")
    dropped = texts.Dropped()
    for number in np.flatnonzero(reasons != ""):
        dropped.drop(reasons[number], int(number))
    return pairs, dropped


def pair_hash(prompt: list[dict], chosen: list[dict], rejected: list[dict]) -> str:
    """16 hexadecimal digits that name a pair by its messages."""
    text = json.dumps([prompt, chosen, rejected], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_batch(batch, indices, card):
    columns = {name: [] for name in (*PAIR, "reason")}
    for number, index in enumerate(indices):
        row = {name: values[number] for name, values in batch.items()}
        prompt, chosen, rejected, reason = _read_row(card, row)
        if reason:
            prompt, chosen, rejected = [], [], []
        pair = (prompt, chosen, rejected)
        for name, value in zip(
            columns,
            (*pair, card.source, index, pair_hash(*pair), reason),
            strict=True,
        ):
            columns[name].append(value)
    return columns


def _read_row(card, row):
    """(prompt, chosen, rejected, reason): messages; the reason is "" for a good row."""
    chosen, rejected = _turns(row[card.chosen]), _turns(row[card.rejected])
    prompt, contexts = _prompt(card, row, chosen), [chosen[:-1], rejected[:-1]]
    answers = [*chosen[-1:], *rejected[-1:]]
    contents = [message["content"] for message in (*prompt, *answers)]
    if len(answers) < 2 or any(texts.is_blank(answer["content"]) for answer in answers):
        reason = MISSING
    elif not all(isinstance(text, str) for text in contents):
        reason = NOT_TEXT
    elif not _alternate(prompt) or any(a["role"] != "assistant" for a in answers):
        reason = TURNS
    elif "messages" in card.prompt and contexts[0] != contexts[1]:
        reason = CONTEXTS
    elif texts.same_text(*contents[-2:]):
        reason = SAME
    elif any(map(_CONTROL.search, contents)):
        reason = CONTROL
    elif row["follows_rule"] is None:
        reason = UNRATED
    else:
        reason = "" if row["follows_rule"] else RULE
    return prompt, answers[:1], answers[1:], reason


def _turns(value):
    """A column's value as messages, whether it was a list of them or one answer."""
    if isinstance(value, list):
        # Sources order role and content differently, which no data set may mix.
        return [
            {name: (m or {}).get(name) for name in ("role", "content")} for m in value
        ]
    return [] if value is None else [{"role": "assistant", "content": value}]


def _prompt(card, row, chosen):
    if "messages" in card.prompt:
        column = card.prompt["messages"]
        return (chosen if column == card.chosen else _turns(row[column]))[:-1]
    system = row.get(card.prompt.get("system", ""))
    said = [] if texts.is_blank(system) else [("system", system)]
    said.append(("user", row[card.prompt["user"]]))
    return [{"role": role, "content": content} for role, content in said]


def _alternate(prompt):
    """User and assistant take turns after at most one system message, none empty."""
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    expected = ["user", "assistant"] * len(turns)
    return (
        len(turns) % 2 == 1
        and [turn["role"] for turn in turns] == expected[: len(turns)]
        and not any(texts.is_blank(message["content"]) for message in prompt)
    )


def _check_columns(card, rows):
    """Raise ValueError where the rows are not what the card describes."""
    lacking = [name for name in card.mapped if name not in rows.column_names]
    if lacking:
        raise ValueError(
            f"{card.path.name}: the rows have no column {', '.join(lacking)}; they "
            f"have {', '.join(rows.column_names)}. Was it renamed upstream? Correct "
            "the card."
        )
    for name in card.mapped:
        found = kind_of(rows.features[name])
        if found not in ("text", "messages", "nothing"):
            raise ValueError(
                f"{card.path.name}: column {name} holds {found}; an answer or a prompt "
                "is text, or a list of messages with `role` and `content`."
            )
        said = kind_of(card.columns[name]) if name in card.columns else found
        if found not in (said, "nothing"):
            raise ValueError(
                f"{card.path.name}: column {name} holds {found}, the card says {said}. "
                "Was it changed upstream? Correct the card."
            )


def _rule(card, rows):
    """pa.array of bool: where the card's rule holds; null where it meets no value."""
    if not card.keep:
        return pa.array(np.ones(len(rows), dtype=bool))
    rule = read_rule(card.path, card.keep)
    simple = {"text", "numbers", "yes or no", "nothing"}
    usable = [name for name, kind in rows.features.items() if kind_of(kind) in simple]
    said = f"{card.path.name}: the rule `{card.keep}`"
    unknown = [name for name in rule.columns if name not in usable]
    if unknown:
        raise ValueError(
            f"{said} compares {', '.join(unknown)}; columns it can use: "
            f"{', '.join(usable)}."
        )
    table = rows.select_columns(rule.columns).with_format("arrow")[:]
    try:
        return rule.mask(table)
    except ValueError as error:
        raise ValueError(f"{said} {error}.") from error
