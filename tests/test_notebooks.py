"""The committed notebooks are clean, and each rule for them fires on a bad one."""

import base64
import re
from copy import deepcopy
from itertools import pairwise

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_output

from course_utils.course import notebook_lint, notebooks
from course_utils.setup import places

ROOT = places.checkout()
COMMITTED = notebooks.notebook_files(ROOT)
RECORD = {
    "profile": "cpu",
    "python": "3.11.7",
    "versions": {"torch": "2.13.0"},
    "seconds": 126.0,
    "peak_memory_gib": 1.44,
    "cores": 2,
    "executed_on": "2026-11-22",
}
TEXT = """\
# %% [markdown]
# # 01 · What does a tiny notebook need?
#
# {{badge}}
#
# It took {{recorded}}.

# %% tags=["colab"]
import sys

if "google.colab" in sys.modules:
    # %pip install -q "orpo-course[course] @ {{source}}"

# %%
import math

beta = 0.1

# %% [markdown]
# The odds of one half are one.

# %%
print(f"Finding: {math.log(2):.3f} nats")

# %% [markdown]
# *Figure: Nothing to see.*
"""


# --- the committed notebooks --------------------------------------------------------


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebook_is_clean(path):
    assert notebook_lint.problems(path) == []


def test_every_text_has_its_notebook_and_is_its_text():
    texts = {path.stem: path for path in notebooks.text_files(ROOT)}
    assert sorted(texts) == [path.stem for path in COMMITTED]
    for path in COMMITTED:
        text = texts[path.stem].read_text(encoding="utf-8")
        made = notebooks.to_text(notebooks.read(path))
        assert made == text, f"{path.name} is not made from its text: `make notebooks`"


# --- text and notebook --------------------------------------------------------------


@pytest.fixture
def template():
    return notebooks.from_text(TEXT)


@pytest.fixture
def tiny(template):
    """A clean notebook, as `make notebooks` would leave it."""
    executed = deepcopy(template)
    executed.cells[4].outputs = [
        new_output("stream", name="stdout", text="Finding: 0.693 nats\n")
    ]
    return notebooks.finished(template, "01_tiny", executed, dict(RECORD))


def test_text_survives_the_way_there_and_back(template, tiny):
    assert notebooks.to_text(template) == TEXT
    assert notebooks.to_text(tiny) == TEXT


def test_install_cell_is_a_magic_with_its_tag(tiny):
    install = tiny.cells[1]
    assert install.metadata.tags == ["colab"]
    line = install.source.splitlines()[-1]
    source = f"git+{places.repository()}@{places.revision()}"
    assert line == f'    %pip install -q "orpo-course[course] @ {source}"'


def test_an_inserted_cell_leaves_the_other_ids_alone(template):
    cell = "# %%\nimport math"
    longer = notebooks.from_text(TEXT.replace(cell, f"# %%\n1\n\n{cell}"))
    ids = [cell.id for cell in longer.cells]
    assert ids[:2] + ids[3:] == [cell.id for cell in template.cells]


def test_what_a_prediction_asks_for_is_not_in_sight():
    text = """\
# %%
"seen"

# %% [markdown]
# **Predict.** What comes?

# %%
"hidden"

# %% [markdown]
# A word on the way.

# %%
"hidden as well"

# %% [markdown]
# <details>
# That came.
# </details>

# %%
"seen again"
"""
    made = notebooks.from_text(text)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    hidden = [cell.source for cell in code if cell.metadata.get("jupyter")]
    assert hidden == ['"hidden"', '"hidden as well"']
    assert notebooks.to_text(made) == text


def test_every_prediction_is_followed_by_a_hidden_output():
    for path in notebooks.text_files(ROOT):
        cells = notebooks.from_text(path.read_text(encoding="utf-8")).cells
        for cell, after in pairwise(cells):
            if notebooks.PREDICT in cell.source:
                assert after.cell_type == "code", f"{path.name}: {cell.source[-80:]}"
                assert after.metadata.jupyter == {"outputs_hidden": True}


def test_no_text_gives_away_what_a_prediction_asks_for():
    """Between question and fold stand no caption, and no further question."""
    for path in notebooks.text_files(ROOT):
        cells = notebooks.from_text(path.read_text(encoding="utf-8")).cells
        said, open_question = "", ""
        for cell in (cell for cell in cells if cell.cell_type == "markdown"):
            before, *folds = cell.source.split(notebooks.FOLD, 1)
            if open_question:
                said += before
                assert "*Figure:" not in said, f"{path.name}: {open_question}"
                assert notebooks.PREDICT not in before, f"{path.name}: {open_question}"
                if not folds:
                    continue
            said, question = "", cell.source.partition(notebooks.PREDICT)[2]
            open_question = question.strip()[:80]
        assert not open_question, f"{path.name}: no fold answers {open_question!r}"


def test_folds_are_set_apart_so_that_markdown_in_and_behind_them_is_read():
    for path in notebooks.text_files(ROOT):
        for cell in notebooks.from_text(path.read_text(encoding="utf-8")).cells:
            if cell.cell_type == "markdown":
                for line, after in pairwise([*cell.source.splitlines(), ""]):
                    if line.endswith(("</summary>", "</details>")):
                        assert not after, f"{path.name}: {line} {after}"


def test_the_first_notebook_shows_the_minutes_of_the_others():
    first, *others = notebooks.notebook_files(ROOT)
    shown = "".join(
        output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
        for cell in notebooks.read(first).cells
        for output in cell.get("outputs", [])
    )
    for path in others:
        minutes = notebooks.run_record(notebooks.read(path))["seconds"] / 60
        assert re.search(rf"{path.stem} +{minutes:.1f} ", shown), (
            f"{path.stem} took {minutes:.1f} minutes: run `make notebooks NAMES=00`"
        )


def test_equal_cells_get_different_ids():
    twice = notebooks.from_text("# %%\n1\n\n# %%\n1\n")
    assert len({cell.id for cell in twice.cells}) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('# %% jupyter={"outputs_hidden": true}\n1\n', "tags only"),
        ("# %% [raw]\n# 1\n", "markdown and code"),
    ],
)
def test_what_the_text_cannot_keep_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        notebooks.from_text(text)


def test_recorded_sentence_names_profile_cores_and_date(tiny):
    assert (
        "It took 2.1 minutes and 1.4 GiB peak memory on the `cpu` profile "
        "(2 cores, recorded 2026-11-22)."
    ) in tiny.cells[0].source


def test_code_hash_sees_code_and_not_the_repository(template, tiny, monkeypatch):
    before = tiny.metadata.course.code_sha256
    monkeypatch.setattr(places, "repository", lambda: "https://github.com/else/where")
    moved = notebooks.filled(template, notebooks.fills("01_tiny", RECORD))
    assert "else/where" in moved.cells[1].source
    assert notebooks.code_sha256(moved) == before
    moved.cells[2].source += "\n1"
    assert notebooks.code_sha256(moved) != before


def test_badge_needs_a_repository_that_colab_can_open(monkeypatch):
    monkeypatch.setattr(places, "repository", lambda: "https://example.org/course")
    with pytest.raises(ValueError, match=r"pyproject.toml.*github\.com"):
        notebooks.colab_badge("01_tiny")


def test_outputs_are_not_carried_to_other_code(tiny):
    other = notebooks.from_text(TEXT.replace("0.1", "0.2"))
    with pytest.raises(ValueError, match="equal code"):
        notebooks.carry_outputs(tiny, other)
    assert not notebooks.is_current(tiny, other)
    assert notebooks.is_current(tiny, notebooks.from_text(TEXT))


def test_heading_and_finding_and_caption(tiny):
    assert notebooks.heading(tiny) == "01 · What does a tiny notebook need?"
    assert notebooks.finding(tiny) == "0.693 nats"
    assert notebooks.caption(tiny, 5) == "Nothing to see."
    assert notebooks.caption(tiny, 3) == ""
    assert notebooks.caption(tiny, 6) == ""


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    path = tmp_path / "01_broken.ipynb"
    path.write_text("not json", encoding="utf-8")
    with pytest.raises(ValueError, match="01_broken"):
        notebooks.read(path)


# --- every rule of hygiene fires ----------------------------------------------------


def png(size):
    """A display with `size` bytes in place of a PNG."""
    data = {"image/png": base64.b64encode(b"x" * size).decode()}
    return new_output("display_data", data=data)


def say(notebook, text, cell=4):
    notebook.cells[cell].outputs = [new_output("stream", name="stdout", text=text)]


def problems_of(notebook, tmp_path):
    path = tmp_path / "01_tiny.ipynb"
    notebooks.write(notebook, path)
    return notebook_lint.problems(path)


def record_again(notebook):
    """Make the hash fit, so that only the fault under test is left."""
    notebook.metadata.course.code_sha256 = notebooks.code_sha256(notebook)


def test_a_clean_notebook_has_no_problems(tiny, tmp_path):
    say(tiny, "see https://example.org/home/x, data/tmp/y.csv, 3/4 and C: 5\n")
    tiny.cells[2].source = "import math\n" * notebook_lint.MAX_SETUP_LINES
    tiny.cells[4].outputs.append(png(notebook_lint.MAX_PNG_BYTES))
    say(tiny, "revision " + "0123456789" * 4, cell=2)
    record_again(tiny)
    assert problems_of(tiny, tmp_path) == []


def never_executed(notebook):
    del notebook.metadata.course["code_sha256"]


def stale(notebook):
    notebook.cells[2].source += "\nbeta = 0.2"


def old_badge(notebook):
    notebook.metadata.course.fills.badge = "[![Open in Colab](elsewhere)](elsewhere)"


def error(notebook):
    notebook.cells[4].outputs = [
        new_output("error", ename="KeyError", evalue="'x'", traceback=["KeyError: 'x'"])
    ]


def widget_state(notebook):
    notebook.metadata.widgets = NotebookNode()


def widget(notebook):
    kind = "application/vnd.jupyter.widget-view+json"
    notebook.cells[4].outputs = [new_output("display_data", data={kind: {"a": 1}})]


def in_html(notebook):
    data = {"text/html": "<td>/home/someone/x.json</td>"}
    notebook.cells[4].outputs = [new_output("display_data", data=data)]


def token_in_source(notebook):
    notebook.cells[2].source = f'key = "{"hf_" + "a" * 34}"'
    record_again(notebook)


def placeholder(notebook):
    notebook.cells[3].source = "It took {{recorded}}."


def long_cell(notebook):
    notebook.cells[4].source = "x = 1\n" * (notebook_lint.MAX_CELL_LINES + 1)
    record_again(notebook)


def wide_cell(notebook):
    notebook.cells[4].source = "x" * (notebook_lint.MAX_WIDTH + 1)
    record_again(notebook)


def long_setup(notebook):
    notebook.cells[2].source = "x = 1\n" * (notebook_lint.MAX_SETUP_LINES + 1)
    record_again(notebook)


def big_png(notebook):
    notebook.cells[4].outputs = [png(notebook_lint.MAX_PNG_BYTES + 1)]


def no_caption(notebook):
    notebook.cells[2].outputs = [png(10)]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (never_executed, "never executed"),
        (stale, "code changed"),
        (old_badge, "not current"),
        (error, "ends in an error, KeyError"),
        (widget_state, "widget state"),
        (widget, "a widget"),
        (in_html, "absolute path in its output, /home/someone"),
        (token_in_source, "its source holds what looks like a token"),
        (placeholder, "{{recorded}} was not filled in"),
        (long_cell, "41 lines, more than 40"),
        (wide_cell, "89 characters wide"),
        (long_setup, "the setup has 16 lines"),
        (big_png, "a PNG of 60,001 bytes"),
        (no_caption, "a figure without words"),
        (lambda nb: say(nb, "x" * notebook_lint.MAX_FILE_BYTES), "the file has"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_every_fault_is_found_and_is_the_only_one(tiny, tmp_path, spoil, words):
    spoil(tiny)
    found = problems_of(tiny, tmp_path)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    "path",
    [
        "/home/x/a.py:3: UserWarning",
        "saved to /root/course",
        "'/work/main/x'",
        "(/tmp/ipykernel_12/1.py)",
        "C:\\Users\\x",
        "file:///usr/lib/python3",
        '"/opt/venv/x"',
        "path=/content/drive",
    ],
)
def test_absolute_paths_are_found(tiny, tmp_path, path):
    say(tiny, f"{path}\n")
    assert "absolute path" in "".join(problems_of(tiny, tmp_path))


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "aB3" * 12,
        "ghp_" + "aB3" * 12,
        "github_pat_" + "a1_" * 12,
        "0123456789" * 4,
        "wandb_v1_" + "aB3" * 12,
        "sk-" + "aB3" * 12,
    ],
)
def test_tokens_are_found_and_not_repeated(tiny, tmp_path, token):
    say(tiny, f"key={token}\n")
    (found,) = problems_of(tiny, tmp_path)
    assert "token" in found
    assert token not in found
