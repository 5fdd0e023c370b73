"""`make course`: run the notebooks, write their pages, end with a table."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from nbformat import NotebookNode

from course_utils.course import console, execution, notebooks, pages
from course_utils.setup import places, threads

GIB_PER_NOTEBOOK = 3  # the largest takes 2
_WRITING = threading.Lock()  # pages share the folder of MathJax


def chosen(paths: Iterable[Path], names: Sequence[str]) -> list[Path]:
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


def run_course(
    root: Path, names: Sequence[str] = (), fresh: bool = False, jobs: int | None = None
) -> int:
    """Run notebooks from copies in build/, write their pages, end with a table.

    jobs: notebooks at a time; by default `default_jobs`.
    Returns: 0, or 1 if a notebook broke (the others run all the same).
    """
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


def default_jobs() -> tuple[int, str]:
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
    try:
        notebooks.carry_outputs(previous, notebook)
    except ValueError:
        return False
    return True


def run_key(notebook: NotebookNode, package: Path, profile: str) -> str:
    """A hash of all that a run's result depends on; equal keys need no second run.

    That is the notebook's code, every file of the package and the data cards, the
    libraries' versions, and the course's settings in the environment.
    """
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


def profile() -> str:
    """The profile that the commands run notebooks on: COURSE_PROFILE, or `cpu`."""
    return os.environ.get("COURSE_PROFILE") or "cpu"
