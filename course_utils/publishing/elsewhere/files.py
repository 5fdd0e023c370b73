"""The files of a run: commented YAML, and a folder that holds these files only.

Knows: YAML, folders. Does not know: what the keys mean.
"""

import textwrap
from pathlib import Path

import yaml

from course_utils.setup import folders


def to_yaml(header, keys):
    """YAML text of a configuration.

    header: paragraphs for the top. keys: [(key, value, why)]; `why` becomes the comment
    above its key, "" none.
    """
    lines = [line for text in header for line in _comment(text)] + [""]
    for key, value, why in keys:
        lines += [*_comment(why), _entry(key, value)]
    return "\n".join(lines) + "\n"


def _entry(key, value):
    """`key: value`; the innermost lists and dicts stay on one line."""
    if not isinstance(value, list | dict):
        return yaml.safe_dump({key: value}, default_flow_style=False).rstrip()
    text = yaml.safe_dump(value, default_flow_style=None, sort_keys=False).rstrip()
    if text[0] in "[{":
        return f"{key}: {text}"
    return f"{key}:\n" + textwrap.indent(text, "  ")


def _comment(text):
    return textwrap.wrap(text, 88, initial_indent="# ", subsequent_indent="# ")


def write(folder, files):
    """Write {name: text} to the folder, whole or not at all.

    Returns: Path of the first file.
    Raises: FileExistsError if the folder holds anything but these files.
    """
    folder = Path(folder)
    others = {path.name for path in folder.glob("*")} - set(files)
    if others:
        raise FileExistsError(
            f"{folder} holds {', '.join(sorted(others)[:3])}: name another folder, so "
            "that nothing of yours is replaced."
        )
    with folders.written_whole(folder, replace=True) as partial:
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")
    return folder / next(iter(files))
