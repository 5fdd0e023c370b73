"""The table of versions is the record's, and a run's output is read as it is."""

import pytest

from course_utils.course import versions
from course_utils.setup import places

ROOT = places.checkout()
ENTRY = {
    "date": "2026-11-27",
    "versions": dict.fromkeys(("python", *versions.SHOWN), "1.2"),
    "notebooks": {"00": "ran", "04": "cell 7: ImportError: gone"},
    "tests": {
        "passed": 5,
        "skipped": 1,
        "broke": {"test_drift::test_x": "gone"},
    },
}


def test_the_readme_shows_the_record():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == versions.updated(text), (
        "run `python -m course_utils.course versions`"
    )


def test_the_oldest_set_is_the_lower_bounds():
    assert [each.label for each in versions.SETS if each.resolution != "highest"] == [
        "oldest-3.11"
    ]
    for name in versions.TESTS:
        assert (ROOT / "tests" / f"test_{name}.py").is_file()


def test_a_set_that_broke_is_shown_as_broken():
    row = versions.table({"oldest-3.11": ENTRY}).splitlines()[-1]
    assert row.startswith("| oldest | 2026-11-27 | 1.2 |")
    assert row.endswith("| 04 broke | 5 passed, 1 failed |")


def test_what_building_prints_is_read():
    said = (
        "00_start_here: started\n00_start_here: done in 0.2 min\n"
        "01_sft: started\n01_sft: broke at cell 3: ImportError: gone\n"
    )
    found = versions._notebooks(said)
    assert found["00"] == "ran" and found["01"] == "cell 3: ImportError: gone"
    assert found["08"] != "ran"  # it never began


def test_pytest_s_report_is_counted(tmp_path):
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite tests="3" skipped="1">'
        '<testcase classname="tests.test_a" name="x"/>'
        '<testcase classname="tests.test_a" name="y">'
        '<failure message="a&#10;b"/></testcase>'
        '<testcase classname="tests.test_a" name="z"><skipped/></testcase>'
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    found = versions._tests(report)
    assert found == {"passed": 1, "skipped": 1, "broke": {"test_a::y": "a"}}


def test_an_unknown_set_lists_the_known_ones():
    with pytest.raises(SystemExit, match=r"No set newest-2\.7.*oldest-3\.11"):
        versions.run(ROOT, ["newest-2.7"])
