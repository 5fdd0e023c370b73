"""Notebook files: from text to notebook, and back.

People edit `notebooks/src/NN_name.py`; readers open `notebooks/NN_name.ipynb`. The
first makes the second, never the other way round: going back exists for the test that
compares the two.
"""

import hashlib
import json
from collections import Counter
from copy import deepcopy
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.recorded import on_gpu
from course_utils.setup import folders, places

# What a machine writes about itself (display names, patch versions) would change from
# one author to the next; GitHub and Jupyter need no more than this.
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
PREDICT = "**Predict.**"
FOLD = "<details>"
PLACEHOLDERS = ("badge", "recorded", "source")
# jupytext's own notes on blank lines: they shape the text and are not the author's.
LAYOUT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker"}


def text_files(root: Path) -> list[Path]:
    """The reviewable texts `notebooks/src/NN_name.py` under `root`, in order."""
    return sorted((root / "notebooks" / "src").glob("[0-9][0-9]_*.py"))


def notebook_files(root: Path) -> list[Path]:
    """The notebooks `notebooks/NN_name.ipynb` under `root`, in order."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


# --- text to notebook ---------------------------------------------------------------


def from_text(text: str, name: str = "the text") -> NotebookNode:
    """A notebook without outputs, placeholders still in place, from py:percent text.

    Cell ids come from the cells' sources, so that a rebuild changes only what changed.
    What a "Predict" asks for is not in sight: the code cells between it and the fold
    that says what came hide their outputs until the reader asks for them.
    Raises: ValueError for a cell that is neither markdown nor code, or that carries
    metadata other than tags (it would be lost on the way).
    """
    cells = []
    for number, cell in enumerate(jupytext.reads(text, fmt="py:percent").cells, 1):
        extra = set(cell.metadata) - LAYOUT_KEYS - {"tags"}
        if cell.cell_type not in ("markdown", "code") or extra:
            what = f"metadata {sorted(extra)}" if extra else f"type {cell.cell_type}"
            raise ValueError(
                f"{name}: cell {number} has {what}; "
                "the course uses markdown and code cells, with tags only."
            )
        new_cell = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        tags = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        cells.append(new_cell(cell.source, metadata=tags))
    predicting = False
    for cell in cells:
        if cell.cell_type == "markdown":
            # A cell may hold the fold of one question, then the next question.
            predicting = PREDICT in cell.source or (
                predicting and FOLD not in cell.source
            )
        elif predicting:
            # JupyterLab shows three dots in the output's place, until a click; older
            # programs look for `collapsed`.
            cell.metadata.update(collapsed=True, jupyter={"outputs_hidden": True})
    notebook = new_notebook(cells=cells, metadata=deepcopy(NOTEBOOK_METADATA))
    _name_cells(notebook)
    return notebook


def _name_cells(notebook):
    seen = Counter()
    for cell in notebook.cells:
        key = f"{cell.cell_type}\n{cell.source}".encode()
        digest = hashlib.sha256(key).hexdigest()[:8]
        seen[digest] += 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


# --- placeholders -------------------------------------------------------------------


def colab_badge(name: str) -> str:
    """Markdown of the badge that opens notebook `name` in Colab.

    Raises: ValueError if the repository is not on github.com (Colab opens no other).
    """
    host = "https://github.com/"
    address = places.repository()
    if not address.startswith(host):
        raise ValueError(
            f"pyproject.toml, [project.urls] Repository: {address} does not begin with "
            f"{host}, so no Colab badge can be made from it."
        )
    slug = address.removeprefix(host)
    colab = "https://colab.research.google.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]"
        f"({colab}/github/{slug}/blob/{places.revision()}/notebooks/{name}.ipynb)"
    )


def recorded_sentence(record: dict) -> str:
    """What a run took, in words; `record` is what `execution.execute` returned."""
    if not record:
        return "(not recorded yet)"
    plural = "core" if record["cores"] == 1 else "cores"
    return (
        f"{record['seconds'] / 60:.1f} minutes and {record['peak_memory_gib']:.1f} GiB "
        f"peak memory on the `{record['profile']}` profile "
        f"({record['cores']} {plural}, recorded {record['executed_on']})"
    )


def fills(name: str, record: dict) -> dict[str, str]:
    """The value of every placeholder in notebook `name`, whose run gave `record`."""
    return {
        "badge": colab_badge(name),
        "recorded": recorded_sentence(record) + on_gpu.clause(name, on_gpu.load()),
        "source": f"git+{places.repository()}@{places.revision()}",
    }


def filled(notebook: NotebookNode, values: dict[str, str]) -> NotebookNode:
    """A copy of `notebook` with `{{badge}}` and its like replaced, values kept.

    The values stay in `metadata.course.fills`, so that `to_text` can undo it.
    """
    result = deepcopy(notebook)
    for cell in result.cells:
        for key, value in values.items():
            cell.source = cell.source.replace("{{" + key + "}}", value)
    result.metadata.setdefault("course", nbformat.NotebookNode()).fills = values
    return result


def refilled(notebook: NotebookNode, name: str) -> NotebookNode:
    """A copy of a finished notebook with today's badge and addresses, outputs kept."""
    return filled(unfilled(notebook), fills(name, run_record(notebook)))


def unfilled(notebook: NotebookNode) -> NotebookNode:
    """A copy of `notebook` with the placeholders put back and the outputs kept."""
    result = deepcopy(notebook)
    values = result.metadata.get("course", {}).pop("fills", {})
    for cell in result.cells:
        for key, value in values.items():
            cell.source = cell.source.replace(value, "{{" + key + "}}")
    return result


# --- notebook to text, and hashes ---------------------------------------------------


def to_text(notebook: NotebookNode) -> str:
    """The py:percent text that `notebook` was made from."""
    bare = unfilled(notebook)
    bare.metadata = {
        "jupytext": {
            "notebook_metadata_filter": "-all",
            "cell_metadata_filter": "tags,-all",
        }
    }
    return jupytext.writes(bare, fmt="py:percent")


def code_sha256(notebook: NotebookNode) -> str:
    """A hash of the code cells as the author wrote them.

    Taken with the placeholders in place, so that a changed repository address does
    not make a run stale.
    """
    cells = unfilled(notebook).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


# --- a finished notebook ------------------------------------------------------------


def carry_outputs(executed: NotebookNode, fresh: NotebookNode) -> None:
    """Put the outputs of `executed` into `fresh`, in place.

    Raises: ValueError if their code differs: the outputs would belong to other code.
    """
    if code_sha256(executed) != code_sha256(fresh):
        raise ValueError("Outputs can only be carried between notebooks of equal code.")
    done = [cell for cell in executed.cells if cell.cell_type == "code"]
    new = [cell for cell in fresh.cells if cell.cell_type == "code"]
    for old_cell, cell in zip(done, new, strict=True):
        cell.outputs = deepcopy(old_cell.outputs)
        cell.execution_count = old_cell.execution_count


def finished(
    template: NotebookNode, name: str, executed: NotebookNode, record: dict
) -> NotebookNode:
    """The notebook that readers open: text, outputs, and a record of the run.

    template: from `from_text`; executed: the same code with outputs; record: what
    `execution.execute` returned. Raises: ValueError if the code differs.
    """
    result = filled(template, fills(name, record))
    carry_outputs(executed, result)
    result.metadata.course.update(record, code_sha256=code_sha256(template))
    return result


def run_record(notebook: NotebookNode) -> dict:
    """What `metadata.course` says of the notebook's last run; empty if it never ran."""
    course = notebook.metadata.get("course", {})
    return {key: course[key] for key in course if key not in ("fills", "code_sha256")}


def is_current(executed: NotebookNode, template: NotebookNode) -> bool:
    """Do the outputs of `executed` belong to the code of `template`?"""
    course = executed.metadata.get("course", {})
    return course.get("code_sha256") == code_sha256(template) == code_sha256(executed)


def read(path: Path) -> NotebookNode:
    """The notebook at `path`. Raises: ValueError naming the file if it is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        # nbformat would take JSON of any other shape for a very old notebook.
        if not isinstance(notebook, dict) or notebook.get("nbformat") != 4:
            raise ValueError("it is not in notebook format 4")
        notebook = nbformat.from_dict(notebook)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a notebook: {reason[:200]}") from error
    # A file holds long texts as lists of lines; in memory they are one string.
    return nbformat.v4.rwbase.rejoin_lines(notebook)


def write(notebook: NotebookNode, path: Path) -> None:
    """Write `notebook` to `path`, in one form on every system."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook, version=4)
    write_text(path, text.rstrip("\n") + "\n")


def write_text(path: Path, text: str) -> None:
    """As folders.write_text; the file's folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folders.write_text(path, text)


# --- what a notebook says of itself -------------------------------------------------


def heading(notebook: NotebookNode) -> str:
    """Its first heading, such as `01 · What does SFT do to …?`; empty without one."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return line.removeprefix("# ").strip()
    return ""


def finding(notebook: NotebookNode) -> str:
    """Its headline: the last printed line that begins with `Finding: `, or empty."""
    found = ""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                for line in output.text.splitlines():
                    if line.startswith("Finding: "):
                        found = line.removeprefix("Finding: ").strip()
    return found


def caption(notebook: NotebookNode, number: int) -> str:
    """The words below the figure of cell `number` (from 1 over all cells), or empty.

    They are the line that begins with `*Figure:` in the markdown cell that follows.
    """
    following = notebook.cells[number : number + 1]
    for cell in following:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("*Figure:"):
                    return line.removeprefix("*Figure:").strip().rstrip("*").strip()
    return ""
