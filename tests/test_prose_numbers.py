"""Numbers in the prose of a notebook are those of the output that they quote.

Convention: a markdown line that quotes an output ends with `<!-- measured -->`, which
no reader sees. Every number of such a line must stand, to its own digits, in an output
of the same `##` section. A share may be quoted in per cent.
"""

import ast
import re
from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course_utils.course import notebooks
from course_utils.exercises import quizzes
from course_utils.setup import places

ROOT = places.checkout()
MARK = "<!-- measured -->"
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(\s?%)?")
LETTERS = re.compile(r"\\?[a-z]+\s\d+(?= \\approx)")  # "\log 2 \approx 0.693"


def numbers(text):
    """[(value, unit of the last digit)] of all numbers in `text`."""
    found = []
    for match in NUMBER.finditer(text):
        digits = match[0].rstrip("% \u00a0").replace(",", "")
        mantissa, _, power = digits.partition("e")
        step = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        scale = 0.01 if match[1] else 1.0
        found.append((float(digits) * scale, step * scale))
    return found


def unquoted(notebook):
    """Marked lines with a number that no output of their section holds."""
    outputs, wrong = [], []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.get("outputs", []):
                text = output.get("text") or output.get("data", {}).get("text/plain")
                outputs += [value for value, _ in numbers(text or "")]
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                outputs = []
            if MARK not in line:
                continue
            for value, step in numbers(LETTERS.sub("", line.replace(MARK, ""))):
                if not any(abs(value - seen) <= 0.5001 * step for seen in outputs):
                    wrong.append(line)
    return wrong


@pytest.mark.parametrize(
    "path", notebooks.notebook_files(ROOT), ids=lambda path: path.stem
)
def test_marked_prose_quotes_its_output(path):
    assert unquoted(notebooks.read(path)) == []


def quoting(output, line):
    code = new_code_cell("1", outputs=[new_output("stream", text=output)])
    return new_notebook(cells=[code, new_markdown_cell(f"{line} {MARK}")])


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("mean 0.0924", "About 9 % is lost."),
        ("P 0.90 and 0.99", "From 0.9 to 0.99."),
        ("1,234 rows", "1,234 rows stay."),
        ("term 0.693147", r"It is $\log 2 \approx 0.693$."),
        ("KL 8.4e-07", "The noise is 8e-07."),
    ],
)
def test_a_rounded_quotation_is_right(output, line):
    assert unquoted(quoting(output, line)) == []


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("mean 0.124", "About 9 % is lost."),
        ("P 0.90", "From 0.9 to 0.99."),
        ("1,243 rows", "1,234 rows stay."),
        ("KL 8.4e-05", "The noise is 8e-07."),
        ("", "It is 13.6 GiB."),
    ],
)
def test_a_wrong_quotation_is_found(output, line):
    assert len(unquoted(quoting(output, line))) >= 1


def test_an_output_of_another_section_does_not_count():
    notebook = quoting("0.5", "It is 0.5.")
    notebook.cells.insert(1, new_markdown_cell("## 2. Elsewhere"))
    assert len(unquoted(notebook)) == 1


@pytest.mark.parametrize("path", notebooks.text_files(ROOT), ids=lambda path: path.stem)
def test_no_cell_hides_an_imported_name(path):
    """`recorded = recorded.load(…)` breaks the next cell that uses the module."""
    imported, hidden = set(), []
    for cell in notebooks.from_text(path.read_text(encoding="utf-8")).cells:
        magic = cell.source.lstrip().startswith("%%")
        if (
            cell.cell_type != "code"
            or magic
            or "colab" in cell.metadata.get("tags", [])
        ):
            continue
        for statement in ast.parse(cell.source).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                names = (alias.asname or alias.name for alias in statement.names)
                imported |= {name.split(".")[0] for name in names}
            elif not isinstance(statement, ast.FunctionDef | ast.ClassDef):
                hidden += [
                    node.id
                    for node in ast.walk(statement)
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
                ]
    assert imported.isdisjoint(hidden)


# --- quizzes ------------------------------------------------------------------------

# This question supposes its numbers.
SUPPOSED = "`rewards/margins` is 0.05 at beta 0.1 and 0.20 at beta 0.5."


def not_measured(questions, notebook):
    """Numbers with two decimals, of questions and their right answers, in no output."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [
        value
        for cell in code
        if "checks.quiz" not in cell.source
        for output in cell.get("outputs", [])
        for value, _ in numbers(
            output.get("text") or output.get("data", {}).get("text/plain") or ""
        )
    ]
    for question in questions:
        right = question.options[question.right]
        text = " ".join((question.ask, *right)).replace(SUPPOSED, "")
        for value, step in numbers(re.sub(r"\d+\s?%", "", text)):
            if step <= 0.01 and not any(abs(value - s) <= 0.5001 * step for s in shown):
                yield value


@pytest.mark.parametrize(
    "path",
    [path for path in notebooks.notebook_files(ROOT) if not path.stem.startswith("08")],
    ids=lambda path: path.stem,
)
def test_quizzes_quote_outputs(path):
    questions = quizzes.load(path.stem[:2])
    assert list(not_measured(questions, notebooks.read(path))) == []


def test_a_quiz_with_another_number_is_found():
    cell = new_code_cell("1", outputs=[new_output("stream", text="accuracy 0.824\n")])
    right = {"right": "a", "options": {"a": ("Chance.", "So it is.")}}
    for said, found in (("0.82", []), ("0.83", [0.83])):
        question = SimpleNamespace(ask=f"It fell to {said}. Why?", **right)
        assert list(not_measured([question], new_notebook(cells=[cell]))) == found
