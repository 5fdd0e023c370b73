"""What a pair needs to survive tokenisation, and proof that labels hold answers."""

from collections.abc import Iterable

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from course_utils.chat.tokens import TokenizedPair, scored_ids, tokenize_pair
from course_utils.data import texts

ROLES = ("system", "user", "assistant")
FIELDS = ("prompt", "chosen", "rejected")
_LISTED = 5  # problems spelled out in one error


class _Problem(Exception):
    """One fault of one row: where it is, what kind it is, what to do."""

    def __init__(self, field, reason, advice):
        super().__init__(f"{field}: {reason}. {advice}")
        self.key = f"{field}: {reason}"


def check_pairs(
    pairs: Iterable[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    on_problem: str = "raise",
) -> tuple[list[dict], texts.Dropped]:
    """Refuse pairs that would train on something else than they say.

    pairs: iterable of {"prompt": [messages], "chosen": [assistant], "rejected":
        [assistant]}; a field may be an array of messages, as pandas reads it.
    tokenizer: with its chat template set. max_length: as in the training configuration.
    on_problem: "raise" ends with an error that names the faulty rows; "drop" leaves
        them out, whatever is wrong with them.
    Returns: (kept, counts). kept: the good pairs, their messages in lists. counts:
        {reason: rows}, such as "prompt: fills max_length", and of kept rows whose
        answer loses its end token to max_length, "chosen: loses its end token (kept)";
        counts.rows has the rows' numbers.
    Raises: ValueError naming row and field, for: a row that is no dict; a missing or
        empty prompt, chosen or rejected; content that is no string or not Unicode;
        unknown roles; a prompt that does not end with the user; chosen and rejected
        alike (see `texts.normalise`); control tokens in the text; a prompt of
        max_length tokens or more (TRL 1.16 computes NaN from it). Also for an unknown
        on_problem.
    """
    if on_problem not in ("raise", "drop"):
        raise ValueError(f'on_problem must be "raise" or "drop", got {on_problem!r}.')
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    control = texts.control_pattern(special)

    kept, counts, problems = [], texts.Dropped(), []
    for row, pair in enumerate(pairs):
        try:
            pair, tokens = _check(pair, tokenizer, max_length, control)
        except _Problem as problem:
            counts.drop(problem.key, row)
            problems.append(f"row {row}, {problem}")
            continue
        kept.append(pair)
        for side in ("chosen", "rejected"):
            if getattr(tokens, f"{side}_lost_end"):
                counts.drop(f"{side}: loses its end token (kept)", row)
    if problems and on_problem == "raise":
        lines = problems[:_LISTED]
        if len(problems) > _LISTED:
            lines.append(f"... and {len(problems) - _LISTED} more rows")
        lines.append('Correct these rows, or pass on_problem="drop".')
        raise ValueError("\n".join(lines))
    return kept, counts


def _check(pair, tokenizer, max_length, control):
    """(pair with its messages in lists, its tokens), or a _Problem."""
    if not isinstance(pair, dict):
        reason = f"is {type(pair).__name__} instead of a dict"
        raise _Problem("row", reason, "Give prompt, chosen and rejected.")
    pair = pair | {field: _messages(pair, field, control) for field in FIELDS}
    last = pair["prompt"][-1]["role"]
    if last != "user":
        advice = "The answer must follow a user message."
        raise _Problem("prompt", f"ends with role {last!r}", advice)
    for side in ("chosen", "rejected"):
        roles = [message["role"] for message in pair[side]]
        if roles != ["assistant"]:
            found = f"{len(roles)} ({', '.join(roles[:4])})"
            raise _Problem(
                side,
                f"is not one assistant message but {found}",
                "Move the turns before the last answer to prompt, or they are scored "
                "as response.",
            )
    if texts.same_text(*(pair[side][0]["content"] for side in ("chosen", "rejected"))):
        advice = "Such a pair has no preference to learn."
        raise _Problem("rejected", "equals chosen", advice)
    try:
        tokens = tokenize_pair(tokenizer, pair, max_length)
    except (ValueError, TemplateError) as error:
        raise _Problem("row", "cannot be tokenised", str(error)) from error
    if not tokens.has_answers:
        raise _Problem(
            "prompt",
            "fills max_length",
            f"It has {len(tokens.prompt_ids)} tokens of {max_length}, so no answer "
            "token is left and the loss is NaN. Drop the row or raise max_length.",
        )
    if tokens.chosen_input_ids == tokens.rejected_input_ids:
        advice = "They differ only where both are cut."
        raise _Problem("rejected", "equals chosen within max_length", advice)
    return pair, tokens


def _messages(pair, field, control):
    """The field's messages as a list, or a _Problem that says what is wrong."""
    messages = pair.get(field)
    if isinstance(messages, np.ndarray):
        messages = messages.tolist()
    # NaN, which pandas writes for a missing value, is the one float unlike itself.
    nan = isinstance(messages, float) and messages != messages
    if messages is None or nan or (isinstance(messages, list | tuple) and not messages):
        advice = "Every row needs prompt, chosen and rejected."
        raise _Problem(field, "is missing or empty", advice)
    if isinstance(messages, str):
        raise _Problem(
            field,
            "is a string",
            'Give a list of messages, [{"role": ..., "content": ...}]: TRL scores '
            "templated strings as they are.",
        )
    if not isinstance(messages, list | tuple):
        reason = f"is {type(messages).__name__} instead of a list of messages"
        raise _Problem(field, reason, "Give role and content.")
    for message in messages:
        fault = _fault(message, control)
        if fault:
            raise _Problem(field, *fault)
    return list(messages)


def _fault(message, control):
    """(reason, advice) if a message cannot be trained on, else None."""
    if not isinstance(message, dict):
        kind = type(message).__name__
        return f"holds {kind} instead of messages", "Give role and content."
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        return f"has unknown role {role!r}", f"Known roles: {', '.join(ROLES)}."
    if not isinstance(content, str):
        kind = type(content).__name__
        return f"has content of type {kind}", f"The {role}'s text must be a string."
    if not texts.is_unicode(content):
        advice = "Such text cannot be written as UTF-8. Read its source again."
        return f"has half of a surrogate pair in its {role} text", advice
    if texts.is_blank(content):
        advice = "Drop the row (or leave an empty system message out)."
        return f"has an empty {role} message", advice
    if found := control.search(content):
        advice = "Tokenised, it would end or open a turn. Remove it from the text."
        return f"holds the control token {found[0]} in its {role} text", advice
    return None


def assert_labels_hold_no_user_text(
    trainer_or_rows: object,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[dict],
) -> int:
    """Prove that the scored tokens are the answers, and nothing of the prompt.

    trainer_or_rows: a TRL ORPOTrainer, its train_dataset, or rows with chosen_labels
        and rejected_labels (dicts or TokenizedPair).
    pairs: the messages that these rows were made from, in the same order.
    Returns: number of rows checked.
    Raises: AssertionError naming the row whose decoded labels are more than the answer
        and its end token; ValueError if there are not as many rows as pairs.

    The fault it finds: with conversations mapped to strings beside a string `prompt`
    column, TRL scores the whole conversation, user turn included, as response, without
    a warning.
    """
    rows = getattr(trainer_or_rows, "train_dataset", trainer_or_rows)
    if len(rows) != len(pairs):
        raise ValueError(
            f"{len(rows)} rows but {len(pairs)} pairs: pass the pairs that the rows "
            "were made from."
        )
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        for side in ("chosen", "rejected"):
            column = f"{side}_labels"
            labels = (
                getattr(row, column) if isinstance(row, TokenizedPair) else row[column]
            )
            ids = scored_ids(labels)
            if ids[-1:] == [tokenizer.eos_token_id]:
                ids = ids[:-1]
            # A cut inside a character decodes to the replacement character.
            scored = tokenizer.decode(ids).rstrip("\ufffd")
            answer = pair[side][-1]["content"].strip()
            if ids and answer.startswith(scored.strip()):
                continue
            users = [
                m["content"].strip() for m in pair["prompt"] if m["role"] == "user"
            ]
            fault = (
                "the user's text is scored as response (prompt counted twice?)"
                if users[-1] in scored
                else "the labels are not the answer"
            )
            raise AssertionError(
                f"row {number}, {side}: {fault}.\n"
                f"  labels: {_short(scored)}\n  answer: {_short(answer)}\n"
                "Give TRL raw messages: prompt=[...], chosen=[assistant], "
                "rejected=[assistant]."
            )
    return len(pairs)


def _short(text):
    return repr(text if len(text) <= 160 else text[:80] + " ... " + text[-75:])
