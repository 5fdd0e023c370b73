"""Pairs as rows of both tools' formats.

Knows: which orders of turns the tools accept, where each wants the system message.
Does not know: settings, tokens.
"""


def axolotl_rows(mix):
    """[{"system": str, "chosen": [messages], "rejected": [messages]}], for
    `chat_template.argilla`.

    mix: a mixing.Mix, whose training pairs are taken, or an iterable of pairs.
    Raises: ValueError if there is none; naming the row that the format cannot hold.
    """
    return [
        {"system": system}
        | {
            side: [*turns, {"role": "assistant", "content": text}]
            for side, text in answers.items()
        }
        for system, turns, answers in _conversations(mix)
    ]


def llama_factory_rows(mix):
    """[{"messages": [messages], "chosen": message, "rejected": message}], for a
    ranking set in ShareGPT form.

    Argument and errors as axolotl_rows.
    """
    return [
        {"messages": [{"role": "system", "content": system}] * bool(system) + turns}
        | {
            side: {"role": "assistant", "content": text}
            for side, text in answers.items()
        }
        for system, turns, answers in _conversations(mix)
    ]


def _conversations(mix):
    pairs = list(getattr(mix, "train", mix))
    if not pairs:
        raise ValueError("There is no pair to write.")
    return [_conversation(row, pair) for row, pair in enumerate(pairs)]


def _conversation(row, pair):
    """(system text or "", turns before the answer, {"chosen": text, "rejected": text}).

    Texts are stripped: the chat templates of the course and of Axolotl do that anyway,
    LLaMA-Factory's does not.
    """
    turns = [
        {"role": turn["role"], "content": turn["content"].strip()}
        for turn in pair["prompt"]
    ]
    system = ""
    if turns and turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
    roles = [turn["role"] for turn in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
        raise ValueError(
            f"row {row}, prompt: the roles are {', '.join(roles) or 'none'}. Axolotl "
            "and LLaMA-Factory take user and assistant in turns, the user last, with "
            "at most one system message before them. Drop the row."
        )
    answers = {}
    for side in ("chosen", "rejected"):
        if [turn["role"] for turn in pair[side]] != ["assistant"]:
            raise ValueError(
                f"row {row}, {side}: must be one assistant message. Move the turns "
                "before it to prompt."
            )
        answers[side] = pair[side][0]["content"].strip()
    return system, turns, answers
