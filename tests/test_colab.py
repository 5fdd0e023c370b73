"""What Colab does first: the set-up cell as committed, and outputs on Drive."""

import sys
import types

import pytest

from course_utils.course import notebooks
from course_utils.setup import places

ROOT = places.checkout()


@pytest.fixture
def machine(tmp_path):
    here, drive = tmp_path / "content", tmp_path / "drive" / "MyDrive"
    here.mkdir()
    drive.mkdir(parents=True)
    return here, drive


def test_outputs_are_kept_on_drive_and_found_again(machine):
    here, drive = machine
    assert "kept on Drive" in places.keep_outputs_on_drive(here, drive)
    (here / "outputs" / "04").mkdir()
    (here / "outputs" / "04" / "adapter.txt").write_text("trained", encoding="utf-8")
    # The next day the machine is another one, and the Drive the same.
    tomorrow = here.parent / "tomorrow"
    tomorrow.mkdir()
    places.keep_outputs_on_drive(tomorrow, drive)
    found = tomorrow / "outputs" / "04" / "adapter.txt"
    assert found.read_text(encoding="utf-8") == "trained"
    assert "kept on Drive" in places.keep_outputs_on_drive(tomorrow, drive)  # again


def test_outputs_from_before_the_mount_stay(machine):
    here, drive = machine
    (here / "outputs").mkdir()
    (here / "outputs" / "mine.txt").write_text("x", encoding="utf-8")
    assert "stay on this machine" in places.keep_outputs_on_drive(here, drive)
    assert (here / "outputs" / "mine.txt").exists()
    assert not (drive / "orpo-course").exists()


def test_without_a_drive_nothing_is_made(machine):
    here, drive = machine
    assert places.keep_outputs_on_drive(here, drive / "not mounted") == ""
    assert not (here / "outputs").exists()


def test_a_link_to_a_drive_that_went_is_renewed(machine):
    here, drive = machine
    (here / "outputs").symlink_to(here / "gone", target_is_directory=True)
    assert "kept on Drive" in places.keep_outputs_on_drive(here, drive)
    assert (here / "outputs").is_dir()


@pytest.mark.parametrize("name", ["00", "01", "04"])
def test_the_set_up_cell_installs_the_named_revision_or_stops(name, monkeypatch):
    (path,) = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    (cell,) = [
        cell
        for cell in notebooks.read(path).cells
        if "colab" in cell.metadata.get("tags", [])
    ]
    lines = []
    code = cell.source.replace('%pip install -q "$SOURCE"', "pip(SOURCE)")
    assert code != cell.source
    exec(code, {"pip": lines.append})
    assert lines == []  # not on Colab: nothing is installed
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    exec(code, {"pip": lines.append})
    source = f"git+{places.repository()}@{places.revision()}"
    assert lines == [f"orpo-course[course] @ {source}"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Not installed: orpo-course"):
        exec(code, {"pip": lines.append})
