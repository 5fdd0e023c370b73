"""What a busy neighbour costs a training step, with and without the course's settings.

    python tests/benchmarks/bench_threads.py --record

Each run is a process of its own that trains the lab's model for a few seconds, beside
0, 1 or 2 processes that only count. Settings: OpenMP's defaults; threads that sleep
while they wait; what `course_utils.setup.threads` chooses.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

STEP = """
import os, sys, time
if sys.argv[2] == "chosen":
    from course_utils.setup import threads
    threads.use_free_cores()
import torch
from transformers import AutoModelForCausalLM
from course_utils.setup import profiles
model = AutoModelForCausalLM.from_pretrained(profiles.lab_model_folder())
model = model.float()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(1000, (16, 80), generator=torch.Generator().manual_seed(0))

def step():
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()

step()
start, steps = time.perf_counter(), 0
while time.perf_counter() - start < float(sys.argv[1]):
    step()
    steps += 1
print(steps / (time.perf_counter() - start), torch.get_num_threads())
"""
COUNT = "while True: pass"
SETTINGS = {
    "OpenMP's defaults": {},
    "waiting threads sleep": {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
    "chosen by the course": {},
}
NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def steps_per_second(setting: str, seconds: float) -> tuple[float, int]:
    """(steps per second, threads) of one run in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in NAMES}
    environment |= SETTINGS[setting] | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    choice = "chosen" if setting == "chosen by the course" else "as set"
    command = [sys.executable, "-c", STEP, str(seconds), choice]
    done = subprocess.run(
        command,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    rate, threads = done.stdout.split()[-2:]
    return round(float(rate), 3), int(threads)


def main(arguments=None) -> dict:
    """Measure, print a table. Returns: the record; --record keeps it."""
    from course_utils import recorded

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--record", action="store_true", help="keep it as recorded")
    options = parser.parse_args(arguments)
    start, runs = time.perf_counter(), []
    for neighbours in options.neighbours:
        busy = [
            subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(neighbours)
        ]
        try:
            for number in range(options.rounds):
                for setting in SETTINGS:
                    rate, threads = steps_per_second(setting, options.seconds)
                    run = {
                        "neighbours": neighbours,
                        "setting": setting,
                        "round": number,
                    }
                    runs.append({**run, "steps_per_second": rate, "threads": threads})
                    print(*runs[-1].values(), flush=True)
        finally:
            for process in busy:
                process.kill()
                process.wait()
    command = "python tests/benchmarks/bench_threads.py --record"
    record = {**recorded.describe_run(command, start), "runs": runs}
    if options.record:
        path = ROOT / "course_utils" / "recorded" / "threads.json"
        text = json.dumps(record, indent=1) + "\n"
        path.write_text(text, encoding="utf-8", newline="\n")
    return record


if __name__ == "__main__":
    main()
