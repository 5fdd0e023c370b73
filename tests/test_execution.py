"""A notebook runs in a clean kernel of this very Python, and its run is measured."""

import importlib.metadata
import sys

import pytest

from course_utils.course import execution, notebooks
from course_utils.setup import threads


def from_cells(*sources):
    return notebooks.from_text("\n\n".join(f"# %%\n{source}" for source in sources))


def printed(notebook, number):
    return "".join(output.text for output in notebook.cells[number - 1].outputs)


def test_a_run_is_measured_and_leaves_no_trace_of_the_machine(tmp_path):
    notebook = from_cells(
        "import os, sys, time\nprint(sys.executable)",
        "print(os.getcwd(), os.environ['COURSE_PROFILE'], os.environ['TQDM_DISABLE'])",
        "block = bytearray(300 * 2**20); block[::4096] = block[::4096]; del block",
        "time.sleep(0.6)",
    )
    seen = []
    record = execution.execute(
        notebook, tmp_path, "cpu", lambda *progress: seen.append(progress)
    )
    assert printed(notebook, 1).strip() == sys.executable
    assert printed(notebook, 2).split() == [str(tmp_path), "cpu", "1"]
    assert record["profile"] == "cpu"
    assert record["versions"]["trl"] == importlib.metadata.version("trl")
    assert record["seconds"] > 0.6
    assert record["cores"] == threads.usable_cores()
    # The block was gone before the run ended: the peak is seen, not the end.
    assert 0.29 < record["peak_memory_gib"] < 2
    assert seen[-1][1] == 4
    assert 3 in {done for done, total in seen}
    assert notebook.metadata.language_info == {"name": "python"}
    assert not any("execution" in cell.metadata for cell in notebook.cells)
    assert "widgets" not in notebook.metadata


def test_a_broken_cell_is_named_and_the_outputs_before_it_kept(tmp_path):
    notebook = from_cells("print('fine')", "1 / 0", "print('never')")
    with pytest.raises(
        execution.NotebookBrokeError, match=r"cell 2: ZeroDivisionError: division"
    ):
        execution.execute(notebook, tmp_path, "cpu")
    assert printed(notebook, 1) == "fine\n"
    assert notebook.cells[2].outputs == []


def test_a_dead_kernel_is_told_apart_from_a_broken_cell(tmp_path):
    notebook = from_cells("1", "import os\nos._exit(1)")
    with pytest.raises(
        execution.NotebookBrokeError, match=r"kernel died after 1 of 2 code cells"
    ):
        execution.execute(notebook, tmp_path, "cpu")
