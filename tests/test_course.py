"""The commands: what they run, what they reuse, and what they tell the reader."""

import errno
import os
import re
import signal
import subprocess
import sys
import types
from copy import deepcopy
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_output

from course_utils.chat.loss_view import _STYLE
from course_utils.course import (
    building,
    commands,
    console,
    execution,
    notebook_lint,
    notebooks,
    pages,
    running,
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

    def execute(notebook, folder, profile, progress=None, stop=None, settings=None):
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
    assert building.build_notebooks(root) == 0
    kernel.clear()
    return root


def edit(root, old, new, name="00_first"):
    path = root / "notebooks" / "src" / f"{name}.py"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(old, new), encoding="utf-8")


# --- make notebooks -----------------------------------------------------------------


def test_notebooks_are_built_from_text_by_a_real_kernel(root):
    assert building.build_notebooks(root, ["00"]) == 0
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
    assert building.build_notebooks(built, only_stale=True) == 0
    assert [number for number, _, _ in kernel] == ["00"]
    second = notebooks.read(built / "notebooks" / "01_second.ipynb")
    assert notebooks.heading(second) == "01 · Is p(y|x) two numbers?"
    assert notebooks.finding(second) == "second"


def test_a_notebook_that_breaks_stays_as_committed(built, kernel, capsys):
    path = built / "notebooks" / "00_first.ipynb"
    before = path.read_bytes()
    edit(built, 'print("Finding: first")', "1 / 0")
    assert building.build_notebooks(built) == 1
    assert path.read_bytes() == before
    assert (built / "build" / "broken" / path.name).exists()
    said = capsys.readouterr().out
    assert "broke at cell 2: ZeroDivisionError" in said
    assert "left as committed: 00_first" in said


def test_text_gets_the_form_that_jupytext_writes(built, kernel, capsys):
    edit(built, "import os\n\nprint", "\nimport os\n\nprint")
    building.build_notebooks(built, only_stale=True)
    text = (built / "notebooks" / "src" / "00_first.py").read_text(encoding="utf-8")
    assert text == notebooks.to_text(notebooks.from_text(text))


@pytest.mark.promise("a notebook shows a token", "it is not written, status 1")
@pytest.mark.parametrize("token", ["hf_" + "aB3" * 12, "ghp_" + "a" * 36])
@pytest.mark.parametrize("place", ["source", "markdown"])
def test_a_notebook_with_a_token_is_not_written(built, capsys, token, place):
    target = built / "notebooks" / "00_first.ipynb"
    before = target.read_bytes()
    if place == "markdown":
        edit(built, "# # 00", f"# {token}\n#\n# # 00")
    else:
        edit(built, 'print("Finding: first")', f'key = "{token}"')
    assert building.build_notebooks(built, ["00"]) == 1
    assert target.read_bytes() == before
    said = capsys.readouterr().out
    assert "not written" in said and token not in said


def test_a_notebook_that_prints_a_token_is_not_written(root, capsys):
    edit(root, 'print("Finding: first")', 'print("hf_" + "aB3" * 12)')
    assert building.build_notebooks(root, ["00"]) == 1
    assert not (root / "notebooks" / "00_first.ipynb").exists()
    assert "what looks like a token in its output" in capsys.readouterr().out


# --- make course --------------------------------------------------------------------


def test_the_course_runs_from_a_copy_and_ends_with_a_table(built, kernel, capsys):
    committed = [path.read_bytes() for path in notebooks.notebook_files(built)]
    assert running.run_course(built) == 0
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
    running.run_course(built)
    kernel.clear()
    running.run_course(built)
    assert kernel == []
    edit(built, "one number", "two numbers")
    building.build_notebooks(built, only_stale=True)
    running.run_course(built)
    assert kernel == []
    page = (built / "build" / "html" / "00_first.html").read_text(encoding="utf-8")
    assert "two numbers" in page
    running.run_course(built, fresh=True)
    assert len(kernel) == 2
    monkeypatch.setenv("COURSE_PROFILE", "t4")
    running.run_course(built, ["00"])
    assert kernel[-1][2] == "t4"


def test_a_broken_notebook_does_not_stop_the_others(built, kernel, capsys):
    template = notebooks.from_text(FIRST.replace('print("Finding: first")', "1 / 0"))
    finished = notebooks.finished(template, "00_first", deepcopy(template), RECORD)
    notebooks.write(finished, built / "notebooks" / "00_first.ipynb")
    assert running.run_course(built) == 1
    said = capsys.readouterr().out
    assert "00_first: broke at cell 2: ZeroDivisionError" in said
    assert "BROKE at cell 2:" in said
    assert "01_second: done" in said
    kernel.clear()
    assert running.run_course(built) == 1
    assert [number for number, _, _ in kernel] == ["00"]


@pytest.mark.promise("a kill leaves half a copy in build/", "it is made again")
@pytest.mark.parametrize(
    "content",
    [b"", b'{\n "cells": [', b"[1]", b"\xff\xfe\x00", b'{"cells": 5}', b"null"],
)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_copy_that_cannot_be_read_is_made_again(built, kernel, content, fresh):
    running.run_course(built)
    kernel.clear()
    copy = built / "build" / "notebooks" / "00_first.ipynb"
    copy.write_bytes(content)
    assert running.run_course(built, fresh=fresh) == 0
    assert "00" in [number for number, _, _ in kernel]
    assert notebooks.finding(notebooks.read(copy)) == "first"


def test_a_copy_of_other_code_is_made_again(built, kernel):
    running.run_course(built)
    kernel.clear()
    copy = built / "build" / "notebooks" / "00_first.ipynb"
    other = notebooks.read(copy)
    other.cells[1].source = "print('somebody edited this')"
    notebooks.write(other, copy)
    assert running.run_course(built) == 0
    assert [number for number, _, _ in kernel] == ["00"]


@pytest.mark.promise("one notebook cannot be read", "the others run, status 1")
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\x80", b'{"nbformat": 4}'])
def test_an_unreadable_notebook_stops_no_other(built, kernel, capsys, content):
    (built / "notebooks" / "00_first.ipynb").write_bytes(content)
    assert running.run_course(built) == 1
    said = capsys.readouterr().out
    assert "00_first.ipynb is not a notebook" in said
    assert "01_second: done" in said
    assert "Traceback" not in said


@pytest.mark.promise("build/ cannot be written", "one sentence, no traceback")
@pytest.mark.parametrize("blocked", ["build", "build/notebooks", "build/html"])
def test_a_build_folder_that_cannot_be_written_is_said(built, kernel, blocked):
    (built / blocked).parent.mkdir(parents=True, exist_ok=True)
    (built / blocked).write_text(
        "a file stands where the folder should be", encoding="utf-8"
    )
    with pytest.raises(SystemExit, match="writes its results to .*build, and cannot"):
        running.run_course(built)


def test_a_full_disk_keeps_the_page_of_the_run_before(built, kernel, monkeypatch):
    running.run_course(built)
    page = built / "build" / "html" / "00_first.html"
    before = page.read_bytes()

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SystemExit, match="No space left"):
        running.run_course(built, fresh=True)
    assert page.read_bytes() == before
    assert not list((built / "build").rglob("*.partial"))


@pytest.mark.promise("Ctrl-C while a notebook runs", "status 130, no traceback")
@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("cell", ["time.sleep(60)", "while True: pass"])
def test_ctrl_c_ends_the_kernel_and_nothing_else(built, cell, tmp_path):
    child = f"""
import os, signal, sys, threading, time
from pathlib import Path
from nbformat.v4 import new_code_cell, new_notebook
from course_utils.course import execution

def main():
    started = Path({str(tmp_path)!r}) / "started"
    code = f"open({{str(started)!r}}, 'w').close()\\nimport time\\n" + {cell!r}
    def interrupt():
        while not started.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        execution.execute(new_notebook(cells=[new_code_cell(code)]), ".", "cpu")
    except KeyboardInterrupt:
        import psutil
        print("left:", len(psutil.Process().children(recursive=True)))
        sys.exit(130)
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", child],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(places.PACKAGE.parent)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout) == (130, "left: 0\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_run_key_hangs_on_code_package_cards_and_settings(tmp_path, monkeypatch):
    package = tmp_path / "course_utils"
    package.mkdir()
    (package / "world.py").write_text("1", encoding="utf-8")
    (tmp_path / "data_cards").mkdir()
    card = tmp_path / "data_cards" / "prm.md"
    card.write_text("1", encoding="utf-8")
    notebook = notebooks.from_text(FIRST)
    keys = [running.run_key(notebook, package, "cpu")]
    assert keys == [running.run_key(notebook, package, "cpu")]
    (package / "world.py").write_text("2", encoding="utf-8")
    keys.append(running.run_key(notebook, package, "cpu"))
    card.write_text("2", encoding="utf-8")
    keys.append(running.run_key(notebook, package, "cpu"))
    monkeypatch.setenv("COURSE_DATA", "elsewhere")
    keys.append(running.run_key(notebook, package, "cpu"))
    keys.append(running.run_key(notebook, package, "t4"))
    keys.append(running.run_key(notebooks.from_text(SECOND), package, "t4"))
    assert len(set(keys)) == 6


def test_an_unknown_name_is_refused_with_those_there_are(built):
    with pytest.raises(SystemExit, match="'07'.*00_first, 01_second"):
        running.run_course(built, ["07"])


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
        if "ruff" in command:
            return subprocess.CompletedProcess(command, 0)
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


# --- how pages look -----------------------------------------------------------------


def test_a_page_leads_to_its_neighbours_and_sections(built, kernel):
    running.run_course(built)
    first = (built / "build" / "html" / "00_first.html").read_text(encoding="utf-8")
    second = (built / "build" / "html" / "01_second.html").read_text(encoding="utf-8")
    assert first.count('rel="next" href="01_second.html"') == 2
    assert 'rel="prev"' not in first and 'rel="next"' not in second
    assert second.count('rel="prev" href="00_first.html"') == 2
    assert first.count('href="index.html"') == 2


def test_a_fold_holds_its_text(tmp_path):
    text = (
        "<details>\n<summary>Open me</summary>\n\nThe *answer*.\n\n</details>\n\nAfter."
    )
    cells = notebooks.nbformat.v4.new_markdown_cell(text)
    notebook = notebooks.nbformat.v4.new_notebook(cells=[cells])
    pages.write_page(notebook, tmp_path / "a.html", tmp_path)
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    fold = re.search("<details><summary>Open me</summary>(.*?)</details>", html, re.S)
    assert "<em>answer</em>" in fold[1] and "After" not in fold[1]


def test_a_page_folds_what_a_prediction_asks_for(tmp_path):
    notebook = notebooks.from_text("# %% [markdown]\n# **Predict.** What?\n\n# %%\n1\n")
    output = notebooks.nbformat.v4.new_output("stream", text="the answer")
    notebook.cells[1].outputs = [output]
    pages.write_page(notebook, tmp_path / "a.html", tmp_path)
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    fold = re.search('<details class="course-answer">(.*?)</details>', html, re.S)
    assert "the answer" in fold[1] and html.count("the answer") == 1


def test_contents_are_the_sections():
    text = '<h2 id="A-b">A <em>b</em><a class="anchor-link" href="#A-b">¶</a></h2>'
    assert '<a href="#A-b">A <em>b</em></a>' in pages._contents(text)


def luminance(colour):
    """Relative luminance of #rrggbb. Source: WCAG 2.2, relative luminance."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("style", _STYLE.values())
def test_tokens_can_be_read_in_every_theme(style):
    """Text and background are both set, so no theme's own colour comes between."""
    text, background = re.fullmatch(
        r"color:(#\w{6});background:(#\w{6});.*", style
    ).groups()
    lights = sorted((luminance(text), luminance(background)))
    contrast = (lights[1] + 0.05) / (lights[0] + 0.05)
    assert contrast >= 7  # WCAG's AAA


# --- several notebooks at a time ----------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_notebooks_run_side_by_side_and_stay_in_order(built, kernel, capsys, jobs):
    assert running.run_course(built, jobs=jobs) == 0
    said = capsys.readouterr().out
    assert f"{jobs} at a time (as asked)" in said
    assert said.index("build/html/00_first") < said.index("build/html/01_second")


def test_an_error_ends_the_other_notebooks(built, monkeypatch):
    def execute(notebook, folder, profile, progress=None, stop=None, settings=None):
        if notebooks.heading(notebook).startswith("00"):
            raise ZeroDivisionError("a fault of the course's own")
        assert stop.wait(30), "nobody stopped it"
        raise KeyboardInterrupt

    monkeypatch.setattr(execution, "execute", execute)
    with pytest.raises(ZeroDivisionError):
        running.run_course(built, jobs=2)


@pytest.mark.parametrize(
    ("profile", "threads", "free_gib", "jobs", "why"),
    [
        ("l4", "8", 64, 1, "share one GPU"),
        ("cpu", "8", 64, 8, "OMP_NUM_THREADS says so"),
        ("cpu", "8", 10, 3, "memory has room for no more"),
        ("cpu", "8", 1, 1, "memory has room for no more"),
    ],
)
def test_the_jobs_follow_profile_cores_and_memory(
    monkeypatch, profile, threads, free_gib, jobs, why
):
    monkeypatch.setenv("COURSE_PROFILE", profile)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    memory = types.SimpleNamespace(available=free_gib * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    found, reason = running.default_jobs()
    assert found == jobs and why in reason
