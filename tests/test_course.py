"""The commands: what they run, what they reuse, and what they tell the reader."""

import subprocess
import sys
from copy import deepcopy

import pytest
from nbformat.v4 import new_output

from course_utils.course import (
    commands,
    console,
    execution,
    notebook_lint,
    notebooks,
    pages,
)
from course_utils.recorded import on_gpu
from course_utils.setup import places

FIRST = """\
# %% [markdown]
# # 00 · Is p(y|x) one number?
#
# {{badge}} {{recorded}}

# %%
import os

print("Finding: first")
"""
SECOND = FIRST.replace("00", "01").replace("first", "second")
RECORD = {
    "profile": "cpu",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "seconds": 90.0,
    "peak_memory_gib": 1.0,
    "cores": 2,
    "executed_on": "2026-11-22",
}


@pytest.fixture
def root(tmp_path):
    """A small course: two texts and a README, nothing built yet."""
    source = tmp_path / "notebooks" / "src"
    source.mkdir(parents=True)
    (source / "00_first.py").write_text(FIRST, encoding="utf-8")
    (source / "01_second.py").write_text(SECOND, encoding="utf-8")
    readme = f"# Title\n\n{pages.README_BEGIN}\nold\n{pages.README_END}\n\nend\n"
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    return tmp_path


@pytest.fixture
def kernel(monkeypatch):
    """A kernel that needs no time: it notes what it runs, and breaks on `1 / 0`."""
    ran = []

    def execute(notebook, folder, profile, progress=None):
        code = notebooks.code_sha256(notebook)
        ran.append((notebooks.heading(notebook)[:2], folder, profile))
        source = notebook.cells[1].source
        if "1 / 0" in source:
            raise execution.NotebookBrokeError("cell 2: ZeroDivisionError: division")
        text = source.split('"')[1] + "\n"
        notebook.cells[1].outputs = [new_output("stream", name="stdout", text=text)]
        assert notebooks.code_sha256(notebook) == code
        return dict(RECORD, profile=profile)

    monkeypatch.setattr(execution, "execute", execute)
    return ran


@pytest.fixture
def built(root, kernel, monkeypatch):
    """The small course with its notebooks built, none of them recorded on a GPU."""
    monkeypatch.setattr(on_gpu, "load", lambda: None)
    assert commands.build_notebooks(root) == 0
    kernel.clear()
    return root


def edit(root, old, new, name="00_first"):
    path = root / "notebooks" / "src" / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- make notebooks -----------------------------------------------------------------


def test_notebooks_are_built_from_text_by_a_real_kernel(root):
    assert commands.build_notebooks(root, ["00"]) == 0
    path = root / "notebooks" / "00_first.ipynb"
    assert notebook_lint.problems(path) == []
    assert notebooks.finding(notebooks.read(path)) == "first"
    assert notebooks.to_text(notebooks.read(path)) == FIRST


def test_the_readme_gets_its_map(built):
    text = (built / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# Title\n")
    assert text.endswith("\n\nend\n")
    assert "old" not in text
    badge = notebooks.colab_badge("00_first")
    row = r"| [00](notebooks/00_first.ipynb) | Is p(y\|x) one number? | 1.5 | 1.0 GiB |"
    assert f"{row} {badge} |" in text.splitlines()


def test_a_readme_without_its_marks_is_refused():
    with pytest.raises(ValueError, match=r"README\.md must hold"):
        pages.updated_readme("# Title\n", [])


def test_only_stale_runs_what_changed_and_renews_all_text(built, kernel):
    edit(built, "first", "changed")
    edit(built, "one number", "two numbers", name="01_second")
    assert commands.build_notebooks(built, only_stale=True) == 0
    assert [number for number, _, _ in kernel] == ["00"]
    second = notebooks.read(built / "notebooks" / "01_second.ipynb")
    assert notebooks.heading(second) == "01 · Is p(y|x) two numbers?"
    assert notebooks.finding(second) == "second"


def test_a_notebook_that_breaks_stays_as_committed(built, kernel, capsys):
    path = built / "notebooks" / "00_first.ipynb"
    before = path.read_bytes()
    edit(built, 'print("Finding: first")', "1 / 0")
    assert commands.build_notebooks(built) == 1
    assert path.read_bytes() == before
    assert (built / "build" / "broken" / path.name).exists()
    said = capsys.readouterr().out
    assert "broke at cell 2: ZeroDivisionError" in said
    assert "left as committed: 00_first" in said


def test_text_gets_the_form_that_jupytext_writes(built, kernel, capsys):
    edit(built, "import os\n\nprint", "\nimport os\n\nprint")
    commands.build_notebooks(built, only_stale=True)
    text = (built / "notebooks" / "src" / "00_first.py").read_text(encoding="utf-8")
    assert text == notebooks.to_text(notebooks.from_text(text))


# --- make course --------------------------------------------------------------------


def test_the_course_runs_from_a_copy_and_ends_with_a_table(built, kernel, capsys):
    committed = [path.read_bytes() for path in notebooks.notebook_files(built)]
    assert commands.run_course(built) == 0
    assert committed == [path.read_bytes() for path in notebooks.notebook_files(built)]
    assert {folder for _, folder, _ in kernel} == {built / "build" / "notebooks"}
    said = capsys.readouterr().out
    for words in ("00_first: started", "00_first: done in", "01_second.html"):
        assert words in said
    page = (built / "build" / "html" / "00_first.html").read_text(encoding="utf-8")
    assert "Finding: first" in page
    assert "colab" not in page.lower()
    assert 'src="http' not in page
    assert (built / "build" / "html" / "mathjax" / "MathJax.js").exists()
    index = (built / "build" / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="00_first.html">00 · Is p(y|x) one number?</a>' in index
    assert "<td>second</td><td>1.5</td>" in index


def test_a_second_run_reuses_what_did_not_change(built, kernel, monkeypatch):
    commands.run_course(built)
    kernel.clear()
    commands.run_course(built)
    assert kernel == []
    edit(built, "one number", "two numbers")
    commands.build_notebooks(built, only_stale=True)
    commands.run_course(built)
    assert kernel == []
    page = (built / "build" / "html" / "00_first.html").read_text(encoding="utf-8")
    assert "two numbers" in page
    commands.run_course(built, fresh=True)
    assert len(kernel) == 2
    monkeypatch.setenv("COURSE_PROFILE", "t4")
    commands.run_course(built, ["00"])
    assert kernel[-1][2] == "t4"


def test_a_broken_notebook_does_not_stop_the_others(built, kernel, capsys):
    template = notebooks.from_text(FIRST.replace('print("Finding: first")', "1 / 0"))
    finished = notebooks.finished(template, "00_first", deepcopy(template), RECORD)
    notebooks.write(finished, built / "notebooks" / "00_first.ipynb")
    assert commands.run_course(built) == 1
    said = capsys.readouterr().out
    assert "00_first: broke at cell 2: ZeroDivisionError" in said
    assert "BROKE at cell 2:" in said
    assert "01_second: done" in said
    kernel.clear()
    assert commands.run_course(built) == 1
    assert [number for number, _, _ in kernel] == ["00"]


def test_run_key_hangs_on_code_package_cards_and_settings(tmp_path, monkeypatch):
    package = tmp_path / "course_utils"
    package.mkdir()
    (package / "world.py").write_text("1", encoding="utf-8")
    (tmp_path / "data_cards").mkdir()
    card = tmp_path / "data_cards" / "prm.md"
    card.write_text("1", encoding="utf-8")
    notebook = notebooks.from_text(FIRST)
    keys = [commands.run_key(notebook, package, "cpu")]
    assert keys == [commands.run_key(notebook, package, "cpu")]
    (package / "world.py").write_text("2", encoding="utf-8")
    keys.append(commands.run_key(notebook, package, "cpu"))
    card.write_text("2", encoding="utf-8")
    keys.append(commands.run_key(notebook, package, "cpu"))
    monkeypatch.setenv("COURSE_DATA", "elsewhere")
    keys.append(commands.run_key(notebook, package, "cpu"))
    keys.append(commands.run_key(notebook, package, "t4"))
    keys.append(commands.run_key(notebooks.from_text(SECOND), package, "t4"))
    assert len(set(keys)) == 6


def test_an_unknown_name_is_refused_with_those_there_are(built):
    with pytest.raises(SystemExit, match="'07'.*00_first, 01_second"):
        commands.run_course(built, ["07"])


def test_the_table_fits_its_width():
    row = {"name": "00_a", "minutes": "1.5", "where": "build/html/00_a.html"}
    text = console.table([dict(row, finding="word " * 40)], width=90)
    assert max(map(len, text.splitlines())) <= 90
    assert text.count("word") == 40


# --- make test, the command line ----------------------------------------------------


def test_the_test_command_runs_notebooks_and_tests_on_the_cpu_profile(
    monkeypatch, tmp_path
):
    seen = {}

    def run(command, **options):
        seen.update(options, command=command)
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("COURSE_PROFILE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert commands.run_tests(tmp_path, ["-k", "x"]) == 3
    assert seen["command"][:6] == [
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "notebooks",
        "tests",
    ]
    assert seen["command"][-2:] == ["-k", "x"]
    assert seen["cwd"] == tmp_path
    assert seen["env"]["COURSE_PROFILE"] == "cpu"
    assert int(seen["env"]["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run", "--slow"]])
def test_a_wrong_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        commands.main(arguments)
    assert "usage" in capsys.readouterr().err


def test_outside_a_clone_the_commands_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "course_utils")
    monkeypatch.setattr(places, "repository", lambda: "https://github.com/a/b")
    with pytest.raises(FileNotFoundError, match="clone https://github.com/a/b"):
        commands.main(["run"])
    with pytest.raises(FileNotFoundError, match="data cards are missing"):
        places.data_cards()
