"""When two texts are the same, and which text no chat template can carry.

`normalise` is the one rule: repeats, the split, the search for copies of benchmarks and
"both answers are the same" all compare what it returns.
"""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sized

_WORD = re.compile(r"\w+")
# What a reader cannot see: soft hyphen, zero-width space and joiner, byte order mark,
# variation selectors. Source: Unicode's property Default_Ignorable_Code_Point.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# Tokens of Llama 3's and ChatML's templates: written out in a text they would open or
# end a turn.
_TEMPLATE_TOKEN = r"<\|[A-Za-z0-9_]+\|>"
_LARGE = 5_000  # rows from which a second process pays for its start


class Dropped(Counter):
    """{reason: number of rows}; `rows` is {reason: list of the rows' numbers}."""

    def __init__(self, *counts: object, **more: object) -> None:
        super().__init__(*counts, **more)
        self.rows = defaultdict(list)

    def drop(self, reason: str, row: int) -> None:
        """Count a row, numbered from 0, under the reason to drop it."""
        self[reason] += 1
        self.rows[reason].append(row)


def normalise(text: str) -> str:
    """What a person reads: trimmed, one case, one form of Unicode, single spaces.

    Unicode's NFKC and case folding; characters that cannot be seen are removed, and any
    run of white space is one space.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold()
    # Case folding can leave a form that NFKC would compose.
    return " ".join(unicodedata.normalize("NFKC", text).split())


def same_text(one: str, other: str) -> bool:
    """Would a person call these two texts the same? See `normalise`."""
    return normalise(one) == normalise(other)


def is_blank(text: str | None) -> bool:
    """Is there nothing to read?"""
    return text is None or (isinstance(text, str) and not normalise(text))


def is_unicode(text: str) -> bool:
    """Can the text be written as UTF-8? Half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def control_pattern(special_tokens: Iterable[str] = ()) -> re.Pattern:
    """A pattern that finds a control token written out in a text.

    special_tokens: those of a tokenizer, besides any name of the form <|name|>.
    """
    names = sorted(filter(None, special_tokens), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, names), _TEMPLATE_TOKEN]))


def questions(prompt: list[dict]) -> tuple[str, ...]:
    """What the user asks in a prompt, normalised: a key that finds repeats.

    System prompts do not count: under another one it is still the same question.
    """
    return tuple(normalise(m["content"]) for m in prompt if m["role"] == "user")


def words(text: str) -> list[str]:
    """The words of a text, normalised, without punctuation."""
    return _WORD.findall(normalise(text))


def processes(rows: Sized) -> int | None:
    """How many processes `Dataset.map` gets for so many rows; None for one."""
    return os.cpu_count() if len(rows) >= _LARGE else None
