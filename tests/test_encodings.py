"""Text is UTF-8 whatever the machine's locale, and no console ends a run."""

import ast
import io
import os
import subprocess
import sys

import pytest

from course_utils.setup import places
from course_utils.setup.printing import print_safely

ROOT = places.checkout()
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("course_utils", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
# Calls that take text and an encoding, with the place of the mode that says "b".
OPENERS = {"open": 1, "fdopen": 1, "TemporaryFile": 0, "NamedTemporaryFile": 0}
RUNNERS = ("run", "Popen", "check_output", "check_call", "call")


def without_encoding(tree):
    """Lines of calls that would read or write text in the locale's encoding."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        method = isinstance(function, ast.Attribute)
        name = function.attr if method else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if method else ""
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in keywords or None in keywords or owner == "Image":
            continue
        if name in OPENERS:
            # A path's own open() has no file before the mode.
            of_path = method and owner not in ("os", "io", "tempfile", "webbrowser")
            at = OPENERS[name] - of_path if name == "open" else OPENERS[name]
            given = node.args[at : at + 1] or [keywords.get("mode")]
            default = "w+b" if "Temporary" in name else "r"
            mode = getattr(given[0], "value", default)
            faulty = "b" not in str(mode)
        elif name == "read_text":
            faulty = not node.args
        elif name == "write_text":
            faulty = len(node.args) < 2
        else:
            faulty = name in RUNNERS and {"text", "universal_newlines"} & set(keywords)
        if faulty:
            yield node.lineno


def trees(*folders):
    for path in FILES:
        if path.parts[0] in folders:
            yield path, ast.parse((ROOT / path).read_text(encoding="utf-8"))


def test_every_text_file_is_read_and_written_as_utf_8():
    found = trees("course_utils", "tests")
    faults = {str(path): list(without_encoding(tree)) for path, tree in found}
    assert len(faults) > 150
    assert {path: lines for path, lines in faults.items() if lines} == {}


def test_every_text_file_is_written_with_the_same_line_ends_everywhere():
    calls = [
        (str(path), node.lineno, {keyword.arg for keyword in node.keywords})
        for path, tree in trees("course_utils")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "") == "write_text"
        # These two write with plain line ends themselves.
        and getattr(node.func.value, "id", "") not in ("folders", "notebooks")
    ]
    assert calls
    assert [call[:2] for call in calls if "newline" not in call[2]] == []


@pytest.mark.parametrize(
    ("code", "faults"),
    [
        ("path.read_text()", 1),
        ("path.write_text(text)", 1),
        ("path.open('w')", 1),
        ("open(path)", 1),
        ("os.fdopen(3, 'w')", 1),
        ("tempfile.TemporaryFile('w')", 1),
        ("subprocess.run(command, text=True)", 1),
        ("open(path, 'rb'); path.open('wb'); path.read_text('utf-8')", 0),
        ("tempfile.NamedTemporaryFile(); Image.open(path)", 0),
        ("open(path, encoding='utf-8'); subprocess.run(command)", 0),
    ],
)
def test_the_search_finds_what_it_looks_for(code, faults):
    assert len(list(without_encoding(ast.parse(code)))) == faults


def test_every_command_prints_safely():
    commands = [
        (str(path), ast.unparse(node.body[0]))
        for path, tree in trees("course_utils")
        for node in tree.body
        if isinstance(node, ast.If) and path.name != "app.py"
    ]
    assert len(commands) > 5
    # The Space's app.py runs without this package.
    assert [path for path, first in commands if first != "print_safely()"] == []


@pytest.mark.parametrize(
    ("encoding", "text", "written"),
    [
        ("cp1252", "Δβ = 0.5 é", b"\\u0394\\u03b2 = 0.5 \xe9"),
        ("ascii", "β ×", rb"\u03b2 \xd7"),
        ("utf-8", "β \ud800", "β \\ud800".encode()),
    ],
)
def test_a_character_that_a_console_lacks_is_spelled_out(
    monkeypatch, encoding, text, written
):
    raw = io.BytesIO()
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
        monkeypatch.setattr(sys, name, stream)
    print_safely()
    print(text, end="", flush=True)
    print(text, end="", flush=True, file=sys.stderr)
    assert raw.getvalue() == written * 2
    monkeypatch.setattr(sys, "stdout", None)  # as under pythonw
    print_safely()


# What a learner does first, in a process whose locale is Windows' code page 1252 and
# whose console is, too. Where the system cannot make that locale, it is imitated.
CORE = """
import io, json, locale, sys
from pathlib import Path
if locale.getencoding().lower().replace("-", "") not in ("cp1252", "windows1252"):
    io.text_encoding = lambda encoding, *rest: encoding or "cp1252"
    sys.stdout.reconfigure(encoding="cp1252")
folder = Path(sys.argv[1])
with open(folder / "probe", "wb") as file:
    file.write(b"\\xc3\\xa9")
assert (folder / "probe").read_text() == "\\u00c3\\u00a9"  # it is such a locale
from course_utils.setup.printing import print_safely
print_safely()

from course_utils import lab, recorded
from course_utils.data import mixing, sources
from course_utils.setup import profiles
from course_utils.training import options, run

assert lab.recorded("LoRA LR 0.003, \\u03b2 0.5")
for path in sorted(Path(recorded.__file__).parent.glob("*.json")):
    assert recorded.load(path.stem)
for version in ("v1.0", "v1.2"):
    assert len(sources.cards(version=version)) == 7
assert sources.card_of("mix") and sources.card_of("world")

text = "---\\nlicense: mit\\ncourse: {source: own, prompt: {user: q}, chosen: a, "
text += "rejected: b, citation: \\u03b2}\\n---\\n# \\u0394\\n"
(folder / "own.md").write_text(text, encoding="utf-8")
row = {"q": "O\\u00f9 {} ?", "a": "L\\u00e0 \\u03b2 {}", "b": "Non"}
rows = [{key: text.format(n) for key, text in row.items()} for n in range(9)]
lines = "".join(json.dumps(row, ensure_ascii=False) + "\\n" for row in rows)
(folder / "own.jsonl").write_text(lines, encoding="utf-8")
assert run.read_json_lines(folder / "own.jsonl") == rows
mix = mixing.build(str(folder), cards=sources.cards(folder), evaluation_pairs=3)
assert {pair["chosen"][0]["content"][:4] for pair in mix.train} == {"L\\u00e0 \\u03b2"}
page = mixing.write_card(mix, folder / "mix", "\\u0394\\u03b2")
assert "# \\u0394\\u03b2" in page.read_text(encoding="utf-8")

asked = options.parse(["--output", str(folder / "out"), "--profile", "cpu"])
print(f"\\u0394\\u03b2 = {options.choose_profile(asked).profile.beta}")
"""


def environment_of_code_page(folder):
    """Variables for a process in code page 1252, as far as this system has it."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG", "LC_CTYPE")
    }
    environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    environ["PYTHONPATH"] = str(ROOT)
    if sys.platform == "linux":
        made = folder / "en_US.CP1252"
        command = ["localedef", "-f", "CP1252", "-i", "en_US", str(made)]
        try:
            subprocess.run(command, capture_output=True)
        except FileNotFoundError:
            return environ
        if made.is_dir():
            environ |= {"LOCPATH": str(folder), "LC_ALL": made.name}
    return environ


@pytest.mark.promise(
    "Windows' code page 1252, or a console without β",
    "files are UTF-8, and what the console lacks is spelled out",
)
def test_the_core_runs_under_windows_code_page(tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", CORE, str(tmp_path)],
        env=environment_of_code_page(tmp_path),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")[-3000:]
    assert rb"\u0394\u03b2 = 0.5" in done.stdout
