"""The number of threads follows the free cores, and waiting threads sleep."""

import subprocess
import sys

import bench_threads
import pytest

from course_utils.setup import threads


@pytest.mark.parametrize(
    ("cores", "busy", "expected"),
    [
        (2, 0, 2),
        (2, 20, 2),
        (2, 50, 1),
        (2, 100, 1),
        (8, 30, 6),
        (8, 100, 1),
        (1, 0, 1),
    ],
)
def test_busy_cores_are_left_to_others(cores, busy, expected):
    chosen = threads.choose_threads({}, cores, busy)
    assert chosen.number == expected
    assert f"of {cores} cores are busy" in chosen.reason


@pytest.mark.parametrize("value", ["3", " 3 ", "3,1"])
def test_the_variable_decides(value):
    chosen = threads.choose_threads({"OMP_NUM_THREADS": value}, 2, 100)
    assert chosen == (3, "OMP_NUM_THREADS says so")


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_senseless_variable_is_refused(value):
    with pytest.raises(ValueError, match="OMP_NUM_THREADS is .*whole number"):
        threads.choose_threads({"OMP_NUM_THREADS": value})


def test_a_fresh_kernel_gets_threads_and_sleeping_waits():
    code = (
        "import os\n"
        "from course_utils.setup import start\n"
        "start.begin(offline=True)\n"
        "import torch\n"
        "print(torch.get_num_threads(), os.environ['OMP_WAIT_POLICY'])\n"
    )
    unset = {"OMP_WAIT_POLICY", "KMP_BLOCKTIME"}
    environment = {k: v for k, v in bench_threads.os.environ.items() if k not in unset}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_NUM_THREADS": "1", "COURSE_PROFILE": "cpu"},
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.stdout.split() == ["1", "PASSIVE"]


def test_where_torch_is_imported_already_the_reason_says_what_is_lost():
    assert "torch" in sys.modules  # the tests' conftest or a plugin imported it
    environ = {"OMP_NUM_THREADS": str(sys.modules["torch"].get_num_threads())}
    assert "still spin" in threads.use_free_cores(environ).reason
    environ["OMP_WAIT_POLICY"] = "PASSIVE"
    assert "still spin" not in threads.use_free_cores(environ).reason


def test_the_benchmark_runs(capsys):
    few = ["--seconds", "0.1", "--rounds", "1", "--neighbours", "0"]
    record = bench_threads.main(few)
    assert {run["setting"] for run in record["runs"]} == set(bench_threads.SETTINGS)
    assert all(run["steps_per_second"] > 0 for run in record["runs"])
