"""The workshop's minutes are the notebooks' own, and the bundle installs offline."""

import shutil
import subprocess
import sys

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook

from course_utils.course import agenda, bundle, commands
from course_utils.setup import places

ROOT = places.checkout()
NO_OUTPUTS = shutil.ignore_patterns("outputs", "__pycache__")
OFFLINE = ["--no-index", "--no-build-isolation"]


def test_the_page_has_the_current_minutes():
    text = (ROOT / "notebooks" / "WORKSHOP.md").read_text(encoding="utf-8")
    assert text == agenda.updated(text, ROOT), (
        "run `python -m course_utils.course agenda`"
    )


def test_the_commands_that_renew_pages_write_what_is_committed(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=NO_OUTPUTS)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=NO_OUTPUTS)
    shutil.copy(ROOT / "README.md", tmp_path)
    page = tmp_path / "notebooks" / "WORKSHOP.md"
    page.write_text(page.read_text("utf-8").replace("| 00 |", "| 99 |"), "utf-8")
    assert commands.renew_agenda(tmp_path) == commands.renew_promises(tmp_path) == 0
    for name in ("README.md", "notebooks/WORKSHOP.md"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_minutes_are_words_records_and_cards():
    cells = [
        new_markdown_cell("# 01 · " + "word " * 357),
        new_markdown_cell("## Optional: more\n" + "word " * 1000),
        new_markdown_cell("more of the optional part"),
        new_markdown_cell("## Exercises\n**1.2 · 10 min · ●●○** **Hunt 1.3 · 15 min**"),
    ]
    notebook = new_notebook(cells=cells, metadata={"course": {"seconds": 90}})
    found = agenda.minutes(notebook)
    assert found.running == 1.5
    assert found.exercises == {"1.2": 10, "1.3": 15}
    assert 2 < found.reading < 2.2


@pytest.fixture
def clone(tmp_path):
    """A tiny course with a build that needs no download."""
    root = tmp_path / "clone"
    (root / "course_utils").mkdir(parents=True)
    (root / "course_utils" / "__init__.py").write_text(
        "ANSWER = 42\n", encoding="utf-8"
    )
    (root / "constraints.txt").write_text("", encoding="utf-8")
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\n'
        'build-backend = "setuptools.build_meta"\n'
        '[project]\nname = "orpo-course"\nversion = "1"\n'
        "[tool.setuptools]\npackages = ['course_utils']\n",
        encoding="utf-8",
    )
    git = ["git", "-C", str(root)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    (root / "not_tracked.txt").write_text("x", encoding="utf-8")
    return root


@pytest.mark.promise("no network in the room", "a bundle installs the course")
def test_a_bundle_installs_without_a_network(clone, tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    assert bundle.make(clone, folder, "", OFFLINE) > 0
    assert not (folder / "course" / "not_tracked.txt").exists()
    # No index can be reached from here: only the folder's own wheels are left.
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    install = [sys.executable, "install.py"]
    done = subprocess.run(
        install, cwd=folder, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    python = folder / "course" / ".venv" / "bin" / "python"
    if sys.platform == "win32":
        python = folder / "course" / ".venv" / "Scripts" / "python.exe"
    ask = "import course_utils; print(course_utils.ANSWER)"
    answer = subprocess.run(
        [python, "-c", ask],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert answer.stdout == "42\n", answer.stderr


def test_a_bundle_for_another_python_says_so(clone, tmp_path):
    folder = tmp_path / "bundle"
    bundle.make(clone, folder, "", OFFLINE)
    script = folder / "install.py"
    text = script.read_text(encoding="utf-8")
    now = str(sys.version_info[:2])
    assert now in text
    script.write_text(text.replace(now, "(3, 1)"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 1 and "are for Python 3.1" in done.stderr


@pytest.mark.parametrize("where", ["clone", "clone/inside", "full"])
def test_a_bundle_never_goes_where_something_is(clone, tmp_path, where):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises((ValueError, FileExistsError)):
        bundle.make(clone, tmp_path / where, "", OFFLINE)
    assert (tmp_path / "full" / "thesis.txt").read_text(encoding="utf-8") == "years"
    assert (clone / "pyproject.toml").exists()
