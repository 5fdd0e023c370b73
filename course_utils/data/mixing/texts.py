"""What of a pair is compared with what: its questions, its words.

Knows: which part of a pair is whose. Does not know: why anyone compares them.
"""

import os
import re

_WORD = re.compile(r"\w+")
_LARGE = 5_000  # rows from which a second process pays for its start


def questions(prompt):
    """What the user says in a prompt, a tuple of str: a key that finds repeats.

    System prompts do not count: under another one it is still the same question.
    """
    return tuple(m["content"] for m in prompt if m["role"] == "user")


def words(text):
    """The words of a text in lower case, without punctuation: a list of str."""
    return _WORD.findall(text.lower())


def processes(pairs):
    """How many processes `Dataset.map` gets for so many pairs; None for one."""
    return os.cpu_count() if len(pairs) >= _LARGE else None
