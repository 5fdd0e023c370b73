"""A learner's answers stay: in pulls, in rebuilds, and when the course changes."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from course_utils.course import commands, notebooks, working_copies


def notebook(code):
    return new_notebook(
        cells=[new_markdown_cell("# 00 · A title"), new_code_cell(code)]
    )


@pytest.fixture
def root(tmp_path):
    for name in ("00_first", "01_second"):
        notebooks.write(
            notebook("answer = ..."), tmp_path / "notebooks" / f"{name}.ipynb"
        )
    return tmp_path


def answer(path):
    notebooks.write(notebook("answer = 42"), path)
    return path.read_bytes()


def test_copies_are_made_once(root):
    assert len(working_copies.prepare(root)) == 2
    copy = root / "work" / "00_first.ipynb"
    assert copy.read_bytes() == (root / "notebooks" / "00_first.ipynb").read_bytes()
    mine = answer(copy)
    assert working_copies.prepare(root) == []
    assert copy.read_bytes() == mine


@pytest.mark.promise("the course changes after an answer", "your copy stays as it is")
def test_a_new_version_is_put_beside_answers(root):
    working_copies.prepare(root)
    mine = answer(root / "work" / "00_first.ipynb")
    source = root / "notebooks" / "00_first.ipynb"
    notebooks.write(notebook("a newer version"), source)
    (said,) = working_copies.prepare(root)
    assert "your copy stays as it is" in said
    assert (root / "work" / "00_first.ipynb").read_bytes() == mine
    new = root / "work" / "00_first.new.ipynb"
    assert new.read_bytes() == source.read_bytes()
    assert working_copies.prepare(root) == []  # said once


def test_a_copy_without_answers_follows_the_course(root):
    working_copies.prepare(root)
    source = root / "notebooks" / "01_second.ipynb"
    notebooks.write(notebook("a newer version"), source)
    (said,) = working_copies.prepare(root)
    assert "is of the new version" in said
    assert (root / "work" / "01_second.ipynb").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("record", [None, "", "{", "[]"])
def test_without_a_record_every_copy_counts_as_answered(root, record):
    working_copies.prepare(root)
    file = root / "work" / working_copies.ORIGINS
    file.unlink() if record is None else file.write_text(record, encoding="utf-8")
    mine = answer(root / "work" / "00_first.ipynb")
    working_copies.prepare(root)
    assert (root / "work" / "00_first.ipynb").read_bytes() == mine


def test_fresh_keeps_every_old_copy(root):
    working_copies.prepare(root)
    first = answer(root / "work" / "00_first.ipynb")
    working_copies.prepare(root, ["00"], fresh=True)
    working_copies.prepare(root, ["00"], fresh=True)
    assert (root / "work" / "00_first.old-1.ipynb").read_bytes() == first
    assert (root / "work" / "00_first.old-2.ipynb").exists()
    assert not list((root / "work").glob("01_second.old*"))


def test_the_lab_command_copies_and_names_what_there_is(root, monkeypatch, capsys):
    assert commands.open_lab(root, ["01"], copy_only=True) == 0
    assert [path.name for path in (root / "work").glob("*.ipynb")] == [
        "01_second.ipynb"
    ]
    with pytest.raises(SystemExit, match="No notebook begins with '9'"):
        commands.open_lab(root, ["9"], copy_only=True)


@pytest.mark.promise("answers in a tracked notebook, then a rebuild", "they are kept")
@pytest.mark.parametrize("content", ["answer", "half a file"])
def test_a_rebuild_keeps_what_somebody_wrote_into_a_tracked_notebook(root, content):
    path = root / "notebooks" / "00_first.ipynb"
    built = notebook("answer = ...")
    built.metadata.course = {"code_sha256": notebooks.code_sha256(built)}
    notebooks.write(built, path)
    assert working_copies.keep_answers(root, path) is None
    if content == "answer":
        built.cells[1].source = "answer = 42"
        notebooks.write(built, path)
    else:
        path.write_text('{"cells": [', encoding="utf-8")
    mine = path.read_bytes()
    kept = working_copies.keep_answers(root, path)
    assert kept.parent == root / "work" and kept.read_bytes() == mine


def test_a_late_joiner_gets_copies_and_what_was_found(root):
    first = root / "notebooks" / "00_first.ipynb"
    ran = notebooks.read(first)
    said = {"output_type": "stream", "name": "stdout", "text": "Finding: 42 pairs\n"}
    ran.cells[1].outputs = [nbformat.from_dict(said)]
    notebooks.write(ran, first)
    lines = working_copies.catch_up(root, "01")
    assert lines[0] == "00 · A title Found: 42 pairs"
    assert lines[1] == "01_second: copied to work/01_second.ipynb"
    assert not (root / "work" / "00_first.ipynb").exists()
    assert "01 starts on its own" in lines[2]


def test_the_command_for_late_joiners_checks_the_machine_first(root, capsys):
    assert commands.catch_up(root, "01") == 0
    said = capsys.readouterr().out
    assert said.index("profile") < said.index("01_second: copied to work")
    assert (root / "work" / "01_second.ipynb").exists()


def test_a_late_joiner_names_a_notebook_that_is_there():
    with pytest.raises(SystemExit, match="No notebook begins with '77'"):
        commands.main(["catch-up", "77"])
