"""The README's table of promises is the tests' own."""

import pytest

from course_utils.course import promises
from course_utils.setup import places

ROOT = places.checkout()
TWO = """
import pytest

@pytest.mark.promise("a | b", "c")
@pytest.mark.parametrize("x", [1])
def test_one(x): ...

class TestMore:
    @pytest.mark.promise("d", "e")
    def test_two(self): ...

def test_three(): ...
"""


def test_the_readme_has_the_current_table():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == promises.updated(text, ROOT / "tests"), (
        "run `python -m course_utils.course promises`"
    )


def test_marks_become_rows(tmp_path):
    (tmp_path / "test_x.py").write_text(TWO, encoding="utf-8")
    lines = promises.table(tmp_path).splitlines()
    assert lines[2:] == [
        "| a \\| b | c | `test_x.py`: `test_one` |",
        "| d | e | `test_x.py`: `test_two` |",
    ]


@pytest.mark.parametrize("mark", ['"one"', '"one", ""', '"a", f"{1}"', '"a", 2', ""])
def test_a_mark_that_says_too_little_is_refused(tmp_path, mark):
    text = f"@pytest.mark.promise({mark})\ndef test_bad(): ...\n"
    (tmp_path / "test_x.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"test_x\.py, test_bad"):
        promises.table(tmp_path)


def test_a_text_without_its_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must hold the lines"):
        promises.updated("# Title\n", tmp_path)
