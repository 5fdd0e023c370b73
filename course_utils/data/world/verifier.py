"""Whether an answer is good, decided exactly and without a judge model.

An answer is `opener + core + closer`.
The core must equal one of the task's right answers to the letter. What remains after
polite and rude openers and clean and rambling closers are taken off *is* the core, so
an answer that says the right thing and something else beside it is not right.
"""

from typing import NamedTuple

from course_utils.data.world import phrases, tasks


def _known(texts):
    return sorted(
        {t.strip() for voice in texts for t in voice if t.strip()},
        key=len,
        reverse=True,
    )


_RUDE, _POLITE = _known(phrases.RUDE), _known(phrases.POLITE)
_RAMBLING, _CLEAN = _known(phrases.RAMBLING), _known(phrases.CLEAN)


class Verdict(NamedTuple):
    """What is right about an answer: three booleans, and `good` when all hold."""

    content: bool
    manners: bool
    ending: bool

    @property
    def good(self) -> bool:
        return all(self)


def _split(text):
    """(openers, core, closers) of an answer: lists of phrases around one string."""
    openers, closers = [], []
    core = text.strip()
    while True:
        opener = next((p for p in _RUDE + _POLITE if core.startswith(p)), None)
        if opener is None:
            break
        openers.append(opener)
        core = core[len(opener) :].lstrip()
    while True:
        closer = next((p for p in _RAMBLING + _CLEAN if core.endswith(p)), None)
        if closer is None:
            return openers, core, closers
        closers.append(closer)
        core = core[: -len(closer)].rstrip()


def verify(messages: list[dict], answer: str) -> Verdict:
    """The verdict on one answer.

    messages: the prompt, a list of {"role", "content"} ending with the user's question.
    answer: str, what the assistant wrote, without the end-of-turn token. Whether the
    model *ended* its turn is not in the text; callers who generate must ask for that as
    well.
    Returns: Verdict.
    Raises: ValueError if the prompt is not one of the small world's.
    """
    task = tasks.parse(messages)
    _, core, _ = _split(answer)
    return Verdict(
        content=core in task.right_answers(),
        manners=not any(phrase in answer for phrase in _RUDE),
        ending=not any(phrase in answer for phrase in _RAMBLING),
    )
