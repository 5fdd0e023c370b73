"""How long the mix takes at the real sources' size.

    python tests/benchmarks/bench_mixing.py

Writes synthetic rows with the real sources' columns, numbers of rows and lengths of
text, one row in 50 twice, to a temporary folder. Builds the mix from there in a process
of its own, near duplicates and contamination included, `--runs` times, and prints
seconds, CPU seconds and peak memory. Then come mixes of `--rows` rows with texts a
tenth as long, to see whether time is linear. `--record` writes
course_utils/recorded/mix_speed.json.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, disable_progress_bars
from pyarrow import parquet

from course_utils import recorded
from course_utils.data import sources
from course_utils.setup import places
from course_utils.setup.printing import print_safely

RECORD = places.PACKAGE / "recorded" / "mix_speed.json"
# Characters an answer and a prompt have at the median; with the log-normal spread below
# the files come to about the sizes that the sources' own cards state.
ANSWER, PROMPT, SPREAD = 1_200, 300, 0.8
TURNS = {"capybara": 3}
BATCH = 2_000  # rows written at a time
BUILD = """
import json, resource, sys, time
from datasets import disable_progress_bars
from course_utils.data import mixing
disable_progress_bars()
folder, near = sys.argv[1], json.loads(sys.argv[2])
start, before = time.perf_counter(), time.process_time()
mix = mixing.build(
    folder, evaluation_pairs=800, version="v1.2", near_duplicates=near,
    benchmarks={"questions": f"{folder}/questions.txt"},
)
seconds = time.perf_counter() - start
usage = [resource.getrusage(who) for who in
         (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
counts = {}
for row in mix.report:
    for key, value in row.items():
        if key != "source":
            counts[key] = counts.get(key, 0) + value
print(json.dumps({"seconds": seconds,
                  "cpu_seconds": time.process_time() - before
                  + usage[1].ru_utime + usage[1].ru_stime,
                  "peak_gib": [u.ru_maxrss / 2**20 for u in usage],
                  "pairs": len(mix.train) + len(mix.evaluation), "counts": counts}))
"""


class Writer:
    """Texts of the right lengths, with words as unevenly frequent as ours."""

    def __init__(self, seed, shrink=1):
        self.shrink = shrink
        self.rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self.vocabulary = [
            "".join(self.rng.choices(letters, k=self.rng.randint(2, 9)))
            for _ in range(20_000)
        ]
        ranks = np.arange(1, len(self.vocabulary) + 1)
        self.weights = np.cumsum(1 / ranks).tolist()

    def text(self, median):
        size = median * self.rng.lognormvariate(0, SPREAD)
        count = max(3, round(size / 6.5 / self.shrink))
        return " ".join(
            self.rng.choices(self.vocabulary, cum_weights=self.weights, k=count)
        )


def row_of(card, writer, number, share):
    """One row in the card's columns; `share` of the rows pass the card's rule."""
    good = writer.rng.random() < share
    said = []
    for _ in range(TURNS.get(card.source, 1)):
        said += [("user", writer.text(PROMPT)), ("assistant", writer.text(ANSWER))]
    said = said[:-1]
    answers = {side: writer.text(ANSWER) for side in ("chosen", "rejected")}
    row = {}
    for name, feature in card.columns.items():
        kind = sources.data_cards.kind_of(feature)
        side = "rejected" if "rejected" in name else "chosen"
        if kind == "messages":
            turns = [*said, ("assistant", answers[side])]
            row[name] = [{"role": r, "content": c} for r, c in turns]
        elif name in card.mapped:
            row[name] = answers[side] if side in name else said[-1][1]
        elif kind == "numbers":
            row[name] = 10 if good and side == "chosen" else 1
        elif kind == "yes or no":
            row[name] = not good
        elif kind == "text":
            row[name] = f"{name} {number}"
        else:
            row[name] = []
    return row


def write_sources(folder, rows_of, shrink, seed=11):
    """Parquet files of the seven sources. rows_of: {source: rows}. Returns: bytes."""
    writer, size = Writer(seed, shrink), 0
    for name, card in sources.cards(version="v1.2").items():
        share = (card.kept("v1.2") or 1) / (card.rows or 1)
        path = Path(folder) / f"{name}.parquet"
        schema = Features(card.columns).arrow_schema
        with parquet.ParquetWriter(path, schema) as file:
            for at in range(0, rows_of[name], BATCH):
                numbers = range(at, min(at + BATCH, rows_of[name]))
                rows = [row_of(card, writer, number, share) for number in numbers]
                for number in range(1, len(rows), 50):
                    rows[number] = rows[number - 1]  # so that there are repeats to find
                file.write_table(pa.Table.from_pylist(rows, schema=schema))
        size += path.stat().st_size
    return size


def measure(rows_of, near, tests, shrink=1, times=1):
    """Yields what `times` mixes of the same rows took, for each search in `near`.

    Each is built in a new process with an empty cache. cpu_seconds: of the process and
    its children; they depend little on what else the machine does.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = write_sources(folder, rows_of, shrink)
        (Path(folder) / "questions.txt").write_text("\n".join(tests), encoding="utf-8")
        for number, search in itertools.product(range(times), near):
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as cache:
                done = subprocess.run(
                    [sys.executable, "-c", BUILD, folder, json.dumps(search)],
                    env={**os.environ, "HF_HOME": cache, "HF_HUB_OFFLINE": "1"},
                    capture_output=True,
                    text=True,
                    encoding="utf-8",
                )
            if done.returncode:
                raise RuntimeError(done.stderr)
            yield {
                "near_duplicates": search,
                "texts_shortened": shrink,
                "run": number + 1,
                "rows": sum(rows_of.values()),
                "parquet_mib": written / 2**20,
                **json.loads(done.stdout.splitlines()[-1]),
                "whole_process_seconds": time.perf_counter() - start,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[10**5, 3 * 10**5, 10**6]
    )
    parser.add_argument("--runs", type=int, default=5, help="of the real size")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    disable_progress_bars()
    start = time.perf_counter()
    cards = sources.cards(version="v1.2")
    total = sum(card.rows for card in cards.values())
    writer = Writer(3)
    tests = [writer.text(PROMPT) for _ in range(2_600)]
    real = {name: card.rows for name, card in cards.items()}
    plan = [(real, (False, 0.8), 1, options.runs)]
    for rows in options.rows:
        shares = {name: -(-card.rows * rows // total) for name, card in cards.items()}
        plan.append((shares, (0.8,), 10, 1))
    runs = []
    for rows_of, near, shrink, times in plan:
        for made in measure(rows_of, near, tests, shrink, times):
            runs.append(made)
            print(json.dumps(made), flush=True)
    if options.record:
        command = "python tests/benchmarks/bench_mixing.py " + " ".join(sys.argv[1:])
        record = {**recorded.describe_run(command.strip(), start), "runs": runs}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print_safely()
    main()
