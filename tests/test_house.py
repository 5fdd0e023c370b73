"""Dependencies, pins and packaging agree with each other, wherever they stand."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from course_utils.course import notebook_lint, notebooks, pages
from course_utils.setup import places

ROOT = places.checkout()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
# It compiles against an installed torch, so no machine can resolve it beforehand.
NOT_PINNED = {"flash-attn", "orpo-course"}
# What may stand at the top level of a module: nothing that acts.
QUIET = (
    ast.Import,
    ast.ImportFrom,
    ast.Assign,
    ast.AnnAssign,
    ast.FunctionDef,
    ast.ClassDef,
)


def declared(*groups):
    lines = [line for group in groups for line in group]
    requirements = [Requirement(line) for line in lines]
    return [each for each in requirements if each.name not in NOT_PINNED]


def pins():
    """{name: [requirement, …]}; a package may have one pin for each kind of system."""
    found = {}
    for line in CONSTRAINTS.splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def pinned_version(requirement):
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", f"{requirement} is not an exact pin"
    return specifier.version


@pytest.mark.parametrize(
    "requirement", declared(PROJECT["dependencies"], *EXTRAS.values()), ids=str
)
def test_every_dependency_has_a_pin_that_fits(requirement):
    candidates = pins().get(canonicalize_name(requirement.name))
    assert candidates, f"{requirement.name} is not in constraints.txt: run `make pins`"
    for pin in candidates:
        assert requirement.specifier.contains(pinned_version(pin), prereleases=True)


@pytest.mark.parametrize(
    "requirement",
    declared(PROJECT["dependencies"], EXTRAS["course"], EXTRAS["lab"], EXTRAS["tests"]),
    ids=str,
)
def test_what_is_installed_here_is_what_is_pinned(requirement):
    installed = version(requirement.name).partition("+")[0]
    candidates = pins()[canonicalize_name(requirement.name)]
    assert installed in [pinned_version(pin) for pin in candidates]


def test_constraints_are_pins_and_nothing_else():
    for requirements in pins().values():
        for requirement in requirements:
            pinned_version(requirement)
            assert requirement.url is None
    assert not re.search(r"https?://|file:|--|^/", CONSTRAINTS, re.MULTILINE)


def test_the_conda_way_leads_to_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [each for each in environment["dependencies"] if isinstance(each, str)]
    (from_pip,) = [each for each in environment["dependencies"] if each not in conda]
    assert environment["name"] == PROJECT["name"]
    # Conda must bring no package of its own that pip then has to replace.
    assert [each.partition("=")[0] for each in conda] == ["python", "pip"]
    python = conda[0].partition("=")[2]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    constraint, editable = from_pip["pip"]
    assert constraint == "--constraint constraints.txt"
    extra = re.fullmatch(r"--editable \.\[(\w+)\]", editable)[1]
    assert extra in EXTRAS
    assert f"EXTRAS ?= {extra}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("python", "fits"),
    [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)],
)
def test_the_makefile_and_the_package_want_the_same_python(python, fits):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    condition = re.search(r"\(3, \d+\) <= v < \(3, \d+\)", makefile)[0]
    assert eval(condition, {"v": python}) is fits
    written = ".".join(map(str, python))
    assert SpecifierSet(PROJECT["requires-python"]).contains(written) is fits


def test_any_trl_from_1_16_on_will_do_and_only_the_course_needs_one():
    (trl,) = [each for each in declared(EXTRAS["course"]) if each.name == "trl"]
    assert str(trl.specifier) == ">=1.16"
    assert "trl" not in [each.name for each in declared(PROJECT["dependencies"])]
    # The comparisons with TRL's ORPO run where this one is installed.
    assert [pinned_version(pin) for pin in pins()["trl"]] == ["1.16.0"]


# --- packaging ----------------------------------------------------------------------


def test_every_folder_of_the_package_is_in_its_list():
    folders = {
        ".".join(path.parent.relative_to(places.PACKAGE.parent).parts)
        for path in places.PACKAGE.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    assert folders | {"course_utils.data_cards"} == listed, (
        "pyproject.toml, [tool.setuptools] packages, and the folders differ"
    )


def test_a_wheel_carries_code_data_and_cards(tmp_path):
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("course_utils", "data_cards"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    build += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)

    for folder, inside in (("course_utils", "."), ("data_cards", "data_cards")):
        here = ROOT / folder
        files = [each.relative_to(here) for each in here.rglob("*") if each.is_file()]
        files = [each for each in files if "__pycache__" not in each.parts]
        there = unpacked / "course_utils" / inside
        missing = [str(each) for each in files if not (there / each).exists()]
        assert missing == [], "add their ending to pyproject.toml's package-data"

    # The unpacked wheel comes before the clone: what it says is what users will see.
    ask = (
        "from course_utils.setup import places as p; "
        "print(p.data_cards(), p.repository())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=unpacked,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    ).stdout.split()
    assert answer == [
        str((unpacked / "course_utils" / "data_cards").resolve()),
        places.repository(),
    ]


# --- the repository's address, the README -------------------------------------------


def test_the_repository_address_stands_in_one_place():
    slug = places.repository().removeprefix("https://github.com/")
    texts = [
        *places.PACKAGE.rglob("*.py"),
        *notebooks.text_files(ROOT),
        *(ROOT / "data_cards").glob("*.md"),
        *(ROOT / name for name in ("Makefile", "environment.yml", "constraints.txt")),
    ]
    holding = [p.name for p in texts if slug in p.read_text(encoding="utf-8")]
    assert holding == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(pages.README_BEGIN)
    assert slug not in before + rest.partition(pages.README_END)[2]


def test_the_readme_has_the_current_map_of_notebooks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    current = pages.updated_readme(readme, notebooks.notebook_files(ROOT))
    assert readme == current, "run `make notebooks`, or with --only-stale"


def test_the_house_has_one_width():
    assert PYPROJECT["tool"]["ruff"]["line-length"] == notebook_lint.MAX_WIDTH


# Rooms whose public functions all say what they take and return.
ANNOTATED = (
    "chat",
    "course",
    "data",
    "evaluation",
    "exercises",
    "lab",
    "models",
    "orpo.py",
    "plots.py",
    "publishing",
    "recorded",
    "setup",
    "training",
)
# What a learner writes or is given, shown as it stands in a notebook's cell.
AS_IN_A_CELL = (
    "exercises/hunts/recipes.py",
    "exercises/hunts/repairs.py",
    "exercises/solutions.py",
)


def unannotated(body, owner=""):
    """The public functions and methods in a body that lack an annotation."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from unannotated(node.body, f"{node.name}.")
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        own = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own += filter(None, (node.args.vararg, node.args.kwarg))
        bare = [a.arg for a in own if not a.annotation and a.arg not in ("self", "cls")]
        private = node.name.startswith("_") and not node.name.endswith("__")
        if not private and (bare or node.returns is None):
            yield f"{owner}{node.name}"


@pytest.mark.parametrize("room", ANNOTATED)
def test_public_functions_have_annotations(room):
    place = places.PACKAGE / room
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    assert files
    for path in files:
        name = path.relative_to(places.PACKAGE).as_posix()
        if name not in AS_IN_A_CELL:
            lacking = unannotated(ast.parse(path.read_text(encoding="utf-8")).body)
            assert list(lacking) == [], name


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def f(a: int) -> int: ...", []),
        ("def f(a) -> int: ...", ["f"]),
        ("def f(a: int): ...", ["f"]),
        ("def f(*a: int, **b) -> None: ...", ["f"]),
        ("def _f(a): ...", []),
        ("class A:\n def __init__(self, a): ...\n def _b(self): ...", ["A.__init__"]),
    ],
)
def test_the_search_finds_a_missing_annotation(code, found):
    assert list(unannotated(ast.parse(code).body)) == found


@pytest.mark.parametrize(
    "path",
    sorted(places.PACKAGE.rglob("*.py")),
    ids=lambda path: path.relative_to(places.PACKAGE).as_posix(),
)
def test_importing_a_module_does_nothing_else(path):
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If):
            assert ast.unparse(statement.test) == "__name__ == '__main__'"
        elif isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant), ast.unparse(statement)
        else:
            assert isinstance(statement, QUIET), ast.unparse(statement)


# --- size ---------------------------------------------------------------------------

MODULES = sorted(places.PACKAGE.rglob("*.py"))


def test_every_module_can_be_read_in_one_sitting():
    lines = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert {path.name: n for path, n in lines.items() if n > 350} == {}


def test_no_module_of_the_package_needs_a_test_library():
    for path in MODULES:
        imported = re.findall(
            r"^\s*(?:from|import) (\w+)", path.read_text("utf-8"), re.MULTILINE
        )
        assert not {"unittest", "pytest"} & set(imported), path
