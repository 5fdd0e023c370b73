"""Messages, and templates that can be read back."""

import re
from collections.abc import Iterable


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict:
    return {"role": "system", "content": text}


def _pattern(template):
    """A regular expression of exactly what `template.format(...)` can write."""
    parts = re.split(r"\{(\w+)\}", template)
    out, seen = "", set()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            out += re.escape(part)
        elif part in seen:
            out += f"(?P={part})"
        else:
            out += f"(?P<{part}>.+?)"
            seen.add(part)
    return re.compile(out)


def read(templates: Iterable[str], text: str) -> dict | None:
    """The fields of the first template that could have written `text`, or None."""
    for template in templates:
        match = _pattern(template).fullmatch(text)
        if match:
            return match.groupdict()
    return None
