"""What an access key looks like, so that none is published.

One list for the lint of the notebooks and for the upload. A finding names the kind of
key and never repeats the key itself.
"""

import re

_ALONE = r"(?<![A-Za-z0-9])"
PATTERNS = {
    "Hugging Face": re.compile(_ALONE + r"(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "GitHub": re.compile(_ALONE + r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})"),
    "GitLab": re.compile(_ALONE + r"glpat-[\w-]{20,}"),
    "Anthropic": re.compile(_ALONE + r"sk-ant-[\w-]{20,}"),
    "OpenAI": re.compile(_ALONE + r"sk-(?!ant-)[A-Za-z0-9][\w-]{29,}"),
    "Weights & Biases": re.compile(_ALONE + r"wandb_v\d+_\w{20,}"),
    "AWS": re.compile(
        _ALONE + r"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"
        r"|(?i:aws_?secret_?(?:access_?)?key)\W{1,6}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])"
    ),
    "Slack": re.compile(
        _ALONE + r"(?:xox[abeoprs]-|xapp-)[A-Za-z0-9-]{10,}"
        r"|hooks\.slack\.com/services/[\w/]{20,}"
    ),
    "Google": re.compile(_ALONE + r"AIza[\w-]{35}(?![\w-])"),
    "private": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "Weights & Biases (40 digits)": re.compile(
        r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])"
    ),
}
# A revision of a repository has the same 40 digits as an older wandb key.
_REVISION = re.compile(r"revision|commit|sha1?\b|_sha\b", re.IGNORECASE)
_BEFORE = 80  # characters in which the word for a revision may stand


def find(text: str) -> list[tuple[str, str]]:
    """[(kind of key, its first six characters)] of whatever looks like a key in text.

    JSON escapes are read as the characters they stand for.
    """
    found = _in_text(text)
    if "\\u" in text:
        escape = re.compile(r"\\u([0-9a-fA-F]{4})")
        found += _in_text(escape.sub(lambda code: chr(int(code[1], 16)), text))
    return list(dict.fromkeys(found))


def _in_text(text: str) -> list[tuple[str, str]]:
    found = []
    for kind, pattern in PATTERNS.items():
        for match in pattern.finditer(text):
            start = match.start()
            before = text[max(start - _BEFORE, 0) : start].rpartition("\n")[2]
            if kind.endswith("digits)") and _REVISION.search(before):
                continue
            found.append((kind, match[0][:6] + "…"))
    return found


def in_bytes(data: bytes) -> list[str]:
    """The kinds of key in a file's bytes, whether they are UTF-8 or UTF-16."""
    readings = {data, data.replace(b"\0", b"")}
    found = [find(each.decode("utf-8", errors="replace")) for each in readings]
    return sorted({kind for each in found for kind, _ in each})


def redacted(text: str) -> str:
    """The text with every key in it replaced by a word for its kind."""
    for kind, pattern in PATTERNS.items():
        text = pattern.sub(f"<{kind} key>", text)
    return text
