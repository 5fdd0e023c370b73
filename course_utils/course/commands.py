"""The course's commands: `python -m course_utils.course run|test|lab|…`.

`running` is `make course`, `building` is `make notebooks`. They are imported by the
commands that need them, so that `--help` is quick.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from course_utils.setup import places, threads

TEST_WORKERS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns: the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.course", description="The ORPO course's commands."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    names = {"nargs": "*", "metavar": "NAME", "help": "e.g. 01; all if none is given"}

    run = commands.add_parser("run", help="run the notebooks, write pages to build/")
    run.add_argument("names", **names)
    run.add_argument("--fresh", action="store_true", help="reuse no earlier run")
    run.add_argument("--jobs", type=int, help="notebooks at a time")
    commands.add_parser("test", help="run tests and notebooks; takes pytest's options")
    lab = commands.add_parser("lab", help="open JupyterLab on your own copies in work/")
    lab.add_argument("names", **names)
    lab.add_argument(
        "--fresh", action="store_true", help="copy anew, keep the old copies beside"
    )
    lab.add_argument("--copy-only", action="store_true", help="do not open JupyterLab")
    late = commands.add_parser("catch-up", help="join at a notebook, in seconds")
    late.add_argument("number", help="the notebook to begin with, e.g. 05")
    commands.add_parser("promises", help="renew the README's table of promises")
    commands.add_parser("agenda", help="renew the minutes in notebooks/WORKSHOP.md")
    bundle = commands.add_parser("bundle", help="make a folder that installs offline")
    bundle.add_argument("folder", type=Path, help="a folder that is not there yet")
    tried = commands.add_parser("versions", help="test old and new libraries")
    tried.add_argument("names", nargs="*", metavar="SET", help="e.g. oldest-3.11")
    tried.add_argument("--pin", action="append", default=[], help="e.g. torch==2.13.0")
    where = commands.add_parser("address", help="set the repository's address")
    where.add_argument("url", nargs="?", help="default: the clone's remote `origin`")
    where.add_argument("--revision", help="tag, branch or commit that Colab installs")
    build = commands.add_parser("notebooks", help="rebuild the notebooks from text")
    build.add_argument("names", **names)
    build.add_argument(
        "--only-stale", action="store_true", help="execute only what changed"
    )

    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    root = places.checkout()
    try:
        if options.command == "run":
            from course_utils.course import running

            return running.run_course(root, options.names, options.fresh, options.jobs)
        if options.command == "test":
            return run_tests(root, rest)
        if options.command == "lab":
            return open_lab(root, options.names, options.fresh, options.copy_only)
        if options.command == "catch-up":
            return catch_up(root, options.number)
        if options.command == "agenda":
            return renew_agenda(root)
        if options.command == "bundle":
            return make_bundle(root, options.folder)
        if options.command == "versions":
            return test_versions(root, options.names, options.pin)
        if options.command == "promises":
            return renew_promises(root)
        if options.command == "address":
            return set_address(root, options.url, options.revision)
        from course_utils.course import building

        return building.build_notebooks(root, options.names, options.only_stale)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept.")
        return 130


def run_tests(root: Path, extra: Sequence[str] = ()) -> int:
    """Check the style with ruff, then run pytest on notebooks and tests.

    Returns: 1 if ruff finds a fault, else pytest's exit status.
    """
    share = str(max(1, threads.usable_cores() // TEST_WORKERS))
    environment = {
        # Two workers whose torch each takes all cores are slower than one.
        "OMP_NUM_THREADS": share,
        "MKL_NUM_THREADS": share,
        "OMP_WAIT_POLICY": "PASSIVE",
        "COURSE_PROFILE": os.environ.get("COURSE_PROFILE") or "cpu",
        **os.environ,
    }
    for check in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *check, "--quiet", "."]
        if subprocess.run(ruff, cwd=root, check=False).returncode:
            print(f"`ruff {' '.join(check)}` is not content: see above")
            return 1
    command = [sys.executable, "-m", "pytest", "--nbmake", "notebooks", "tests"]
    command += ["-n", str(TEST_WORKERS), "--dist", "worksteal", *extra]
    return subprocess.run(command, cwd=root, env=environment, check=False).returncode


def open_lab(
    root: Path, names: Sequence[str] = (), fresh: bool = False, copy_only: bool = False
) -> int:
    """Open JupyterLab on the learner's own copies. Returns: its exit status."""
    from course_utils.course import notebooks, running, working_copies

    running.chosen(notebooks.notebook_files(root), names)
    for line in working_copies.prepare(root, names, fresh):
        print(line)
    if copy_only:
        return 0
    folder = str(root / working_copies.FOLDER)
    command = [sys.executable, "-m", "jupyterlab", folder]
    return subprocess.run(command, check=False).returncode


def catch_up(root: Path, number: str) -> int:
    """Check the machine, and prepare what a late joiner needs. Returns: 0, or 1."""
    from course_utils.course import notebooks, running, working_copies
    from course_utils.setup import preflight

    number = running.chosen(notebooks.notebook_files(root), [number])[0].stem[:2]
    try:
        print(preflight.check())
    except preflight.PreflightError as error:
        print(error)
        return 1
    print(*working_copies.catch_up(root, number), sep="\n")
    return 0


def renew_promises(root: Path) -> int:
    """Write the README's table of promises anew from the tests' marks. Returns: 0."""
    from course_utils.course import notebooks, promises

    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    notebooks.write_text(readme, promises.updated(text, root / "tests"))
    return 0


def renew_agenda(root: Path) -> int:
    """Write the workshop's minutes anew from the notebooks' records. Returns: 0."""
    from course_utils.course import agenda, notebooks

    page = root / "notebooks" / "WORKSHOP.md"
    text = page.read_text(encoding="utf-8")
    notebooks.write_text(page, agenda.updated(text, root))
    return 0


def make_bundle(root: Path, folder: Path) -> int:
    """Make an offline bundle. Returns: 0, or pip's status if a wheel is missing."""
    from course_utils.course import bundle

    try:
        size = bundle.make(root, folder)
    except (FileExistsError, ValueError) as error:
        print(error)
        return 1
    except subprocess.CalledProcessError as error:
        print("pip could not collect the wheels: see above. Nothing was left behind.")
        return error.returncode
    print(f"{folder}: {size / 2**20:,.0f} MB. Install there with: python install.py")
    return 0


def test_versions(
    root: Path, names: Sequence[str] = (), pins: Sequence[str] = ()
) -> int:
    """Test sets of versions, and renew the README's table of them. Returns: 0."""
    from course_utils.course import notebooks, versions

    versions.run(root, names, pins)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    notebooks.write_text(readme, versions.updated(text))
    return 0


def set_address(root: Path, url: str | None = None, revision: str | None = None) -> int:
    """Set the repository's address and renew what shows it. Returns: 0, or 1."""
    from course_utils.course import address

    try:
        url = url or address.of_remote(root)
        changed = address.set_address(root, url, revision)
    except ValueError as error:
        print(error)
        return 1
    print(f"The course's address is {places.repository()} @ {places.revision()}")
    print(f"Changed: {', '.join(changed) or 'nothing'}")
    return 0
