"""A notebook runs in a clean kernel of this very Python, and its run is measured."""

import importlib.metadata
import sys

import pytest
from transformers import TrainerState

from course_utils.course import execution, notebooks
from course_utils.setup import threads
from course_utils.training import progress


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


TRAINING = """
import time
from transformers import TrainerControl, TrainerState
from course_utils.training import progress
from IPython.display import DisplayHandle

progress.SECONDS, sent = 0.0, []
update = DisplayHandle.update
DisplayHandle.update = lambda *a, **k: (sent.append(a[1]), update(*a, **k))
line, state = progress.LiveLine(), TrainerState(max_steps=3)
line.on_train_begin(None, state, TrainerControl())
print("before")
for state.global_step in (1, 2, 3):
    line.on_step_end(None, state, TrainerControl())
line.on_train_end(None, state, TrainerControl())
print(len(sent), sent[0]["text/plain"], sent[-1])
"""


def test_a_training_shows_where_it_is_and_leaves_no_trace(tmp_path):
    notebook = from_cells(TRAINING)
    execution.execute(notebook, tmp_path, "cpu")
    outputs = notebook.cells[0].outputs
    assert {output.output_type for output in outputs} == {"stream"}  # no display
    (said,) = [output.text for output in outputs if output.name == "stdout"]
    assert said == "before\n3 step 2 of 3, 0 s left {}\n"


def test_a_training_outside_jupyter_shows_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    line, state = progress.LiveLine(), TrainerState(max_steps=2, global_step=1)
    line.on_train_begin(None, TrainerState(max_steps=2), None)
    line.on_step_end(None, state, None)
    line.on_train_end(None, state, None)
    assert capsys.readouterr() == ("", "")


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
