"""What must hold of every committed notebook, so that a reader can trust it."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

from nbformat import NotebookNode

from course_utils.course import notebooks
from course_utils.setup import secrets

MAX_FILE_BYTES = 500_000
MAX_PNG_BYTES = 60_000
MAX_CELL_LINES = 40
MAX_SETUP_LINES = 15
MAX_WIDTH = 88

_FOLDERS = "home|root|work|tmp|usr|opt|var|mnt|private|Users|content|kaggle"
ABSOLUTE_PATH = re.compile(
    # A URL or a relative path also has a slash before these names, but never first.
    rf"(?:file://|(?<![\w.:/~*%)\]-]))/(?:{_FOLDERS})/[\w.-]+"
    r"|(?<![\w/])[A-Za-z]:\\+[\w.]+"
)
PLACEHOLDER = re.compile(r"\{\{\w+\}\}")


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the notebook at `path`, one line each.

    Returns: a list of strings, each naming the cell (counted from 1 over all cells)
    and what to do; empty if the notebook is clean.
    """
    notebook = notebooks.read(path)
    return [
        *_file(path),
        *_record(notebook, path.stem),
        *leaks(notebook),
        *_cells(notebook),
        *_outputs(notebook),
        *_figures(notebook),
    ]


def leaks(notebook: NotebookNode) -> Iterator[str]:
    """What looks like a token anywhere in a notebook, one line each, cut short."""
    for number, cell in enumerate(notebook.cells, 1):
        for token in _tokens(cell.source):
            yield f"cell {number}: its source holds what looks like a token, {token}"
        for name, value in cell.get("attachments", {}).items():
            for token in _tokens(f"{name} {value}"):
                yield f"cell {number}: an attachment holds a token, {token}"
    for number, output in _each_output(notebook):
        for text in _texts(output):
            for token in _tokens(text):
                yield f"cell {number}: what looks like a token in its output, {token}"
    for token in _tokens(json.dumps(notebook.metadata)):
        yield f"the notebook's metadata hold what looks like a token, {token}"


def _file(path):
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        yield f"the file has {size:,} bytes, more than {MAX_FILE_BYTES:,}"


def _record(notebook, name):
    course = notebook.metadata.get("course", {})
    if "code_sha256" not in course:
        yield "it was never executed by `make notebooks`"
    elif course["code_sha256"] != notebooks.code_sha256(notebook):
        yield "its code changed after its outputs were made; run `make notebooks`"
    values = course.get("fills", {})
    if values != notebooks.fills(name, notebooks.run_record(notebook)):
        yield "its badge or recorded minutes are not current; run `make notebooks`"
    if "widgets" in notebook.metadata:
        yield "it holds widget state; switch the progress bar off"


def _cells(notebook):
    setup_seen = False
    for number, cell in enumerate(notebook.cells, 1):
        for placeholder in PLACEHOLDER.findall(cell.source):
            if placeholder.strip("{}") in notebooks.PLACEHOLDERS:
                yield f"cell {number}: {placeholder} was not filled in"
        # The install cell's width depends on the length of the repository's address.
        if cell.cell_type != "code" or "colab" in cell.metadata.get("tags", []):
            continue
        lines = cell.source.splitlines()
        if len(lines) > MAX_CELL_LINES:
            yield f"cell {number}: {len(lines)} lines, more than {MAX_CELL_LINES}"
        widest = max(map(len, lines), default=0)
        if widest > MAX_WIDTH:
            yield f"cell {number}: {widest} characters wide, more than {MAX_WIDTH}"
        written = sum(bool(line.strip()) for line in lines)  # blank ones are free
        if not setup_seen and written > MAX_SETUP_LINES:
            yield (
                f"cell {number}: the setup has {written} lines, "
                f"more than {MAX_SETUP_LINES}"
            )
        setup_seen = True


def _outputs(notebook):
    for number, output in _each_output(notebook):
        data = output.get("data", {})
        if output.output_type == "error":
            yield f"cell {number}: it ends in an error, {output.ename}"
        if any("widget" in kind for kind in data):
            yield f"cell {number}: a widget in its output; switch the progress bar off"
        for text in _texts(output):
            for found in ABSOLUTE_PATH.findall(text):
                yield f"cell {number}: an absolute path in its output, {found}"
        if "image/png" in data:
            size = len(base64.b64decode(data["image/png"]))
            if size > MAX_PNG_BYTES:
                yield (
                    f"cell {number}: a PNG of {size:,} bytes, more than "
                    f"{MAX_PNG_BYTES:,}; lower its size or dpi"
                )


def _figures(notebook):
    for number, output in _each_output(notebook):
        if not any(kind.startswith("image/") for kind in output.get("data", {})):
            continue
        if not notebooks.caption(notebook, number):
            yield (
                f"cell {number}: a figure without words; begin a line of the next "
                "cell, in markdown, with `*Figure:` and say what it shows"
            )


def _each_output(notebook):
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            yield number, output


def _texts(output):
    """Every piece of text in an output; images are left out."""
    if output.output_type == "stream":
        yield output.text
    elif output.output_type == "error":
        yield "\n".join(output.traceback)
    for kind, value in output.get("data", {}).items():
        if not kind.startswith("image/") or kind == "image/svg+xml":
            yield value if isinstance(value, str) else str(value)


def _tokens(text):
    """What looks like a token in `text`, cut short so that a report leaks nothing."""
    return [start for _, start in secrets.find(text)]
