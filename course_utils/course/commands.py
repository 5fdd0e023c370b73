"""The course's commands: `python -m course_utils.course run|test|lab|…`.

How a notebook is run, checked and shown is in `execution`, `notebook_lint` and `pages`.
The commands that need these import them, so that `--help` is quick.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from course_utils.course import console
from course_utils.setup import places, threads

TEST_WORKERS = 2
GIB_PER_NOTEBOOK = 3  # the largest takes 2
_WRITING = threading.Lock()  # pages share the folder of MathJax


def main(arguments=None):
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
            return run_course(root, options.names, options.fresh, options.jobs)
        if options.command == "test":
            return run_tests(root, rest)
        if options.command == "lab":
            return open_lab(root, options.names, options.fresh, options.copy_only)
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
        return build_notebooks(root, options.names, options.only_stale)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept.")
        return 130


def chosen(paths, names):
    """Those of `paths` whose stem begins with one of `names`; all if there are none.

    Raises: SystemExit naming what there is, if a name fits nothing.
    """
    for name in names:
        if not any(path.stem.startswith(name) for path in paths):
            there = ", ".join(path.stem for path in paths) or "none at all"
            raise SystemExit(f"No notebook begins with {name!r}. There are: {there}.")
    return [
        path
        for path in paths
        if not names or any(path.stem.startswith(name) for name in names)
    ]


# --- make course --------------------------------------------------------------------


def run_course(root, names=(), fresh=False, jobs=None):
    """Run notebooks from copies in build/, write their pages, end with a table.

    jobs: notebooks at a time; by default `default_jobs`.
    Returns: 0, or 1 if a notebook broke (the others run all the same).
    """
    from course_utils.course import notebooks, pages

    paths = chosen(notebooks.notebook_files(root), names)
    if not paths:
        raise SystemExit(f"There is no notebook in {root / 'notebooks'}.")
    seconds = {path: _recorded_seconds(path) for path in paths}
    jobs, why = (jobs, "as asked") if jobs else default_jobs()
    print(
        f"To run: {len(paths)} of the notebooks, {jobs} at a time ({why}); "
        f"recorded, one after the other: {sum(seconds.values()) / 60:.1f} min"
    )
    index = root / "build" / "html" / "index.html"
    pages_there = {page.stem for page in index.parent.glob("[0-9][0-9]_*.html")}
    order = sorted(pages_there | {path.stem for path in paths})
    stop = threading.Event()
    try:
        with ThreadPoolExecutor(jobs) as pool:
            # The longest first, so that none is left alone at the end.
            running = {
                path: pool.submit(_run_one, root, path, fresh, order, jobs, stop)
                for path in sorted(paths, key=seconds.get, reverse=True)
            }
            try:
                rows = [_result(running[path]) for path in paths]
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        pages.write_index(rows, index)
    except OSError as error:
        if not _lies_in(error.filename, root / "build"):
            raise
        raise SystemExit(
            f"The course writes its results to {root / 'build'}, and cannot: {error}. "
            "Free some space, or make the folder writable; finished pages are kept."
        ) from error
    print()
    print(console.table(rows))
    print(f"\nBegin with {index.relative_to(root)}")
    return int(any(row["broke"] for row in rows))


def default_jobs():
    """(notebooks at a time, reason): one per free core on the CPU, one on a GPU."""
    import psutil

    if profile() != "cpu":
        return 1, f"profile {profile()}: they share one GPU"
    free, reason = threads.choose_threads()
    fitting = int(psutil.virtual_memory().available / 2**30 / GIB_PER_NOTEBOOK)
    if fitting < free:
        return max(1, fitting), "memory has room for no more"
    return free, reason


def _result(running):
    """What a future returns; waits so that Ctrl-C gets through on Windows as well."""
    while not wait([running], timeout=0.5).done:
        pass
    return running.result()


def _recorded_seconds(path):
    from course_utils.course import notebooks

    try:
        return notebooks.run_record(notebooks.read(path)).get("seconds", 0)
    except ValueError:
        return 0  # _run_one says in the table what is wrong with it


def _lies_in(file, folder):
    """Is `file`, the name in an OSError, in `folder`? A full disk names no file."""
    return file is None or folder in Path(file).absolute().parents


def _run_one(root, path, fresh, order, jobs, stop):
    """Run or reuse one notebook. Returns: its row of the table.

    order: the names of all pages, to lead from one to the next. jobs: notebooks that
    run at a time. stop: an Event that ends the run.
    """
    from course_utils.course import execution, notebooks, pages

    copy = root / "build" / "notebooks" / path.name
    page = root / "build" / "html" / f"{path.stem}.html"
    broke = ""
    try:
        notebook = notebooks.read(path)
    except ValueError as error:
        print(f"{path.stem}: {error}", flush=True)
        # The page of an earlier run would be taken for this one's.
        page.unlink(missing_ok=True)
        return {
            "name": path.stem,
            "title": path.stem,
            "minutes": "0.0",
            "finding": f"BROKE: {error}",
            "page": page.name,
            "where": str(path.relative_to(root)),
            "broke": True,
        }

    key = run_key(notebook, places.PACKAGE, profile())
    previous = None if fresh else _earlier_run(copy, key)
    reused = previous is not None and _carried(previous, notebook)
    if reused:
        record = notebooks.run_record(previous)
        print(f"{path.stem}: unchanged since its last run, reused", flush=True)
    else:
        progress = console.Progress(path.stem, alone=jobs == 1)
        settings = {} if jobs == 1 else {threads.VARIABLE: "1"}
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            record = execution.execute(
                notebook, copy.parent, profile(), progress, stop, settings
            )
            record["run_key"] = key
        except execution.NotebookBrokeError as error:
            broke, record = str(error), {"seconds": progress.seconds()}
        progress.end(f"broke at {broke}" if broke else "")
    notebook.metadata.setdefault("course", notebooks.nbformat.NotebookNode())
    notebook.metadata.course.update(record)
    # A page is made in seconds, but eight of them would make a second run slow.
    if not (reused and page.exists() and notebook == previous):
        notebooks.write(notebook, copy)
        with _WRITING:
            pages.write_page(notebook, page, path.parent, order)
    return {
        "name": path.stem,
        "title": notebooks.heading(notebook),
        "minutes": f"{record['seconds'] / 60:.1f}",
        "finding": f"BROKE at {broke}" if broke else notebooks.finding(notebook),
        "page": page.name,
        "where": str(page.relative_to(root)),
        "broke": bool(broke),
    }


def _earlier_run(copy, key):
    """The notebook at `copy` if it is of the same run, else None.

    A kill can leave half a file, and somebody may have edited it: it is made again.
    """
    from course_utils.course import notebooks

    try:
        previous = notebooks.read(copy)
        same = notebooks.run_record(previous).get("run_key") == key
        return previous if same else None
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        print(f"{copy.stem}: its last copy cannot be used and is made again: {error}")
        return None


def _carried(previous, notebook):
    """Put the outputs of `previous` into `notebook`. Returns: did the code agree?"""
    from course_utils.course import notebooks

    try:
        notebooks.carry_outputs(previous, notebook)
    except ValueError:
        return False
    return True


def profile():
    """The profile that the commands run notebooks on: COURSE_PROFILE, or `cpu`."""
    return os.environ.get("COURSE_PROFILE") or "cpu"


def run_key(notebook, package, profile):
    """A hash of all that a run's result depends on; equal keys need no second run.

    That is the notebook's code, every file of the package and the data cards, the
    libraries' versions, and the course's settings in the environment.
    """
    from course_utils.course import execution, notebooks

    settings = {k: v for k, v in os.environ.items() if k.startswith("COURSE_")}
    settings["COURSE_PROFILE"] = profile
    parts = [notebooks.code_sha256(notebook), execution.library_versions(), settings]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for folder in (package, package.parent / "data_cards"):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(str(path.relative_to(folder.parent)).encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# --- make test, make lab ------------------------------------------------------------


def run_tests(root, extra=()):
    """Check the style with ruff, then run pytest on notebooks and tests.

    Returns: 1 if ruff finds a fault, else pytest's exit status.
    """
    share = str(max(1, threads.usable_cores() // TEST_WORKERS))
    environment = {
        # Two workers whose torch each takes all cores are slower than one.
        "OMP_NUM_THREADS": share,
        "MKL_NUM_THREADS": share,
        "OMP_WAIT_POLICY": "PASSIVE",
        "COURSE_PROFILE": profile(),
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


def open_lab(root, names=(), fresh=False, copy_only=False):
    """Open JupyterLab on the learner's own copies. Returns: its exit status."""
    from course_utils.course import notebooks, working_copies

    chosen(notebooks.notebook_files(root), names)
    for line in working_copies.prepare(root, names, fresh):
        print(line)
    if copy_only:
        return 0
    folder = str(root / working_copies.FOLDER)
    command = [sys.executable, "-m", "jupyterlab", folder]
    return subprocess.run(command, check=False).returncode


def renew_promises(root):
    """Write the README's table of promises anew from the tests' marks. Returns: 0."""
    from course_utils.course import notebooks, promises

    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    notebooks.write_text(readme, promises.updated(text, root / "tests"))
    return 0


def renew_agenda(root):
    """Write the workshop's minutes anew from the notebooks' records. Returns: 0."""
    from course_utils.course import agenda, notebooks

    page = root / "notebooks" / "WORKSHOP.md"
    text = page.read_text(encoding="utf-8")
    notebooks.write_text(page, agenda.updated(text, root))
    return 0


def make_bundle(root, folder):
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


def test_versions(root, names=(), pins=()):
    """Test sets of versions, and renew the README's table of them. Returns: 0."""
    from course_utils.course import notebooks, versions

    versions.run(root, names, pins)
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    notebooks.write_text(readme, versions.updated(text))
    return 0


def set_address(root, url=None, revision=None):
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


# --- make notebooks -----------------------------------------------------------------


def build_notebooks(root, names=(), only_stale=False):
    """Rebuild notebooks from their text, execute them, and renew the README's map.

    only_stale: execute only where the code changed; text is renewed everywhere.
    Returns: 0, or 1 if a notebook broke (its committed form is then left as it was).
    """
    from course_utils.course import notebooks, pages

    texts = chosen(notebooks.text_files(root), names)
    broke = [text.stem for text in texts if not _build_one(root, text, only_stale)]
    readme = root / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = pages.updated_readme(old, notebooks.notebook_files(root))
    if new != old:
        notebooks.write_text(readme, new)
        print("README.md: the map of notebooks was renewed")
    if broke:
        print(f"Not rebuilt, and left as committed: {', '.join(broke)}")
    return int(bool(broke))


def _read_or_none(path):
    """The notebook at `path`, or None if there is none that can be read."""
    from course_utils.course import notebooks

    try:
        return notebooks.read(path)
    except (FileNotFoundError, ValueError):
        return None


def _build_one(root, text_path, only_stale):
    """Rebuild one notebook, and say what is wrong with it. Returns: was it written?"""
    from course_utils.course import (
        execution,
        notebook_lint,
        notebooks,
        working_copies,
    )

    name = text_path.stem
    target = root / "notebooks" / f"{name}.ipynb"
    text = text_path.read_text(encoding="utf-8")
    template = notebooks.from_text(text, text_path.name)
    tidy = notebooks.to_text(template)
    if tidy != text:
        notebooks.write_text(text_path, tidy)
        print(f"{name}: blank lines of its text were put in jupytext's form")

    committed = _read_or_none(target)
    if only_stale and committed and notebooks.is_current(committed, template):
        executed, record = committed, notebooks.run_record(committed)
    else:
        executed = notebooks.filled(template, notebooks.fills(name, {}))
        progress = console.Progress(name)
        try:
            record = execution.execute(executed, target.parent, profile(), progress)
        except execution.NotebookBrokeError as error:
            progress.end(f"broke at {error}")
            wreck = root / "build" / "broken" / target.name
            notebooks.write(executed, wreck)
            print(f"{name}: look at {wreck.relative_to(root)}")
            return False
        progress.end()
    kept = target.exists() and working_copies.keep_answers(root, target)
    if kept:
        print(f"{name}: somebody edited it; that version is {kept.relative_to(root)}")
    finished = notebooks.finished(template, name, executed, record)
    leaks = list(notebook_lint.leaks(finished))
    if leaks:
        print(*(f"{name}: not written, {leak}" for leak in leaks), sep="\n")
        return False
    notebooks.write(finished, target)
    for problem in notebook_lint.problems(target):
        print(f"{name}: {problem}")
    return True
