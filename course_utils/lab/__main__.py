"""Repeats a sweep behind recorded lab figures: `python -m course_utils.lab`."""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from course_utils import recorded
from course_utils.lab.base import BASE_MODEL
from course_utils.lab.ladder import ladder_jobs
from course_utils.lab.runs import jobs, leave_one_out_jobs, run
from course_utils.setup import folders, places
from course_utils.setup.printing import print_safely

RECORDED = places.PACKAGE / "recorded"
SWEEPS = {  # name: (its jobs, how many seeds)
    "lab_findings": (jobs, 3),
    "leave_one_out": (leave_one_out_jobs, 3),
    "ladder": (ladder_jobs, 5),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sweep", choices=SWEEPS, default="lab_findings")
    parser.add_argument("--seeds", type=int, help="instead of the sweep's own number")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--base", type=Path, default=BASE_MODEL)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument("--out", type=Path, help="instead of the package's own record")
    options = parser.parse_args(arguments)
    make_jobs, usual_seeds = SWEEPS[options.sweep]
    seeds = options.seeds or usual_seeds
    partial = options.only or options.base != BASE_MODEL or seeds != usual_seeds
    if partial and options.out is None:
        parser.error(
            "these runs are not the entire sweep: name another file with --out"
        )
    start = time.perf_counter()
    runs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(
            options.processes, maxtasksperchild=4
        ) as pool,
    ):
        for stage in make_jobs(seeds, folder, options.base):
            stage = [job for job in stage if options.only in job["name"]]
            for done in pool.imap_unordered(run, stage):
                runs.append(done)
                print(
                    f"{done['name']}, seed {done['seed']}: accuracy "
                    f"{done['accuracy']:.2f}, good sampled "
                    f"{done['sampled']['good']:.2f}, greedy "
                    f"{done['greedy']['good']:.2f}, {done['minutes']} min",
                    flush=True,
                )
    command = f"python -m course_utils.lab --sweep {options.sweep}" + (
        f' --only "{options.only}"' * bool(options.only)
    )
    record = recorded.describe_run(command, start)
    record["base"] = options.base.name
    record["runs"] = sorted(runs, key=lambda r: (r["name"], r["seed"]))
    out = options.out or RECORDED / f"{options.sweep}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    folders.write_json(out, record)
    print(f"wrote {out.name} in {record['minutes']} minutes")


if __name__ == "__main__":
    print_safely()
    main()
