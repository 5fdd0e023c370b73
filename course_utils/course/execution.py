"""Running a notebook, top to bottom, in one clean kernel."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import date
from importlib.metadata import version
from pathlib import Path
from platform import python_version

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

from course_utils.setup import threads

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
)
# Progress bars leave widget state or hundreds of carriage returns in the outputs.
QUIET = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Colour codes are noise on GitHub.
    "NO_COLOR": "1",
}
SAMPLE_SECONDS = 0.25
GIB = 2**30


class NotebookBrokeError(Exception):
    """A cell raised, or the kernel died. The message says where and why."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose release can change a result, by name."""
    return {name: version(name) for name in LIBRARIES}


def execute(
    notebook: NotebookNode,
    folder: Path,
    profile: str,
    progress: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
    settings: dict[str, str] | None = None,
) -> dict:
    """Run `notebook` in place and return the record of its run.

    folder: the kernel's working directory.
    profile: the value of COURSE_PROFILE that the cells see.
    progress: called every quarter of a second as progress(cells_done, cells_in_all).
    stop: a threading.Event; once it is set, the kernel is ended as by Ctrl-C.
    settings: more environment variables for the kernel.
    Returns: a dict with profile, python, versions, seconds (wall clock), cores,
    peak_memory_gib (resident, kernel and its children) and executed_on (ISO date).
    Raises: NotebookBrokeError; the notebook then holds the outputs up to that cell.
        KeyboardInterrupt on Ctrl-C and `stop`, after the kernel was ended.
    """
    _clear(notebook)
    total = sum(map(_is_run, notebook.cells))
    watcher = _Watcher(total, progress or (lambda done, total: None))
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        # Else every kernel warns on the terminal that others on this machine could
        # listen in.
        config=Config(KernelManager={"transport_encryption": "auto"}),
        on_notebook_start=lambda notebook: watcher.watch(client.km.provisioner.pid),
        on_cell_executed=lambda **_: watcher.count(),
    )
    environment = {**os.environ, **QUIET, "COURSE_PROFILE": profile, **(settings or {})}
    start = time.perf_counter()
    try:
        _execute_interruptibly(client, watcher, stop, cwd=str(folder), env=environment)
    except CellExecutionError as error:
        where = _first_broken(notebook)
        raise NotebookBrokeError(
            f"cell {where}: {error.ename}: {error.evalue}"
        ) from error
    except DeadKernelError as error:
        raise NotebookBrokeError(
            f"the kernel died after {watcher.done} of {total} code cells "
            f"(peak memory {watcher.peak_bytes / GIB:.1f} GiB; out of memory?)"
        ) from error
    finally:
        watcher.stop()
        _scrub(notebook)
    return {
        "profile": profile,
        "python": python_version(),
        "versions": library_versions(),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_memory_gib": round(watcher.peak_bytes / GIB, 2),
        "cores": threads.usable_cores(),
        "executed_on": date.today().isoformat(),
    }


def _execute_interruptibly(client, watcher, stop, **options):
    """client.execute in a thread of its own, so that Ctrl-C stays Python's.

    In the main thread nbclient takes Ctrl-C for itself: it ends the kernel, and then
    stumbles over its own missing kernel with an AssertionError.
    """
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.execute, **options)
        try:
            # With a timeout, because Windows delivers no Ctrl-C to an endless wait.
            while not wait([running], timeout=SAMPLE_SECONDS).done:
                if stop is not None and stop.is_set():
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            # Without its kernel the thread ends by itself.
            while not wait([running], timeout=SAMPLE_SECONDS).done:
                watcher.end_kernel()
            raise
        running.result()


def _is_run(cell):
    return cell.cell_type == "code" and bool(cell.source.strip())


def _first_broken(notebook):
    """The number, from 1 over all cells, of the first cell with an error output."""
    for number, cell in enumerate(notebook.cells, 1):
        kinds = [output.output_type for output in cell.get("outputs", [])]
        if "error" in kinds:
            return number
    return "unknown"


def _clear(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None


def _scrub(notebook):
    """Take away what the run noted about this machine rather than about the course."""
    notebook.metadata.language_info = nbformat.NotebookNode(name="python")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _is_progress(out)]


def _is_progress(output):
    """Is it the emptied line of a training? See course_utils.training.progress."""
    return output.get("metadata", {}).get("course_progress", False)


class _Watcher(threading.Thread):
    """Samples the memory of a kernel and its children, and reports progress."""

    def __init__(self, total, progress):
        super().__init__(daemon=True)
        self.total, self.progress = total, progress
        self.done, self.peak_bytes = 0, 0
        self.kernel = None
        self.stopped = threading.Event()

    def watch(self, pid):
        self.kernel = psutil.Process(pid)
        self.start()

    def end_kernel(self):
        """End the kernel and its children at once, if it has started."""
        if self.kernel is None:
            return
        try:
            for process in [*self.kernel.children(recursive=True), self.kernel]:
                process.kill()
        except psutil.NoSuchProcess:
            pass  # it ended by itself meanwhile

    def count(self):
        self.done += 1

    def stop(self):
        self.stopped.set()
        if self.is_alive():
            self.join()

    def run(self):
        while not self.stopped.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, _resident_bytes(self.kernel))
            self.progress(self.done, self.total)


def _resident_bytes(kernel):
    """Resident memory now, or the kernel's own high-water mark if that is higher.

    The mark (where the system keeps one) catches peaks between two samples.
    """
    try:
        family = [kernel, *kernel.children(recursive=True)]
        now = sum(process.memory_info().rss for process in family)
        high_water = _high_water_bytes(kernel)
    except psutil.NoSuchProcess:
        return 0  # a child, or the kernel itself, ended while we were looking
    return max(now, high_water)


def _high_water_bytes(process):
    if psutil.WINDOWS:
        return process.memory_info().peak_wset
    if not psutil.LINUX:
        return 0
    try:
        with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
            lines = [line for line in status if line.startswith("VmHWM:")]
    except FileNotFoundError:
        return 0  # the kernel has ended
    return int(lines[0].split()[1]) * 1024 if lines else 0
