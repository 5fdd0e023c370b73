"""Does a faster trainer learn the same? Losses of single steps, against float32.

    python tests/gpu/bench_precision.py --shape llama3-8b --checkpoint FOLDER
    python tests/gpu/bench_precision.py --shape tiny --json FILE    (rehearsal on a CPU)

All arms train the same 4-bit weights from the same adapter on the same pairs. The first
is TRL's trainer with float32 arithmetic: what rounding to 16 bit does to the others is
how far they are from it. The learning rate is the recipe's times --faster, so that some
steps learn enough for a difference to show.
"""

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

# Read when the libraries are first imported.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from course_utils import profiles, quiet

profiles.stay_offline()
quiet.hide_library_chatter()
import bench_orpo  # noqa: E402
import bench_parts  # noqa: E402
import torch  # noqa: E402

from course_utils import records  # noqa: E402
from course_utils.fast import Levers  # noqa: E402

REFERENCE = "TRL, float32"
_PLAIN = bench_parts.ladder(Levers())["packed rows"]
_FUSED = replace(_PLAIN, fused_lora=True)
ARMS = {
    "TRL, bf16": None,
    "packed rows, bf16": _PLAIN,
    "+ fused LoRA": _FUSED,
    "+ fused LoRA, residual in float32": replace(_FUSED, residual_in_float32=True),
}


def main(arguments=None):
    """Returns: the record that --json writes."""
    start = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    shape = bench_parts.SHAPES[options.shape]
    lengths = bench_orpo.lengths_of(options, shape)
    rate = options.faster * bench_parts.RECIPE["learning_rate"]
    fast = {"fast": shape.fast, "lean": shape.lean}
    runs = {REFERENCE: (False, None)}
    runs |= {name: (True, levers) for name, levers in (ARMS | fast).items()}
    losses = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = options.checkpoint or f"{scratch}/twin"
        for in_16_bit in (False, True):
            changes = shape.changes | {
                "bf16": in_16_bit, "learning_rate": rate, "logging_steps": 1,
                "lr_scheduler_type": "constant", "warmup_steps": 0,
            }  # fmt: skip
            prepared = bench_parts.Prepared(
                replace(shape, changes=changes), checkpoint, lengths, options.seed
            )
            for name in [n for n, (bf16, _) in runs.items() if bf16 == in_16_bit]:
                for seed in range(options.seed, options.seed + options.seeds):
                    result = bench_parts.run_arm(
                        prepared, runs[name][1], {}, 1, options.steps - 1, seed,
                        Path(scratch) / "run",
                    )  # fmt: skip
                    losses[name].append(result[0]["losses"])
                    print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
                record = records.describe_run(command(arguments), start) | {
                    "shape": options.shape,
                    "recipe": prepared.recipe,
                    "seeds": options.seeds,
                    "steps": options.steps,
                    "lengths": bench_orpo.describe_lengths(lengths, prepared),
                    "losses": losses,
                }
                if options.json:
                    bench_orpo.save(record, options.json)
            del prepared
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    print(table(record))
    return record


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    twins = [name for name, shape in bench_parts.SHAPES.items() if shape.twin]
    parser.add_argument("--shape", choices=twins, required=True)
    parser.add_argument("--checkpoint", help="the twin's folder; written if absent")
    parser.add_argument("--pairs", type=int, default=64, help="different pairs")
    parser.add_argument("--lengths", help="JSON list of [prompt, chosen, rejected]")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="adapters, data orders")
    parser.add_argument("--faster", type=float, default=1, help="learning rate, times")
    parser.add_argument("--json", help="file for everything that was measured")
    options = parser.parse_args(arguments)
    if options.steps < 2 or options.seeds < 1:
        parser.error("--steps must be at least 2, --seeds at least 1")
    return options


def command(arguments):
    """The command line, with names in the place of one machine's paths."""
    return bench_orpo.command(arguments).replace("bench_orpo", "bench_precision")


def apart(losses):
    """{arm: [(mean loss, mean difference from float32) of each seed]}"""
    out = {}
    for name, runs in losses.items():
        out[name] = []
        for run, expected in zip(runs, losses[REFERENCE], strict=True):
            gaps = [a - b for a, b in zip(run, expected, strict=True)]
            out[name].append((sum(run) / len(run), sum(gaps) / len(gaps)))
    return out


def table(record):
    """The results as text, one line an arm and seed."""
    lines = [f"{'arm':36s} {'mean loss':>10s} {'- float32':>10s}  step by step"]
    for name, rows in apart(record["losses"]).items():
        for seed, (mean, gap) in enumerate(rows):
            run = record["losses"][name][seed]
            expected = record["losses"][REFERENCE][seed]
            steps = (f"{a - b:+.4f}" for a, b in zip(run, expected, strict=True))
            lines.append(f"{name:36s} {mean:10.5f} {gap:+10.5f}  {' '.join(steps)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
