"""Everything but the comparisons works where TRL has no ORPO."""

import os
import subprocess
import sys
from pathlib import Path

from course_utils.setup import places

HELPERS = Path(__file__).parent / "helpers"
SITE = HELPERS / "without_trl_orpo_site"
STEP = """
import importlib, pkgutil, subprocess, sys
import course_utils
try:
    import trl.experimental.orpo
except ModuleNotFoundError as error:
    assert error.name == "trl.experimental.orpo"
else:
    raise AssertionError("it is there")
child = "import trl.experimental.orpo"
assert subprocess.run([sys.executable, "-c", child], capture_output=True).returncode
for module in pkgutil.walk_packages(course_utils.__path__, "course_utils."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print("all imported")
"""


def run(code, **variables):
    environ = {**os.environ, **variables}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environ,
        cwd=places.checkout(),
    )


def test_every_module_imports_without_it():
    path = os.pathsep.join([str(SITE), str(HELPERS), str(places.checkout())])
    done = run(STEP, PYTHONPATH=path)
    assert done.stdout.splitlines()[-1:] == ["all imported"], done.stderr[-2000:]


def test_the_comparisons_are_skipped_with_a_reason():
    path = os.pathsep.join([str(HELPERS), str(places.checkout())])
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "without_trl_orpo"]
    command += ["-p", "no:cacheprovider", "tests/test_orpo.py", "-k", "trl or naive"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": path},
        cwd=places.checkout(),
    )
    assert done.returncode == 0, done.stdout
    assert "TRL's ORPO is not installed here" in done.stdout
    assert "1 passed" in done.stdout


def test_no_module_imports_it_at_its_top():
    """Also the `__main__` modules, which the test above does not import."""
    for path in places.PACKAGE.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            top = line.startswith(("from trl.experimental", "import trl.experimental"))
            assert not top, path
