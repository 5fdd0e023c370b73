"""When two texts are the same, and which text no chat template can carry.

`normalise` is the one rule: repeats, the split, the search for copies of benchmarks and
"both answers are the same" all compare what it returns.
"""

import functools
import hashlib
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sized

import numpy as np

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
_PRINTED = re.compile("[!-~]")  # ASCII that can be seen
_BETWEEN = {code: " " for code in range(128) if not _WORD.match(chr(code))}
_HEAD = 200  # characters in which most texts already differ
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
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
    if one.isascii() and other.isascii():
        # The last word of a head may be cut.
        heads = [text[:_HEAD].lower().split()[:-1] for text in (one, other)]
        if any(a != b for a, b in zip(*heads, strict=False)):
            return False
    return normalise(one) == normalise(other)


def is_blank(text: str | None) -> bool:
    """Is there nothing to read?"""
    if text is None:
        return True
    return isinstance(text, str) and not (_PRINTED.search(text) or normalise(text))


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
    if text.isascii():  # the same, in half the time
        return text.lower().translate(_BETWEEN).split()
    return _WORD.findall(normalise(text))


def run_hashes(said: list[str], run: int) -> np.ndarray:
    """One hash for every `run` words in a row: uint64, (max(0, words - run + 1),).

    The same in every process and on every system.
    """
    hashes = np.fromiter(map(_word_hash, said), np.uint64, len(said))
    count = max(0, len(hashes) - run + 1)
    return fold(hashes[at : at + count] for at in range(run))


def fold(columns: Iterable[np.ndarray]) -> np.ndarray:
    """One hash for what several arrays of uint64 hold at the same place, in order."""
    return functools.reduce(
        lambda done, next_one: done * _MULTIPLIER + next_one, columns
    )


@functools.lru_cache(2**16)
def _word_hash(word):
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")


def processes(rows: Sized) -> int | None:
    """How many processes `Dataset.map` gets for so many rows; None for one."""
    return os.cpu_count() if len(rows) >= _LARGE else None
