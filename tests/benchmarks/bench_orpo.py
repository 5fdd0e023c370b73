"""How fast is ORPO? TRL's trainer, the fast one, and the fast one without each lever.

    python tests/benchmarks/bench_orpo.py --shape lab --rounds 8
    python tests/benchmarks/bench_orpo.py --shape llama3-8b --checkpoint DIR --arms all
    python tests/benchmarks/bench_orpo.py --shape tiny --arms all   (rehearsal on a CPU)

All arms run in one process, in turns, round after round. Prints a table; --json keeps
everything that was measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

# Read when the libraries are first imported.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from course_utils.setup import profiles, quiet

profiles.stay_offline()
quiet.hide_library_chatter()
import bench_parts  # noqa: E402
import torch  # noqa: E402
from scipy import stats  # noqa: E402

from course_utils import recorded  # noqa: E402
from course_utils.setup.printing import print_safely  # noqa: E402

DEFAULT_ARMS = ("stock", "fast")
UNSLOTH = "unsloth"
GROUPS = {
    "all": list,
    "ladder": lambda _: list(bench_parts.LADDER),
    "ablations": lambda arms: [
        name
        for name in arms
        if name.startswith("fast, ") and name != bench_parts.IN_STOCK_MEMORY
    ],
}


def main(arguments=None):
    """Returns: the record that --json writes."""
    start = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    shape = bench_parts.SHAPES[options.shape]
    if options.max_length:
        changes = shape.changes | {"max_length": options.max_length}
        shape = replace(shape, changes=changes)
    arms = bench_parts.arms(shape)
    chosen = pick(options.arms, arms)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        options.checkpoint = options.checkpoint or str(scratch / "twin")
        lengths = lengths_of(options, shape)
        peak = bench_parts.measured_flops_per_second()
        results, failures, prepared = {}, {}, None
        for number in range(options.rounds):
            for name in [name for name in chosen if name not in failures]:
                try:
                    if name == UNSLOTH:
                        result = run_unsloth(options, shape, lengths, scratch)
                    else:
                        prepared = prepared or bench_parts.Prepared(
                            shape,
                            options.checkpoint,
                            lengths,
                            options.seed,
                            four_bit=not options.sixteen_bit,
                        )
                        result = bench_parts.run_arm(
                            prepared,
                            *arms[name],
                            options.warmup,
                            options.steps,
                            options.seed,
                            scratch / "run",
                            options.laps,
                            options.profile,
                        )
                except Exception as error:  # the others' results are not to be lost
                    if options.rounds == 1 and len(chosen) == 1:
                        raise
                    traceback.print_exc()
                    failures[name] = f"{type(error).__name__}: {error}"[:500]
                    results.pop(name, None)
                    prepared = None  # its model may be left half patched
                    continue
                results.setdefault(name, []).extend(result)
                seconds = ", ".join(f"{lap['seconds']:.2f} s" for lap in result)
                note = f"round {number + 1}: {name}, {seconds}"
                print(note, file=sys.stderr, flush=True)
                record = recorded.describe_run(command(arguments), start) | {
                    "shape": options.shape,
                    "recipe": bench_parts.RECIPE | shape.changes,
                    "four_bit": not options.sixteen_bit,
                    "fast_config": {
                        name: getattr(arms[name][0], "__dict__", arms[name][0])
                        for name in results
                        if name in arms
                    },
                    "seed": options.seed,
                    "threads": torch.get_num_threads(),
                    "warmup_steps": options.warmup,
                    "steps": options.steps,
                    "laps": options.laps,
                    "lengths": describe_lengths(lengths, prepared),
                    "matrix_flops_per_second": peak,
                    "rounds": results,
                    "failures": failures,
                }
                record["arms"] = summarise(results, peak)
                if options.json:  # after each arm, so that a time limit loses nothing
                    save(record, options.json)
    print(table(record))
    if failures:
        raise SystemExit(f"failed: {failures}")
    return record


def save(record, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    half.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    half.replace(path)


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=bench_parts.SHAPES, required=True)
    parser.add_argument(
        "--arms",
        nargs="+",
        default=DEFAULT_ARMS,
        help="names, all, ladder, ablations, unsloth",
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock")
    parser.add_argument("--steps", type=int, default=6, help="steps on the clock")
    parser.add_argument(
        "--laps", type=int, default=1, help="times that a training is timed in a row"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads for torch")
    parser.add_argument("--pairs", type=int, default=64, help="different pairs")
    parser.add_argument("--lengths", help="JSON list of [prompt, chosen, rejected]")
    parser.add_argument("--max-length", type=int, help="tokens (default: the shape's)")
    parser.add_argument(
        "--sixteen-bit", action="store_true", help="LoRA on 16-bit weights, not NF4"
    )
    parser.add_argument("--checkpoint", help="the twin's folder; written if absent")
    parser.add_argument("--unsloth-path", help="folder with unsloth and its needs")
    parser.add_argument(
        "--profile",
        action="store_true",
        help="some steps more an arm, to see what the device does (not Unsloth's)",
    )
    parser.add_argument("--json", help="file for everything that was measured")
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.laps) < 1 or options.warmup < 0:
        parser.error("--rounds, --steps and --laps must be >= 1, --warmup >= 0")
    return options


def pick(wanted, arms):
    """The arms asked for. Raises SystemExit for an unknown one, naming the others."""
    groups = [GROUPS[name](arms) if name in GROUPS else [name] for name in wanted]
    wanted = [name for group in groups for name in group]
    unknown = [name for name in wanted if name not in arms and name != UNSLOTH]
    if unknown:
        known = ", ".join(f"{name!r}" for name in [*arms, UNSLOTH])
        raise SystemExit(f"There is no arm {unknown[0]!r}; there are {known}.")
    return list(wanted)


def lengths_of(options, shape):
    """The pairs' lengths, or None for the lab, which has pairs of its own."""
    if shape.twin is None:
        return None
    if options.lengths:
        return bench_parts.read_lengths(options.lengths)
    most = (bench_parts.RECIPE | shape.changes)["max_length"]
    return bench_parts.draw_lengths(options.pairs, shape.scale, most, options.seed)


def describe_lengths(lengths, prepared):
    """Number of pairs and mean tokens of what they consist of."""
    if lengths is None:
        return {"pairs": len(prepared.rows), "source": "the lab's training pairs"}
    columns = zip(*lengths, strict=True)
    means = [sum(column) / len(lengths) for column in columns]
    names = ("prompt", "chosen", "rejected")
    return {"pairs": len(lengths), **dict(zip(names, means, strict=True))}


def command(arguments):
    """The command line, with names in the place of one machine's paths."""
    of_paths = {
        "--checkpoint": "TWIN",
        "--json": "FILE",
        "--unsloth-path": "FOLDER",
        "--lengths": "LENGTHS",
    }
    words = ["python tests/benchmarks/bench_orpo.py"]
    for before, word in zip(["", *arguments], arguments, strict=False):
        words.append(of_paths.get(before) or (f'"{word}"' if " " in word else word))
    return " ".join(words)


def run_unsloth(options, shape, lengths, scratch, start=None):
    """Unsloth patches the libraries it imports, so it runs in a process of its own.

    start: file of the adapter to start from; then what it learns is kept and judged.
    """
    if shape.twin is None or not Path(options.checkpoint).is_dir():
        raise SystemExit("unsloth needs a twin: write it first, and name --checkpoint.")
    vocabulary = bench_parts.random_weights.SHAPES[shape.twin]["vocab_size"]
    bench_parts.word_tokenizer(vocabulary).save_pretrained(scratch / "tokenizer")
    job = scratch / "unsloth.json"
    settings = {
        "checkpoint": options.checkpoint,
        "seed": options.seed,
        "warmup": options.warmup,
        "steps": options.steps,
        "laps": options.laps,
        # As many as the profiled arms take, whose mean loss stands beside this one.
        "more_steps": options.profile * bench_parts.KernelLog.PROFILED,
        "recipe": bench_parts.RECIPE | shape.changes,
        "four_bit": not options.sixteen_bit,
        "rows": bench_parts.random_pairs(lengths, vocabulary, options.seed),
        "tokenizer": str(scratch / "tokenizer"),
        "folder": str(scratch / "unsloth"),
        "start": start,
    }
    job.write_text(json.dumps(settings), encoding="utf-8")
    environment = dict(os.environ)
    if options.unsloth_path:
        environment["PYTHONPATH"] = options.unsloth_path
    script = Path(__file__).with_name("bench_unsloth.py")
    done = subprocess.run(
        [sys.executable, str(script), str(job)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        encoding="utf-8",
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


# ---- results ----


def median_with_interval(values):
    """{"median", "low", "high", "n"} of a figure over rounds and laps.

    A median, because other programs on the machine slow single rounds down at will. The
    95 % interval lies between two of the sorted values (the binomial distribution says
    which) and needs six rounds; with fewer, low and high are None.
    """
    ordered, n = sorted(values), len(values)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    low = high = None
    if n >= 6:
        outside = int(stats.binom.ppf(0.025, n, 0.5))
        low, high = ordered[outside - 1], ordered[n - outside]
    return {"median": middle, "low": low, "high": high, "n": n}


def summarise(results, flops_per_second):
    """What the table shows, for each arm."""
    first = results.get("stock")
    summary = {}
    for name, rounds in results.items():
        row = {
            "seconds_per_1000_pairs": median_with_interval(
                [1000 * r["seconds"] / r["pairs"] for r in rounds]
            ),
            "tokens_per_second": median_with_interval(
                [r["tokens"] / r["seconds"] for r in rounds]
            ),
            "warmup_seconds": median_with_interval(
                [r["warmup_seconds"] for r in rounds if "warmup_seconds" in r]
            ),
            "mean_loss": [r["mean_loss"] for r in rounds if "mean_loss" in r][-1],
            "peak_gib": max(r.get("peak_gib") or 0 for r in rounds) or None,
        }
        if "flops" in rounds[0]:
            row["share_of_floor"] = median_with_interval(
                [r["flops"] / flops_per_second / r["seconds"] for r in rounds]
            )
        if first is not None:
            # Of a round the arms run close together in time, of a lap they train the
            # same pairs: so compare within these.
            for kind in ("seconds", "cpu_seconds"):
                row[f"times_faster_in_{kind}"] = median_with_interval(
                    [
                        (a[kind] / a["pairs"]) / (b[kind] / b["pairs"])
                        # in a round that is not over, some arms have one result less
                        for a, b in zip(first, rounds, strict=False)
                    ]
                )
        summary[name] = row
    return summary


def shown(value, digits):
    if value is None:
        return "-"
    if value["low"] is None:
        return f"{value['median']:.{digits}f}"
    spread = f"{value['low']:.{digits}f}-{value['high']:.{digits}f}"
    return f"{value['median']:.{digits}f} [{spread}]"


def table(record):
    """The results as text, one line per arm."""
    heads = (
        "arm",
        "s per 1,000 pairs",
        "x faster",
        "x less CPU",
        "tokens/s",
        "of floor",
        "warm-up s",
        "peak GiB",
        "mean loss",
    )
    lines = [heads]
    for name, row in record["arms"].items():
        peak = row["peak_gib"]
        lines.append(
            (
                name,
                shown(row["seconds_per_1000_pairs"], 1),
                shown(row.get("times_faster_in_seconds"), 2),
                shown(row.get("times_faster_in_cpu_seconds"), 2),
                shown(row["tokens_per_second"], 0),
                shown(row.get("share_of_floor"), 2),
                shown(row["warmup_seconds"], 1),
                "-" if peak is None else f"{peak:.2f}",
                f"{row['mean_loss']:.5f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    body = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    ]
    rounds = max(map(len, record["rounds"].values()))
    note = (
        f"{record['shape']} on {record['machine']}, {record['threads']} of them for "
        f"torch {record['versions']['torch']}, {record['steps']} steps per round, "
        f"medians and 95 % intervals of {rounds} rounds or laps"
    )
    return "\n".join([note, *(line.rstrip() for line in body)])


if __name__ == "__main__":
    print_safely()
    main()
