"""From a source's rows to pairs, by its card; every row that falls away has a reason.

Knows: how columns become messages, what makes a row unusable, where a pair came from.
Does not know: other sources, tokens.
"""

import hashlib
import json
import os
import re
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Features, List, Value

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

# Tokens of Llama 3's and ChatML's templates: written out in a text they would open or
# end a turn.
_CONTROL = re.compile(r"<\|[A-Za-z0-9_]+\|>")
_NULLABLE = {
    pa.float64(): pd.Float64Dtype(),
    pa.float32(): pd.Float32Dtype(),
    pa.int64(): pd.Int64Dtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
    pa.large_string(): pd.StringDtype(),
}
_LARGE = 5_000  # rows from which a second process pays for its start


def to_pairs(card, rows):
    """Apply the card to its rows.

    Returns: (pairs, dropped): a Dataset with the columns of `PAIR`, and a Counter
    {reason: rows}, the reasons as in `REASONS`; a row has the first that fits. The
    pairs and the dropped rows sum to the rows.
    Raises: ValueError naming the card and the column that the rows lack or hold in
    another type than the card says, or the rule that does not run.
    """
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
        num_proc=os.cpu_count() if len(rows) >= _LARGE else None,
    )
    reasons = np.array(mapped.with_format("arrow")["reason"], dtype=object)
    pairs = mapped.select(np.flatnonzero(reasons == "")).remove_columns("reason")
    return pairs, Counter(reason for reason in reasons if reason)


def pair_hash(prompt, chosen, rejected):
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
    texts = [message["content"] for message in (*prompt, *answers)]
    if len(answers) < 2 or any(_blank(answer["content"]) for answer in answers):
        reason = MISSING
    elif not all(isinstance(text, str) for text in texts):
        reason = NOT_TEXT
    elif not _alternate(prompt) or any(a["role"] != "assistant" for a in answers):
        reason = TURNS
    elif "messages" in card.prompt and contexts[0] != contexts[1]:
        reason = CONTEXTS
    elif answers[0] == answers[1]:
        reason = SAME
    elif any(_CONTROL.search(text) for text in texts):
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
        return [{"role": m["role"], "content": m["content"]} for m in value]
    return [] if value is None else [{"role": "assistant", "content": value}]


def _prompt(card, row, chosen):
    if "messages" in card.prompt:
        column = card.prompt["messages"]
        return (chosen if column == card.chosen else _turns(row[column]))[:-1]
    system = row.get(card.prompt.get("system", ""))
    said = [("system", system)] if system else []
    said.append(("user", row[card.prompt["user"]]))
    return [{"role": role, "content": content} for role, content in said]


def _blank(content):
    return content is None or (isinstance(content, str) and not content.strip())


def _alternate(prompt):
    """User and assistant take turns after at most one system message, none empty."""
    turns = prompt[1:] if prompt and prompt[0]["role"] == "system" else prompt
    expected = ["user", "assistant"] * len(turns)
    return (
        len(turns) % 2 == 1
        and [turn["role"] for turn in turns] == expected[: len(turns)]
        and not any(_blank(message["content"]) for message in prompt)
    )


def _check_columns(card, rows):
    """Raise ValueError where the rows are not what the card describes."""
    lacking = [name for name in card.mapped if name not in rows.column_names]
    if lacking:
        raise ValueError(
            f"{card.path.name}: the rows have no column {', '.join(lacking)}; they "
            f"have {', '.join(rows.column_names)}. Was it renamed upstream? Mend the "
            "card."
        )
    for name in card.mapped:
        found = _kind(rows.features[name])
        if found not in ("text", "messages", "nothing"):
            raise ValueError(
                f"{card.path.name}: column {name} holds {found}; an answer or a prompt "
                "is text, or a list of messages with `role` and `content`."
            )
        said = _kind(card.columns[name]) if name in card.columns else found
        if found not in (said, "nothing"):
            raise ValueError(
                f"{card.path.name}: column {name} holds {found}, the card says {said}. "
                "Was it changed upstream? Mend the card."
            )


def _kind(feature):
    """What a column holds, in a word: int64 and float64 ratings are both numbers."""
    inner = getattr(feature, "feature", None)
    if inner is None and isinstance(feature, list):
        inner = feature[0]
    if inner is not None:
        names = set(inner) if isinstance(inner, dict) else set()
        return "messages" if {"role", "content"} <= names else "lists"
    dtype = getattr(feature, "dtype", "struct")
    if dtype in ("string", "large_string"):
        return "text"
    if dtype == "bool":
        return "yes or no"
    if dtype == "null":
        return "nothing"
    return "numbers" if dtype.startswith(("int", "uint", "float")) else dtype


def _rule(card, rows):
    """pa.array of bool: where the card's rule holds; null where it meets no value."""
    if not card.keep:
        return pa.array(np.ones(len(rows), dtype=bool))
    simple = {"text", "numbers", "yes or no", "nothing"}
    usable = [name for name, kind in rows.features.items() if _kind(kind) in simple]
    named = [name for name in usable if name in card.keep]
    table = rows.select_columns(named or usable[:1]).with_format("arrow")[:]
    # pandas' own types keep a missing value missing; `not None` would else be an error.
    frame = table.to_pandas(types_mapper=_NULLABLE.get)
    try:
        mask = frame.eval(card.keep)
    except Exception as error:
        raise ValueError(
            f"{card.path.name}: the rule `{card.keep}` fails on these rows: {error}. "
            f"Columns it can use: {', '.join(usable)}."
        ) from error
    if not (isinstance(mask, pd.Series) and pd.api.types.is_bool_dtype(mask)):
        raise ValueError(
            f"{card.path.name}: the rule `{card.keep}` does not say yes or no of every "
            "row; write a comparison, such as `rating >= 5`."
        )
    return pa.array(mask.astype("boolean"))
