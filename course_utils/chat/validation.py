"""What a pair needs to survive tokenisation, and proof that labels hold answers only.

Knows: the shape of a pair, a tokenizer's control tokens, max_length.
Does not know: whether an answer is good, where the pair came from.
"""

import re
from collections import Counter

from course_utils.chat.tokens import IGNORE_INDEX, TokenizedPair, tokenize_pair

ROLES = ("system", "user", "assistant")
_LISTED = 5  # problems spelled out in one error


class _Problem(Exception):
    """One fault of one row: where it is, what kind it is, what to do."""

    def __init__(self, field, reason, advice):
        super().__init__(f"{field}: {reason}. {advice}")
        self.key = f"{field}: {reason}"


def check_pairs(pairs, tokenizer, max_length, on_problem="raise"):
    """Refuse pairs that would train on something else than they say.

    pairs: iterable of {"prompt": [messages], "chosen": [assistant], "rejected":
        [assistant]}.
    tokenizer: with its chat template set. max_length: as in the training configuration.
    on_problem: "raise" ends with an error that names the faulty rows; "drop" leaves
        them out.
    Returns: (kept, counts). kept: list of the good pairs, as they came. counts: Counter
        of reasons, such as "prompt: fills max_length", and of kept rows whose answer
        loses its end token to max_length, "chosen: loses its end token (kept)".
    Raises: ValueError naming row and field, for: a missing or empty prompt, chosen or
        rejected; content that is no string; unknown roles; a prompt that does not end
        with the user; chosen and rejected alike; special tokens in the text, which
        would become control tokens; a prompt of max_length tokens or more (TRL 1.16
        computes NaN from it). Also for an unknown on_problem.
    """
    if on_problem not in ("raise", "drop"):
        raise ValueError(f'on_problem must be "raise" or "drop", got {on_problem!r}.')
    control = _control_tokens(tokenizer)

    kept, counts, listed = [], Counter(), []
    for row, pair in enumerate(pairs):
        try:
            tokens = _check(pair, tokenizer, max_length, control)
        except _Problem as problem:
            counts[problem.key] += 1
            listed.append(f"row {row}, {problem}")
            continue
        kept.append(pair)
        for side in ("chosen", "rejected"):
            counts[f"{side}: loses its end token (kept)"] += getattr(
                tokens, f"{side}_lost_end"
            )
    if listed and on_problem == "raise":
        more = (
            f"\n... and {len(listed) - _LISTED} more rows"
            if len(listed) > _LISTED
            else ""
        )
        raise ValueError(
            "\n".join(listed[:_LISTED])
            + more
            + '\nMend these rows, or pass on_problem="drop".'
        )
    return kept, +counts


def _control_tokens(tokenizer):
    """A pattern that finds any special token of the tokenizer written out in a text."""
    added = tokenizer.added_tokens_decoder.values()
    names = sorted((t.content for t in added if t.special), key=len, reverse=True)
    # Without special tokens the pattern must match nothing, not everything.
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")


def _check(pair, tokenizer, max_length, control):
    prompt = _messages(pair, "prompt", control)
    if prompt[-1]["role"] != "user":
        raise _Problem(
            "prompt",
            f"ends with role {prompt[-1]['role']!r}",
            "The answer must follow a user message.",
        )
    answers = {}
    for side in ("chosen", "rejected"):
        messages = _messages(pair, side, control)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            roles = [message["role"] for message in messages]
            raise _Problem(
                side,
                f"is not one assistant message but {len(messages)} "
                f"({', '.join(roles[:4])})",
                "Move the turns before the last answer to prompt, or they are scored "
                "as response.",
            )
        answers[side] = messages[0]["content"].strip()
    if answers["chosen"] == answers["rejected"]:
        raise _Problem(
            "rejected", "equals chosen", "Such a pair has no preference to learn."
        )

    tokens = tokenize_pair(tokenizer, pair, max_length)
    if not tokens.chosen_ids or not tokens.rejected_ids:
        raise _Problem(
            "prompt",
            "fills max_length",
            f"It has {len(tokens.prompt_ids)} tokens of {max_length}, so no answer "
            "token is left and the loss is NaN. Drop the row or raise max_length.",
        )
    if tokens.chosen_input_ids == tokens.rejected_input_ids:
        raise _Problem(
            "rejected",
            "equals chosen within max_length",
            "They differ only where both are cut.",
        )
    return tokens


def _messages(pair, field, control):
    """The field's list of messages, or a _Problem that says what is wrong with it."""
    messages = pair.get(field)
    if messages is None or len(messages) == 0:
        raise _Problem(
            field, "is missing or empty", "Every row needs prompt, chosen and rejected."
        )
    if isinstance(messages, str):
        raise _Problem(
            field,
            "is a string",
            'Give a list of messages, [{"role": ..., "content": ...}]: TRL scores '
            "templated strings as they are.",
        )
    for message in messages:
        if not isinstance(message, dict):
            raise _Problem(
                field,
                f"holds {type(message).__name__} instead of messages",
                "Give role and content.",
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise _Problem(
                field, f"has unknown role {role!r}", f"Known roles: {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise _Problem(
                field,
                f"has content of type {type(content).__name__}",
                f"The {role}'s text must be a string.",
            )
        if not content.strip():
            raise _Problem(
                field,
                f"has an empty {role} message",
                "Drop the row (or leave an empty system message out).",
            )
        found = control.search(content)
        if found:
            raise _Problem(
                field,
                f"holds the control token {found[0]} in its {role} text",
                "Tokenised, it would end or open a turn. Remove it from the text.",
            )
    return messages


def assert_labels_hold_no_user_text(trainer_or_rows, tokenizer, pairs):
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
            ids = [label for label in labels if label != IGNORE_INDEX]
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
