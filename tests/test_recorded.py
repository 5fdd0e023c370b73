"""Records say where a result comes from."""

import datetime
import platform
import time

import pytest

from course_utils import recorded
from course_utils.setup import places

NAMES = sorted(path.stem for path in (places.PACKAGE / "recorded").glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_record_says_what_made_it(name):
    record = recorded.load(name)
    several = record.get("merges") or record.get("sets") or {"": record}
    for run in several.values():
        assert run["command"].startswith(("python -m course_utils.", "python tests/"))
        assert run["machine"] and run["minutes"] > 0
        assert datetime.date.fromisoformat(run["date"]).year >= 2026
        assert {"python", "torch", "transformers", "trl"} <= set(run["versions"])


def test_there_are_records():
    assert "lab_findings" in NAMES


def test_an_unknown_record_lists_the_known_ones():
    with pytest.raises(FileNotFoundError, match=r"No record 'x'.*lab_findings"):
        recorded.load("x")


def test_a_run_describes_itself():
    head = recorded.describe_run("python -m x", time.perf_counter() - 90)
    assert head["command"] == "python -m x"
    assert 1.5 <= head["minutes"] < 3  # a busy machine needs a while for the versions
    assert head["date"] == datetime.date.today().isoformat()
    assert "cores" in head["machine"]
    assert head["versions"]["python"] == platform.python_version()


def test_versions_leave_out_what_is_not_installed():
    found = recorded.versions(("torch", "no-such-library"))
    assert set(found) == {"python", "torch"}


def test_a_caption_names_date_machine_and_command():
    record = {
        "date": "2026-11-22",
        "machine": "a laptop, 2 cores",
        "minutes": 1.5,
        "versions": {"torch": "2.13.0"},
        "command": "python -m x",
    }
    assert recorded.caption(record) == (
        "recorded 2026-11-22 on a laptop, 2 cores, 1.5 min, torch 2.13.0, "
        "by `python -m x`"
    )
    added = recorded.caption(record | {"command": "python -m x --add"})
    assert added.endswith("by `python -m x --add` (the last of several calls)")
