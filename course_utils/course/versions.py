"""Does the course run with the oldest and the newest libraries that it allows?

`run` makes a virtual environment per set, runs the notebooks and the core of the tests
in it, and records what came out; the README's table is made from that record.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from course_utils import recorded
from course_utils.course import bundle, notebooks

COMMAND = "python -m course_utils.course versions"
BEGIN = f"<!-- versions: made by `{COMMAND}` -->"
END = "<!-- end of versions -->"
RECORD = Path("course_utils", "recorded", "versions.json")
NOTEBOOKS = ("00", "01", "02", "03", "04", "05", "06", "08")
TESTS = (
    *("chat", "drift", "fast", "golden", "merging", "models", "orpo"),
    *("orpo_trainer", "packing", "preflight"),
)
PAIRS = 16  # a rehearsal: it is the calls that may break, not the figures
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
# What Colab's runtime of August 2026 brings; the set-up cell installs what it lacks.
COLAB = (
    *("torch==2.11.0", "transformers==5.15.0", "peft==0.20.0", "accelerate==1.14.0"),
    *("huggingface_hub==1.27.0", "tokenizers==0.22.2", "safetensors==0.8.0"),
    *("numpy==2.1.3", "pandas==2.2.3", "wandb==0.28.1"),
)


class Set(NamedTuple):
    """name: oldest, newest or colab. pins: versions that are there beforehand."""

    name: str
    python: str
    resolution: str = "highest"
    pins: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.name}-{self.python}"


SETS = (
    Set("oldest", "3.11", "lowest-direct"),
    *(Set("newest", python) for python in ("3.11", "3.12", "3.13")),
    Set("colab", "3.13", pins=COLAB),
)


def run(root: Path, names: Sequence[str] = (), pins: Sequence[str] = ()) -> None:
    """Test the sets, and record each as soon as it is done.

    names: labels such as newest-3.13; all by default. pins: more requirements, such as
    torch==2.13.0 where no other build can be had; the record's command shows them.
    Raises: SystemExit for an unknown label, or if a set cannot be installed.
    """
    known = {each.label: each for each in SETS}
    if unknown := set(names) - set(known):
        raise SystemExit(f"No set {', '.join(unknown)}. There are: {', '.join(known)}.")
    file = root / RECORD
    for label in names or known:
        with tempfile.TemporaryDirectory(prefix="course-versions-") as folder:
            entry = _entry(root, known[label], Path(folder), pins)
        sets = (
            json.loads(file.read_text(encoding="utf-8"))["sets"]
            if file.exists()
            else {}
        )
        sets = dict(sorted((sets | {label: entry}).items()))
        notebooks.write_text(file, json.dumps({"sets": sets}, indent=1) + "\n")
        print(_row(label, entry), flush=True)


def _entry(root, chosen, folder, pins):
    """Run one set in `folder`. Returns: its entry of the record."""
    start = time.perf_counter()
    copy, venv = folder / "course", folder / "venv"
    bundle.copy_tracked(root, copy)
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    uv = [sys.executable, "-m", "uv"]
    install = [*uv, "pip", "install", "--quiet", "--python", python]
    # Only so are the package's own bounds the direct ones, whose lowest are taken.
    libraries = ["-r", copy / "pyproject.toml", "--extra", "tests"]
    libraries += ["--resolution", chosen.resolution]
    _succeed([*uv, "venv", "--quiet", "--python", chosen.python, venv])
    if chosen.pins:
        _succeed([*install, *chosen.pins])
    _succeed([*install, *libraries, *pins])
    _succeed([*install, "--no-deps", "--editable", copy])
    settings = {"COURSE_PROFILE": "cpu", "COURSE_PAIRS": str(PAIRS), "PYTHONPATH": ""}

    def ask(*arguments):
        command = [python, *arguments]
        return _run(command, cwd=copy, env={**os.environ, **settings}).stdout

    code = "import json; from course_utils import recorded as r; "
    code += "print(json.dumps([r.machine(), r.versions()]))"
    machine, versions = json.loads(ask("-c", code).splitlines()[-1])
    built = ask("-m", "course_utils.course", "notebooks", *NOTEBOOKS)
    tests = [f"tests/test_{name}.py" for name in TESTS]
    report = folder / "tests.xml"
    said = ask("-m", "pytest", "-q", *tests, f"--junitxml={report}")
    if not report.exists():
        raise SystemExit(f"{chosen.label}: pytest did not begin: {said[-2000:]}")
    return {
        "command": f"{COMMAND} {chosen.label}" + "".join(f" --pin {p}" for p in pins),
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "pairs": PAIRS,
        "versions": versions,
        "notebooks": _notebooks(built),
        "tests": _tests(report),
    }


def _run(command, **options):
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        **options,
    )


def _succeed(command):
    done = _run(command)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stdout[-3000:]}")


def _notebooks(said):
    """{"00": "ran", or the error} from what building the notebooks printed."""
    broke = dict(re.findall(r"(?m)^(\d\d)_\w+: .*?broke at (.*)$", said))
    ran = re.findall(r"(?m)^(\d\d)_\w+: .*", said)
    found = {name: "ran" if name in ran else said[-300:] for name in NOTEBOOKS}
    return found | broke


def _tests(report):
    """{"passed": n, "skipped": n, "broke": {name: why}} from pytest's XML."""
    suite = ElementTree.parse(report).getroot().find("testsuite")
    count = {key: int(suite.get(key)) for key in ("tests", "skipped")}
    broke = {}
    for case in suite.iter("testcase"):
        for problem in (*case.iter("failure"), *case.iter("error")):
            name = f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}"
            broke[name] = (problem.get("message") or "").partition("\n")[0][:200]
    passed = count["tests"] - count["skipped"] - len(broke)
    return {"passed": passed, "skipped": count["skipped"], "broke": broke}


def table(sets: dict) -> str:
    """The record's sets as a Markdown table, a row each."""
    head = ["set", "tested", "Python", *SHOWN, "notebooks", "core tests"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(_row(*item) for item in sets.items())])


def _row(label, entry):
    cells = [label.partition("-")[0], entry["date"]]
    cells += [entry["versions"][name] for name in ("python", *SHOWN)]
    broke = [name for name, said in entry["notebooks"].items() if said != "ran"]
    cells.append(f"{', '.join(broke)} broke" if broke else "all ran")
    tests = entry["tests"]
    failed = f", {len(tests['broke'])} failed" if tests["broke"] else ""
    return f"| {' | '.join(cells)} | {tests['passed']} passed{failed} |"


def updated(text: str) -> str:
    """`text` with its table of versions made anew from the record.

    Raises: ValueError if the two comments that enclose the table are not there.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the text must hold the lines {BEGIN} and {END}.")
    before, _, rest = text.partition(BEGIN)
    shown = table(recorded.load("versions")["sets"])
    return f"{before}{BEGIN}\n{shown}\n{END}{rest.partition(END)[2]}"
