"""The runner of the notebooks on a GPU, rehearsed without one; and its record."""

import contextlib
import json
from pathlib import Path

import notebook_meter
import psutil
import pytest
import run_notebooks

from course_utils.course import notebooks, pages
from course_utils.models import random_weights
from course_utils.recorded import on_gpu
from course_utils.setup import places

HEADING = (
    "# %% [markdown]\n# # 01 · Does it run?\n#\n# {{badge}} {{recorded}}\n\n# %%\n"
)


@pytest.fixture
def base(tmp_path):
    """What the runner looks at of a twin, for notebooks that load none."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"random_weights": "shape tiny: drawn"}', encoding="utf-8"
    )
    return folder


@pytest.fixture
def course_of(tmp_path, monkeypatch):
    """Makes the runner find these notebooks: a function of {name: code}."""

    def make(texts):
        source = tmp_path / "course" / "notebooks" / "src"
        source.mkdir(parents=True)
        for name, code in texts.items():
            (source / f"{name}.py").write_text(HEADING + code + "\n", encoding="utf-8")
        monkeypatch.setattr(
            notebooks, "text_files", lambda root: sorted(source.iterdir())
        )

    return make


def rehearse(base, out, *more):
    arguments = [str(base), "--rehearse", "--out", str(out), "--profiles", "l4", *more]
    status = run_notebooks.main(arguments)
    return status, json.loads(out.read_text(encoding="utf-8"))


def test_a_real_notebook_runs_on_a_twin(tmp_path):
    base, keep = tmp_path / "twin", tmp_path / "keep"
    random_weights.write(base, "tiny")
    status, record = rehearse(
        base, tmp_path / "r.json", "--only", "00", "--pairs", "8", "--keep", str(keep)
    )
    assert status == 0 and record["rehearsal"] and record["pairs"] == 8
    assert "random" not in record["command"] and "TWIN" in record["command"]
    assert record["twin"].startswith("shape tiny")
    [run] = record["runs"]
    assert run["ok"] and run["notebook"] == "00_start_here" and run["profile"] == "l4"
    assert run["minutes"] > 0 and run["host_gib"] > 0.3
    executed = notebooks.read(keep / "l4-00_start_here.ipynb")
    said = json.dumps(executed.cells[2].outputs)
    assert "profile l4" in said and "RANDOM" in said and "8 pairs at most" in said
    assert str(base) not in said


def test_what_broke_is_recorded_and_the_others_run(base, tmp_path, course_of, capsys):
    course_of(
        {
            "01_good": "print('Finding: it runs')",
            "02_broken": "x = 1\n\n# %%\nraise OSError('the disk is full')",
            "03_dies": "import os\nos._exit(3)",
        }
    )
    status, record = rehearse(base, tmp_path / "r.json", "--jobs", "2")
    assert status == 1
    good, broken, dead = record["runs"]
    assert good["ok"] and good["peak_gib"] is None  # no GPU, no figure
    assert not broken["ok"] and broken["cell"] == 3
    assert broken["error"] == "OSError: the disk is full"
    assert not dead["ok"] and "kernel died" in dead["error"]
    printed = capsys.readouterr().out
    assert "raise OSError('the disk is full')" in printed and "Finding" not in printed
    assert "it runs" in printed and "1 of 3 ran" in printed


def test_a_notebook_that_hangs_is_stopped_and_said_where(base, tmp_path, course_of):
    pid = tmp_path / "pid"
    hang = f"import os, time\nprint(os.getpid(), file=open({str(pid)!r}, 'w'))\n"
    hang += "time.sleep(300)"
    course_of({"01_hangs": f"x = 1\n\n# %%\n{hang}", "02_waits": "x = 2"})
    options = ("--limit", "0.2", "--jobs", "1")
    status, record = rehearse(base, tmp_path / "r.json", *options)
    hung, waited = record["runs"]
    assert status == 1 and not waited["ok"]
    assert "stopped after 0.2 minutes, after 2 of 4 code cells" in hung["error"]
    assert "not begun" in waited["error"]
    with contextlib.suppress(psutil.NoSuchProcess):  # the kernel went with it
        assert (
            psutil.Process(int(pid.read_text(encoding="utf-8"))).status()
            == psutil.STATUS_ZOMBIE
        )


def test_a_second_run_can_mend_the_record(base, tmp_path, course_of):
    out, kept = tmp_path / "r.json", {"notebook": "02_two", "profile": "l4", "ok": True}
    broken = {"notebook": "01_one", "profile": "l4", "ok": False}
    out.write_text(json.dumps({"runs": [broken, kept]}), encoding="utf-8")
    course_of({"01_one": "print(1)", "02_two": "print(2)"})
    status, record = rehearse(base, out, "--add", "--only", "01")
    assert status == 0 and record["runs"][0]["ok"] and record["runs"][1] == kept
    assert record["command"].endswith("--add --only 01")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rehearse"], "needs --out"),
        (["--rehearse", "--out", "r.json", "--only", "99"], "begins with '99'"),
    ],
)
def test_wrong_arguments_say_what_to_do(base, arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_notebooks.main([str(base), *arguments])
    assert words in capsys.readouterr().err + str(stopped.value)


def test_a_folder_that_is_no_twin_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_notebooks.main([str(tmp_path), "--rehearse", "--out", "r.json"])
    assert "course_utils.models.random_weights" in capsys.readouterr().err


def test_a_kernel_that_reports_no_peaks_is_an_error():
    assert notebook_meter.peaks_in('a\nPEAKS {"peak_gib": 2.5}\n') == {"peak_gib": 2.5}
    with pytest.raises(ValueError, match="did not report"):
        notebook_meter.peaks_in("nothing")


# Newer than the record: the README's table shows a dash for it.
NOT_REHEARSED = {"08_the_recipe"}


def test_the_record_holds_every_notebook_in_both_profiles():
    record = on_gpu.load()
    if record is None:
        pytest.skip(on_gpu.MISSING)
    names = {path.stem for path in notebooks.text_files(places.checkout())}
    names -= NOT_REHEARSED
    runs = {(run["notebook"], run["profile"]): run for run in record["runs"]}
    assert sorted(runs) == sorted((n, p) for n in names for p in ("l4", "a100"))
    for (_, profile), run in runs.items():
        if not run["ok"]:  # not proven, and the table says so; but nothing broke
            assert run["error"].startswith("stopped after"), run
            continue
        assert run["peak_gib"] <= run["reserved_gib"] <= record["caps_gib"][profile]
    assert not record["rehearsal"] and "llama3-8b" in record["twin"]
    assert "CPU" not in record["machine"]


def made_up(**changes):
    run = {
        "notebook": "03_x",
        "profile": "l4",
        "ok": True,
        "minutes": 1.26,
        "peak_gib": 17.31,
    }
    return {
        "command": "python tests/x",
        "machine": "NVIDIA H200, 16 cores",
        "date": "2026-11-22",
        "minutes": 7.0,
        "versions": {"torch": "2.11.0"},
        "twin": "shape llama3-8b",
        "pairs": 16,
        "jobs": 6,
        "caps_gib": {"l4": 22.0, "a100": 39.4},
        "runs": [run, {**run, "profile": "a100", **changes}],
    }


def test_the_table_and_the_line_say_what_the_record_says():
    cut_off = made_up(ok=False, error="stopped after 6 minutes, after 2 of 3 cells")
    assert on_gpu.table(cut_off)[0]["a100: min"] == "cut off"
    record = made_up(ok=False, error="OSError: the disk is full")
    [row] = on_gpu.table(record)
    assert row == {
        "notebook": "03",
        "l4: min": "1.3",
        "l4: GiB": "17.3",
        "a100: min": "broke",
        "a100: GiB": "–",
    }
    line = on_gpu.clause("03_x", record)
    assert "`l4` 1.3 min and 17.3 GiB" in line and "a100" not in line
    assert "random weights" in line and "NVIDIA H200 (2026-11-22)" in line
    caption = on_gpu.caption(record)
    assert "16 pairs" in caption and "l4 22 GiB" in caption
    assert "several calls" not in caption
    added = on_gpu.caption(record | {"command": record["command"] + " --add"})
    assert "--add` (the last of several calls). Base" in added


def test_the_readme_s_map_shows_the_gpu_once_it_is_recorded(monkeypatch):
    paths = notebooks.notebook_files(places.checkout())
    monkeypatch.setattr(on_gpu, "load", lambda: None)
    plain = pages.readme_map(paths)
    assert "GiB |  |" not in plain and "l4" not in plain
    monkeypatch.setattr(on_gpu, "load", made_up)
    rows = pages.readme_map(paths).splitlines()
    assert "| l4: min | l4: GiB | a100: min | a100: GiB |" in rows[0]
    assert len({row.count("|") for row in rows[:10]}) == 1
    assert "| 1.3 | 17.3 | 1.3 | 17.3 |" in rows[5] and "random weights" in rows[-1]


def test_without_a_record_nothing_breaks_and_it_is_said_how_to_make_one():
    assert on_gpu.table(None) == [] and on_gpu.clause("03_x", None) == ""
    assert "run_notebooks.py" in on_gpu.caption(None)
    assert Path(run_notebooks.__file__).name in on_gpu.MISSING
