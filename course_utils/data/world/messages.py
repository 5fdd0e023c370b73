"""Messages, and templates that can be read back.

Knows: the three roles, and how to undo `str.format`. Does not know: any question.
"""

import re


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
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


def read(templates, text):
    """The fields of the first template that could have written `text`, or None."""
    for template in templates:
        match = _pattern(template).fullmatch(text)
        if match:
            return match.groupdict()
    return None
