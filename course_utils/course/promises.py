"""The table of promises: what can go wrong, and what happens then.

Every row is the mark of a test, `@pytest.mark.promise("fault", "outcome")`, so the
README promises nothing that no test proves.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BEGIN = "<!-- promises: made by `python -m course_utils.course promises` -->"
END = "<!-- end of promises -->"


class Promise(NamedTuple):
    """fault and outcome in words; test: the function that proves it."""

    fault: str
    outcome: str
    file: str
    test: str


def promises(tests: Path) -> Iterator[Promise]:
    """Every Promise in the files `test_*.py` below a folder, in the files' order.

    Raises: ValueError, naming the test, for a mark that is not two plain texts.
    """
    for path in sorted(tests.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == (
                    "pytest.mark.promise"
                ):
                    yield Promise(*_texts(mark, path, node), path.name, node.name)


def _texts(mark, path, node):
    texts = [each.value for each in mark.args if isinstance(each, ast.Constant)]
    if len(texts) != 2 or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(
            f"{path.name}, {node.name}: write @pytest.mark.promise('fault', 'outcome') "
            "with two plain texts."
        )
    return texts


def table(tests: Path) -> str:
    """The promises as a Markdown table, one row each."""
    lines = ["| what goes wrong | what happens | proven by |", "|---|---|---|"]
    for fault, outcome, file, test in promises(tests):
        cells = [text.replace("|", "\\|") for text in (fault, outcome)]
        lines.append(f"| {' | '.join(cells)} | `{file}`: `{test}` |")
    return "\n".join(lines)


def updated(text: str, tests: Path) -> str:
    """`text` with its table of promises made anew.

    Raises: ValueError if the two comments that enclose the table are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text must hold the lines {BEGIN} and {END}.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(tests)}\n{END}{rest.partition(END)[2]}"
