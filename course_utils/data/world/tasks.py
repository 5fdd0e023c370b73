"""The eight kinds of question of the small world, and the right answers to each.

Every kind has the same four members: `sample(rng, split)` -> (messages, task);
`parse(messages)` -> task or None; `answer(right, voice, rng)` -> the core sentence(s)
of an answer; `right_answers()` -> every core that counts as right, in either voice.
`parse` undoes `sample`, so a verifier needs nothing but the messages that the model
saw.
"""

from course_utils.data.world.knowledge import Fact, Identity, Recall, TwoFacts
from course_utils.data.world.messages import assistant, system, user
from course_utils.data.world.skills import Errand, Steps, Sum, Words

__all__ = [
    "KINDS",
    "Errand",
    "Fact",
    "Identity",
    "Recall",
    "Steps",
    "Sum",
    "TwoFacts",
    "Words",
    "assistant",
    "parse",
    "system",
    "user",
]

KINDS = (Recall, Identity, Steps, Sum, Words, Errand, TwoFacts, Fact)
Task = Recall | Identity | Steps | Sum | Words | Errand | TwoFacts | Fact


def parse(messages: list[dict]) -> Task:
    """The task that these messages ask.

    messages: list of {"role", "content"}, the last one the user's.
    Raises: ValueError if no kind of question of the world is worded like this.
    """
    for kind in KINDS:
        task = kind.parse(messages)
        if task is not None:
            return task
    raise ValueError(
        f"No question of the small world reads {messages[-1]['content']!r}. The "
        "verifier judges only prompts that `course_utils.data.world` wrote."
    )
