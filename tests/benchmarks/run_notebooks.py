"""Every notebook on a GPU in the profiles for one, with random weights, recorded.

    python -m course_utils.models.random_weights /tmp/twin
    python tests/benchmarks/run_notebooks.py /tmp/twin --profiles l4 a100 --jobs 6

writes course_utils/recorded/gpu_notebooks.json after each notebook. A notebook runs as
its reader would run it, from its text, in a kernel of its own that gets no more memory
than the profile's card has. Several share one GPU, so the minutes are an upper bound;
memory is each kernel's own. Exit status 1 if one broke; its traceback is printed.
`--rehearse` runs the same without a GPU; its record needs `--out`.

Knows: processes, the order of runs, the record. Does not know: what a notebook teaches.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from course_utils.setup.printing import print_safely

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT)]

CAPS_GIB = {"l4": 22.0, "a100": 39.4}  # what such a card shows
# What a run keeps free on the shared card: short rows need far less than an A100 has.
SHARE_GIB = {"l4": 23.0, "a100": 27.0}
NO_GPU = ("01", "02")  # these use the lab's model, or none
LONGEST_FIRST = ("06", "05", "03", "04", "07", "01", "02", "00")
TRACEBACK_LINES = 40
OUT_OF_MEMORY = """
import torch
gib = int({cap} * 2**30)
torch.empty(gib // 2, dtype=torch.uint8, device="cuda")
try:
    torch.empty(gib + 2**30, dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError:
    print("capped")
"""


@dataclass
class Run:
    """One notebook in one profile, while it runs."""

    text: Path
    profile: str
    folder: Path = None
    process: subprocess.Popen = None
    start: float = 0.0
    beside: int = 0
    driver_gib: float | None = None
    killed: str = ""
    result: dict = field(default_factory=dict)

    @property
    def share(self):
        return 1.0 if self.text.name[:2] in NO_GPU else SHARE_GIB[self.profile]


# --- one notebook, in a process of its own ------------------------------------------


def run_one(text, profile, folder, fraction, out, keep):
    """Execute the notebook's text in `folder`; write what it took to `out`."""
    import notebook_meter
    from nbformat.v4 import new_code_cell

    from course_utils.course import execution, notebooks

    name = text.stem
    template = notebooks.from_text(text.read_text(encoding="utf-8"), text.name)
    notebook = notebooks.filled(template, notebooks.fills(name, {}))
    cells = len(notebook.cells)
    first = f"import notebook_meter\nnotebook_meter.start({fraction})"
    notebook.cells.insert(0, new_code_cell(first))
    notebook.cells.append(new_code_cell("notebook_meter.report()"))
    result, where = {"ok": False}, Path(f"{out}.progress")

    def progress(done, total):
        where.write_text(f"after {done} of {total} code cells", encoding="utf-8")

    start = time.perf_counter()
    try:
        record = execution.execute(notebook, folder, profile, progress)
        said = "".join(o.get("text", "") for o in notebook.cells[-1].outputs)
        result = {"ok": True, **notebook_meter.peaks_in(said)}
        result["host_gib"] = record["peak_memory_gib"]
        result["finding"] = notebooks.finding(notebook)
    except execution.NotebookBrokeError as error:
        result.update(broken_cell(notebook, str(error)))
    result["minutes"] = round((time.perf_counter() - start) / 60, 2)
    notebook.cells = notebook.cells[1 : cells + 1]
    if keep:
        notebooks.write(notebook, Path(keep) / f"{profile}-{name}.ipynb")
    Path(out).write_text(json.dumps(result), encoding="utf-8")


def broken_cell(notebook, message):
    """What is known of the cell that raised: number, code, error, traceback."""
    for number, cell in enumerate(notebook.cells):  # the first one is ours
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
                return {
                    "cell": number,
                    "error": f"{output.ename}: {output.evalue}"[:600],
                    "code": cell.source,
                    "traceback": plain.splitlines(),
                }
    return {"error": message, "traceback": []}


# --- all of them --------------------------------------------------------------------


def environment(options, profile, fraction, allocator):
    """The variables that a run sees, besides those of this process."""
    from course_utils.setup import threads

    paths = [str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")]
    share = max(1, threads.usable_cores() // options.jobs)
    settings = {
        "COURSE_PROFILE": profile,
        "COURSE_BASE_MODEL": str(options.twin),
        "COURSE_DATA": "world",
        "COURSE_PAIRS": str(options.pairs),
        "OMP_NUM_THREADS": str(share),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
    }
    if allocator:
        settings[allocator] = f"per_process_memory_fraction:{fraction}"
    return {**os.environ, **settings}


def allocator_variable(cap, total):
    """The variable by which torch caps processes that a notebook starts; or None.

    Tried out, because releases of torch differ: it must let half of the cap through,
    and refuse more than the cap.
    """
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        setting = {name: f"per_process_memory_fraction:{cap / total}"}
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_MEMORY.format(cap=cap)],
            env={**os.environ, **setting},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        if done.stdout.strip() == "capped":
            return name
    return None


def launch(run, options, scratch, fraction, allocator):
    run.folder = scratch / f"{run.profile}-{run.text.stem}"
    run.folder.mkdir(parents=True)
    command = [sys.executable, __file__, str(options.twin), "--one", str(run.text)]
    command += ["--profiles", run.profile, "--folder", str(run.folder)]
    command += ["--fraction", str(fraction)]
    if options.keep:
        command += ["--keep", str(options.keep)]
    run.start = time.perf_counter()
    with open(run.folder / "log", "w", encoding="utf-8") as log:
        run.process = subprocess.Popen(
            command,
            env=environment(options, run.profile, fraction, allocator),
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def stop(running, why):
    """End the processes of these runs, kernels included."""
    for run in running:
        if run.process.poll() is None:
            run.killed = why
            # A kernel leads a session of its own, so no signal to the group reaches it.
            family = psutil.Process(run.process.pid).children(recursive=True)
            run.process.kill()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            run.process.wait()


def collect(run):
    """The finished run as an entry of the record; its folder is removed."""
    if run.process is None:
        run.result = {"ok": False, "error": run.killed, "minutes": 0.0, "traceback": []}
        return entry_of(run)
    out = run.folder / "result.json"
    took = round((time.perf_counter() - run.start) / 60, 2)
    if out.is_file() and not run.killed:
        result = json.loads(out.read_text(encoding="utf-8"))
    else:
        log = (run.folder / "log").read_text(encoding="utf-8", errors="replace")
        progress = Path(f"{out}.progress")
        where = progress.read_text(encoding="utf-8") if progress.is_file() else ""
        why = run.killed or f"its process ended with {run.process.returncode}"
        result = {"ok": False, "error": f"{why} {where}".strip(), "minutes": took}
        result["traceback"] = log.splitlines()[-TRACEBACK_LINES:]
    shutil.rmtree(run.folder, ignore_errors=True)
    run.result = result
    return entry_of(run)


def entry_of(run):
    hidden = ("traceback", "code", "finding")  # a finding of random weights is none
    shown = {k: v for k, v in run.result.items() if k not in hidden}
    return {
        "notebook": run.text.stem,
        "profile": run.profile,
        **shown,
        "driver_gib": run.driver_gib,
        "beside": run.beside,
    }


def tell(run):
    """Print what became of a run."""
    result, name = run.result, f"{run.profile:5s} {run.text.stem}"
    if result["ok"]:
        print(
            f"{name}: ok, {result['minutes']:.1f} min, peak {result['peak_gib']} GiB "
            f"allocated, {result['reserved_gib']} reserved, by the driver "
            f"{run.driver_gib}. {result['finding']}",
            flush=True,
        )
        return
    print(f"{name}: BROKE, cell {result.get('cell', '?')}: {result['error']}")
    print("\n".join(f"    {line}" for line in result.get("code", "").splitlines()))
    lines = result["traceback"]
    if len(lines) > TRACEBACK_LINES:
        half = TRACEBACK_LINES // 2
        lines = [*lines[:half], f"… {len(lines) - 2 * half} lines …", *lines[-half:]]
    print("\n".join(f"  | {line}" for line in lines), flush=True)


def measure_driver(running):
    """Note what the driver says that each run's processes hold on the card now."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory"]
    try:
        said = subprocess.run(
            [*query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            encoding="utf-8",
        ).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return
    held = {}
    for line in said.splitlines():
        pid, _, used = line.partition(",")
        if used.strip().isdigit():
            held[int(pid)] = int(used) / 1024
    for run in running:
        try:
            family = psutil.Process(run.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            continue
        mine = [held[process.pid] for process in family if process.pid in held]
        if mine:
            run.driver_gib = round(max(run.driver_gib or 0, sum(mine)), 2)


def run_all(runs, options, total, allocator, scratch, finished):
    """Run them all, several at a time; `finished(entry)` is called after each."""
    waiting, running, last = list(runs), [], 0.0
    end = time.perf_counter() + 60 * options.limit
    while waiting or running:
        if time.perf_counter() > end:
            stop(running, f"stopped after {options.limit:g} minutes,")
            for run in waiting:
                run.killed = f"not begun within {options.limit:g} minutes"
                entry = collect(run)
                tell(run)
                finished(entry)
            waiting = []
        used = sum(run.share for run in running)
        for run in list(waiting):
            fits = not running or used + run.share <= total
            if len(running) < options.jobs and fits:
                waiting.remove(run)
                running.append(run)
                used += run.share
                fraction = min(1.0, CAPS_GIB[run.profile] / total)
                launch(run, options, scratch, fraction, allocator)
        for run in running:
            run.beside = max(run.beside, len(running) - 1)
        time.sleep(0.5)
        if not options.rehearse and time.perf_counter() - last > 1:
            measure_driver(running)
            last = time.perf_counter()
        for run in list(running):
            if run.process.poll() is not None:
                running.remove(run)
                entry = collect(run)
                tell(run)
                finished(entry)


def write(record, out):
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    partial.replace(out)


def main(arguments=None):
    """Returns: the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "twin", type=Path, help="a folder made by course_utils.models.random_weights"
    )
    parser.add_argument("--profiles", nargs="+", choices=CAPS_GIB, default=[*CAPS_GIB])
    parser.add_argument("--only", nargs="+", default=[], metavar="NN")
    parser.add_argument("--jobs", type=int, default=6, help="notebooks at a time")
    parser.add_argument("--pairs", type=int, default=16, help="COURSE_PAIRS")
    parser.add_argument("--limit", type=float, default=60, help="minutes for all")
    parser.add_argument("--out", type=Path, help="the record; by default the course's")
    parser.add_argument("--add", action="store_true", help="keep the record's others")
    parser.add_argument("--keep", type=Path, help="folder for the executed notebooks")
    parser.add_argument("--scratch", type=Path, help="folder to work in")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    for hidden in ("--one", "--folder", "--fraction"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.twin = options.twin.resolve()
    if options.one:
        folder = Path(options.folder)
        run_one(
            Path(options.one),
            options.profiles[0],
            folder,
            float(options.fraction),
            folder / "result.json",
            options.keep,
        )
        return 0
    return run_and_record(parser, options)


def run_and_record(parser, options):
    """All runs and their record. Returns: the process's exit status."""
    import torch

    from course_utils import recorded
    from course_utils.course import notebooks, running
    from course_utils.setup import places

    start = time.perf_counter()
    config = options.twin / "config.json"
    if not config.is_file():
        parser.error(
            f"{options.twin} holds no config.json; make it with "
            "`python -m course_utils.models.random_weights FOLDER`"
        )
    twin = json.loads(config.read_text(encoding="utf-8")).get("random_weights")
    cuda = torch.cuda.is_available()
    if options.rehearse and options.out is None:
        parser.error("--rehearse needs --out: its record is not the course's")
    if not options.rehearse and not cuda:
        parser.error("no CUDA GPU here; --rehearse runs without one")
    total = torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else 80.0
    smallest = min(CAPS_GIB[profile] for profile in options.profiles)
    allocator = allocator_variable(smallest, total) if cuda else None
    out = options.out or places.PACKAGE / "recorded" / "gpu_notebooks.json"
    if options.keep:
        options.keep = options.keep.resolve()
        options.keep.mkdir(parents=True, exist_ok=True)
    texts = running.chosen(notebooks.text_files(ROOT), options.only)
    order = {number: place for place, number in enumerate(LONGEST_FIRST)}
    texts.sort(key=lambda text: order.get(text.name[:2], -1))
    runs = [Run(text, profile) for text in texts for profile in options.profiles]
    before = json.loads(out.read_text("utf-8")) if options.add else {"runs": []}
    mine = {(run.text.stem, run.profile) for run in runs}
    entries = [
        old for old in before["runs"] if (old["notebook"], old["profile"]) not in mine
    ]
    only = "".join(f" {name}" for name in options.only)
    command = (
        f"python tests/benchmarks/run_notebooks.py TWIN --profiles "
        f"{' '.join(options.profiles)} --jobs {options.jobs} --pairs {options.pairs}"
        + (f" --add --only{only}" if options.add else "")
    )
    capped = "torch.cuda.set_per_process_memory_fraction"
    capped += f" and {allocator}" if allocator else " (a process of a notebook's: not)"

    def finished(entry):
        entries.append(entry)
        entries.sort(key=lambda e: (e["notebook"], [*CAPS_GIB].index(e["profile"])))
        head = recorded.describe_run(command, start)
        write(
            {
                **head,
                "twin": twin or "not random",
                "data": "world",
                "pairs": options.pairs,
                "jobs": options.jobs,
                "caps_gib": CAPS_GIB,
                "capped_by": capped if cuda else "not capped: no GPU",
                "rehearsal": options.rehearse,
                "runs": entries,
            },
            out,
        )

    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        run_all(runs, options, total, allocator, Path(scratch), finished)
    broke = [run for run in runs if not run.result["ok"]]
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(runs) - len(broke)} of {len(runs)} ran, in {minutes:.1f} min: {out}")
    for run in broke:
        print(f"broke: {run.profile} {run.text.stem}: {run.result['error']}")
    return int(bool(broke))


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
