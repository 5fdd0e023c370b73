"""One GPU against N of one host: the same losses, how much faster, and a kill.

    python -m course_utils.models.random_weights TWIN
    python tests/benchmarks/bench_scaling.py TWIN --gpus 1 2 4
    python tests/benchmarks/bench_scaling.py TWIN --rehearse --out FILE   (on a CPU)

Everything runs through `python -m course_utils.training` and the shipped
configurations, in processes of its own. Timed runs have the host to themselves; what is
not timed runs side by side.

The record is written after every part, so that a time limit loses nothing. A part that
fails is recorded with its error, the others still run, and the exit status is 1; --add
runs again what failed, and keeps the rest.
"""

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import psutil

from course_utils.setup.printing import print_safely
from course_utils.training.options import config_path

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "course_utils" / "recorded" / "scaling.json"
# bf16 keeps 8 bits, and other rows of pairs round otherwise.
TOLERANCE = 0.004
KILLED, RESUMED = "one process killed", "resumed on fewer GPUs"
ONE_16_BIT, FSDP = "1 GPU, 16 bit", "FSDP2, 16 bit"
LOADED, EXCHANGE = "FSDP2's checkpoint on 1 GPU", "exchange of gradients"


@dataclass(frozen=True)
class Sizes:
    """batch: pairs per step; micro_batch: at a time; warmup: steps before the clock.

    *_saved: the step after which a run keeps its checkpoint. scale: the speed
    benchmark's lengths are divided by this.
    """

    batch: int = 64
    micro_batch: int = 4
    steps: int = 9
    warmup: int = 3
    fsdp_steps: int = 5
    fsdp_saved: int = 4
    killed_steps: int = 12
    killed_saved: int = 3
    scale: int = 1


REHEARSAL = Sizes(
    batch=8,
    micro_batch=1,
    steps=3,
    warmup=1,
    fsdp_steps=3,
    fsdp_saved=2,
    killed_steps=8,
    killed_saved=2,
    scale=64,
)


def main(arguments: list[str] | None = None) -> int:
    """Returns: the process's exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    if options.loss_of:
        return print_loss_of(options)
    # So that the processes that it started end with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    bench = Bench(options, arguments)
    with tempfile.TemporaryDirectory() as scratch:
        bench.folder = Path(scratch)
        bench.run()
    print(table(bench.record))
    failed = [n for n, part in bench.record["parts"].items() if "error" in part]
    for name in failed:
        print(f"FAILED {name}: {bench.record['parts'][name]['error']}")
    return 1 if failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "twin", type=Path, help="folder of course_utils.models.random_weights"
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--limit", type=float, default=400, help="seconds in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"default: {RECORD.name}, recorded")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU; needs --out")
    parser.add_argument("--add", action="store_true", help="keep parts that are done")
    parser.add_argument("--logs", type=Path, help="keep what the processes print here")
    parser.add_argument("--loss-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pairs-file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.twin / "config.json").is_file():
        parser.error(
            f"{options.twin} holds no twin: python -m "
            "course_utils.models.random_weights FOLDER"
        )
    if options.rehearse and not options.out:
        parser.error("a rehearsal is no result: name its file with --out")
    options.out = options.out or RECORD
    options.sizes = REHEARSAL if options.rehearse else Sizes()
    options.gpus = sorted({1, *options.gpus})
    own = options.sizes.batch // options.sizes.micro_batch
    if len(options.gpus) < 2 or any(n < 1 or own % n for n in options.gpus):
        parser.error(
            f"--gpus {options.gpus}: name more than one, each a divisor of {own}, so "
            "that every process has whole micro-batches"
        )
    return options


class Failed(RuntimeError):
    """A part of the benchmark did not do what it should."""


def ddp(count: int) -> str:
    return f"{count} GPUs, DDP" if count > 1 else "1 GPU"


class Bench:
    """The parts, and the record that grows with them."""

    def __init__(self, options, arguments):
        self.options = options
        self.most = max(options.gpus)
        self.start = time.perf_counter()
        self.arguments = [Path(a).name if "/" in a else a for a in arguments]
        self.record = {"parts": {}}
        if options.add:
            before = json.loads(options.out.read_text(encoding="utf-8"))
            done = {n: p for n, p in before["parts"].items() if "error" not in p}
            self.record = {"fast_config": before["fast_config"], "parts": done}
        self.folder = None
        self.jobs = []

    def run(self):
        """All parts; one that fails is noted and does not stop the others."""
        try:
            self.pairs = self.write_pairs()
            self.run_parts()
        finally:
            for job in self.jobs:
                job.stop()

    def run_parts(self):
        for count in self.options.gpus:
            self.part(ddp(count), self.timed, count)
        self.part(EXCHANGE, self.exchange)
        self.disturbed_parts()

    def disturbed_parts(self):
        """What is not timed: FSDP, and beside it a kill and what follows."""
        everything = range(self.most)
        parts, arguments = self.record["parts"], self.sixteen_bit()
        if not parts.keys() >= {KILLED, RESUMED}:
            small = None if self.options.rehearse else self.write_small_twin()
        fsdp = one = None
        if not parts.keys() >= {FSDP, LOADED}:
            fsdp = self.train("fsdp", everything, *arguments, config="fsdp")
        if ONE_16_BIT not in parts:
            one = self.train("one-gpu-16-bit", [self.most - 1], *arguments)
        if not parts.keys() >= {KILLED, RESUMED}:
            whole = self.train("undisturbed", [0], *self.kept(), small=small)
            self.part(KILLED, self.killed, small)
            self.part(RESUMED, self.resumed, small, whole)
        self.part(ONE_16_BIT, self.result, one)
        self.part(FSDP, self.sharded, fsdp)
        self.part(LOADED, self.loaded, self.options.sizes.fsdp_saved)

    def part(self, name, function, *arguments):
        """Run one part, unless it is done; note what fails, and write the record."""
        if name in self.record["parts"]:
            return
        try:
            self.record["parts"][name] = function(*arguments)
            state = "done"
        except Exception as error:  # noted here; the others still run
            text = str(error) if isinstance(error, Failed) else repr(error)
            self.record["parts"][name] = {"error": text[-1500:]}
            state = "FAILED"
        print(f"{time.perf_counter() - self.start:4.0f} s  {name}: {state}", flush=True)
        self.write()

    def write(self):
        out, partial = self.options.out, self.options.out.with_suffix(".partial")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(
            json.dumps(self.head() | self.record, indent=1) + "\n", encoding="utf-8"
        )
        partial.replace(out)

    def left(self):
        """Seconds of the limit that are left, at least a few."""
        return max(5, self.options.limit - (time.perf_counter() - self.start))

    # ---- the parts ----

    def timed(self, count):
        """NF4 with the settings of the speed benchmark's fast, alone on the host."""
        sizes = self.options.sizes
        steps = ["--steps", str(sizes.steps), "--save-steps", "0"]
        job = self.train(
            f"timed-{count}",
            range(count),
            *self.common(),
            *steps,
            *self.fast_config,
            config="ddp" if count > 1 else None,
        )
        found = self.result(job)
        seconds = found["ends"][-1] - found["ends"][sizes.warmup - 1]
        pairs = sizes.batch * (sizes.steps - sizes.warmup)
        found["seconds_per_1000_pairs"] = 1000 * seconds / pairs
        return found if count == 1 else found | self.compared(found, ddp(1))

    def sharded(self, job):
        found = self.result(job)
        return found | self.compared(found, ONE_16_BIT)

    def compared(self, found, name):
        """Losses and time against those of an earlier part."""
        other = self.record["parts"].get(name, {})
        if "losses" not in other:
            raise Failed(f"{name}, to compare with, failed")
        out = same_losses(found["losses"], other["losses"], name)
        key = "seconds_per_1000_pairs"
        if key in found:
            out["scaling"] = other[key] / found[key]
            warmup = self.options.sizes.warmup
            by_rank = [rank[warmup:] for rank in found["tokens_by_step"]]
            out["scaling_if_only_uneven"] = even_share(by_rank)
        return out

    def exchange(self):
        """Seconds that the adapter's gradients take to be averaged, on all GPUs."""
        command = launcher("ddp", self.most)
        script = Path(__file__).with_name("bench_exchange.py")
        job = self.start_job("exchange", [*command, str(script)], range(self.most))
        job.wait(self.left())
        return json.loads(job.text().strip().splitlines()[-1])

    def killed(self, small):
        """Kill one process in mid-run: how and when do the others end?"""
        job = self.train(
            "killed", range(self.most), *self.kept(), config="ddp", small=small
        )
        checkpoint = f"checkpoint-{self.options.sizes.killed_saved}"
        job.wait_for(job.output / checkpoint / "complete.json", self.left())
        job.kill_rank("1")
        killed = time.perf_counter()
        try:
            status = job.process.wait(min(60, self.left()))
        except subprocess.TimeoutExpired:
            job.stop()
            raise Failed(f"the others did not end. {job.last_words()}") from None
        seconds = time.perf_counter() - killed
        said = [line for line in job.text().splitlines() if "--resume" in line]
        if status == 0 or not said:
            raise Failed(f"exit status {status}. {job.last_words()}")
        message = said[0].replace(str(self.folder), "")
        return {
            "processes": self.most,
            "exit_status": status,
            "seconds_to_end": seconds,
            "message": message,
        }

    def resumed(self, small, whole):
        """Go on on half the GPUs, and compare with an undisturbed run on one.

        whole: the Job of that run.
        """
        fewer = self.most // 2
        job = self.train(
            "killed-resumed",
            range(fewer),
            *self.kept(),
            "--resume",
            config="ddp" if fewer > 1 else None,
            small=small,
        )
        found, expected = self.result(job), self.result(whole)
        out = same_losses(found["losses"], expected["losses"], "an undisturbed run")
        kept = ("resumed_at_step", "processes", "losses")
        return out | {name: found[name] for name in kept}

    def loaded(self, step):
        """Loss of FSDP's checkpoint on one GPU, on the pairs of the step after it."""
        checkpoint = self.folder / "fsdp" / f"checkpoint-{step}"
        command = [sys.executable, __file__, str(self.options.twin.resolve())]
        command += ["--loss-of", str(checkpoint), "--pairs-file", str(self.pairs)]
        if self.options.rehearse:
            command += ["--rehearse", "--out", os.devnull]
        job = self.start_job("loaded", command, [0])
        job.wait(self.left())
        found = re.search(r"LOSS ([\d.]+)", job.text())
        if not found:
            raise Failed(f"no loss. {job.last_words()}")
        fsdp = self.record["parts"][FSDP]["losses"][step]
        losses = [float(found[1])]
        return {"losses": losses} | same_losses(losses, [fsdp], "that step under FSDP2")

    # ---- what is run ----

    def sixteen_bit(self):
        """Options of 16-bit LoRA, with one checkpoint on the way.

        Several runs share a GPU here, so none takes all the memory that it sees.
        """
        sizes = self.options.sizes
        levers = [] if self.options.rehearse else ["--lever=activation_gib=6"]
        steps = ["--steps", str(sizes.fsdp_steps)]
        saved = ["--save-steps", str(sizes.fsdp_saved)]
        return [*self.common(), "--sixteen-bit", *levers, *steps, *saved]

    def kept(self):
        """Options of the run that is killed, and of the one that is not."""
        sizes = self.options.sizes
        steps = ["--steps", str(sizes.killed_steps)]
        return [*self.common(), *steps, "--save-steps", str(sizes.killed_saved)]

    def common(self):
        sizes = self.options.sizes
        return (
            f"--profile a100 --pairs-file {self.pairs} --batch-size {sizes.batch} "
            f"--micro-batch {sizes.micro_batch} --optim adamw_torch "
            f"--learning-rate 1e-3 --logging-steps 1 --seed {self.options.seed}"
        ).split()

    def write_small_twin(self):
        """A Job that writes the twin for the kill, which needs no 32 layers."""
        folder = self.folder / "small-twin"
        command = [sys.executable, "-m", "course_utils.models.random_weights"]
        command += [str(folder), "--shape", "llama3-8b-2-layers"]
        return self.start_job("small-twin", command, [0], folder)

    def train(self, name, gpus, *arguments, config=None, small=None):
        """A Job that trains on these GPUs; with `config` a process each.

        small: the Job that wrote the twin to train, if not the whole one.
        """
        output = self.folder / name.removesuffix("-resumed")
        module = ["-m", "course_utils.training"]
        if config == "fsdp" and self.options.rehearse:
            module = [str(ROOT / "tests" / "helpers" / "train_fsdp_on_cpu.py")]
        command = launcher(config, len(gpus)) if config else [sys.executable]
        command += [*module, "--output", str(output), *arguments]
        changes = {}
        if small is not None:
            small.wait(self.left())
            # Compiling takes longer than these steps do.
            changes = {"TORCHDYNAMO_DISABLE": "1"}
            changes["COURSE_BASE_MODEL"] = str(small.output)
        return self.start_job(name, command, gpus, output, changes)

    def start_job(self, name, command, gpus, output=None, changes=None):
        job = Job(name, command, gpus, self, output, changes or {})
        self.jobs.append(job)
        return job

    def write_pairs(self):
        """A file of random pairs with the speed benchmark's lengths."""
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from course_utils.setup import quiet

        quiet.hide_library_chatter()
        import bench_parts
        import numpy as np
        import torch
        from transformers import AutoTokenizer

        from course_utils import recorded
        from course_utils.training.fast import FastTrainingConfig

        options, sizes = self.options, self.options.sizes
        shape = bench_parts.SHAPES["tiny" if options.rehearse else "llama3-8b"]
        usual = vars(FastTrainingConfig())
        self.fast_config = [
            f"--lever={name}={json.dumps(value)}"
            for name, value in vars(shape.everything or shape.fast).items()
            if value != usual[name]
        ]
        self.record.setdefault("fast_config", self.fast_config)  # of the timed parts
        run = ["python tests/benchmarks/bench_scaling.py", *self.arguments]
        self.head = lambda: recorded.describe_run(" ".join(run), self.start)
        # The chat format's own tokens need room beside these.
        lengths = bench_parts.draw_lengths(
            sizes.batch * sizes.steps, sizes.scale, 1000, options.seed
        )
        vocabulary = AutoTokenizer.from_pretrained(options.twin).get_vocab()
        words = sorted(w[1:] for w in vocabulary if re.fullmatch("Ġ[a-z]{2,}", w))
        chance = np.random.default_rng(options.seed)
        path = self.folder / "pairs.jsonl"
        with open(path, "w", encoding="utf-8") as file:
            for counts in lengths:
                prompt, chosen, rejected = (
                    " ".join(chance.choice(words, count)) for count in counts
                )
                row = {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
                file.write(json.dumps(row) + "\n")
        columns = zip(*lengths, strict=True)
        self.record["words"] = dict(
            zip(("prompt", "chosen", "rejected"), map(mean, columns), strict=True)
        )
        self.record |= {"sizes": asdict(sizes), "seed": options.seed}
        self.record["twin"] = twin_shape(options)
        self.record["gpus"] = torch.cuda.device_count()
        return path

    def result(self, job):
        """What a finished training wrote down, shortened. Raises: Failed."""
        job.wait(self.left())
        run = json.loads((job.output / "run.json").read_text(encoding="utf-8"))
        by_process = {
            name: [process[name] for process in run["by_process"]]
            for name in ("peak_gib", "loading_peak_gib", "tokens", "tokens_by_step")
        }
        kept = ("resumed_at_step", "processes", "attention", "cuda_graphs")
        return {
            "losses": [row["loss"] for row in run["log"]],
            **by_process,
            **{name: run[name] for name in kept},
            "compiled": run["compile_layers"],
            "before_training_seconds": job.seconds - run["seconds"],
            "ends": [row["seconds"] for row in run["log"]],
        }


class Job:
    """A process with its output in a file."""

    def __init__(self, name, command, gpus, bench, output, changes):
        self.name, self.output = name, output
        logs = bench.options.logs or bench.folder
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name}.log"
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "COURSE_BASE_MODEL": str(bench.options.twin.resolve()),
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
            # What one run compiles the next one finds.
            "TORCHINDUCTOR_CACHE_DIR": str(bench.folder / "inductor"),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.began, self.seconds = time.perf_counter(), None
        with open(self.log, "w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment | changes,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self):
        return self.log.read_text(errors="replace", encoding="utf-8")

    def last_words(self):
        return f"{self.name} said: {self.text()[-1200:]}"

    def wait(self, limit):
        """Raises: Failed if it does not end well within `limit` seconds."""
        try:
            status = self.process.wait(limit)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"out of time. {self.last_words()}") from None
        self.seconds = self.seconds or time.perf_counter() - self.began
        if status:
            raise Failed(f"exit status {status}. {self.last_words()}")

    def wait_for(self, path, limit):
        """Wait until a file is there. Raises: Failed if it never is."""
        until = time.perf_counter() + limit
        while not path.exists():
            if self.process.poll() is not None or time.perf_counter() > until:
                self.stop()
                raise Failed(f"there is no {path.name}. {self.last_words()}")
            time.sleep(0.02)

    def stop(self):
        """End it and everything that it started, in sessions of their own too."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def kill_rank(self, rank):
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if child.environ().get("RANK") == rank:
                child.kill()
                return
        raise Failed(f"there is no process of rank {rank}")


def launcher(config: str, processes: int) -> list[str]:
    """The command that starts `processes` processes under a shipped configuration."""
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(config_path(config)), "--main_process_port", "0"]
    return [*command, "--num_processes", str(processes)]


def same_losses(found: list[float], expected: list[float], name: str) -> dict:
    """How far losses are apart. Raises: Failed if they are not the same."""
    if len(found) != len(expected):
        raise Failed(f"{len(found)} losses, {name} has {len(expected)}")
    apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    moved = (max(expected) - min(expected)) / max(expected)
    if apart > TOLERANCE or not all(map(math.isfinite, [*found, *expected])):
        raise Failed(f"losses {found} differ from {name}: {expected}, by {apart:.2%}")
    # What the losses moved in the run, as a yardstick for the difference.
    return {
        "compared": name,
        "largest_relative_difference": apart,
        "relative_movement": moved,
    }


def even_share(tokens_by_rank: list[list[int]]) -> float:
    """Scaling if time were tokens, and each step waited for the process with most.

    tokens_by_rank: for each process, its tokens of every step. Returns: at most the
        number of processes, which it is when all have the same.
    """
    steps = list(zip(*tokens_by_rank, strict=True))
    return sum(map(sum, steps)) / sum(map(max, steps))


def mean(values):
    return math.fsum(values) / len(values)


def twin_shape(options):
    config = json.loads((options.twin / "config.json").read_text(encoding="utf-8"))
    return config.get("random_weights", "not a twin of the course")


def print_loss_of(options: argparse.Namespace) -> int:
    """In a process of its own: the loss of an adapter on the step after its last."""
    checkpoint, sizes = options.loss_of, options.sizes
    import torch

    from course_utils.setup import profiles
    from course_utils.training import options as train_options

    profiles.stay_offline()
    from course_utils.training import preparing

    step = int(checkpoint.name.rpartition("-")[2])
    asked = train_options.parse(
        f"--profile a100 --pairs-file {options.pairs_file} --sixteen-bit "
        f"--batch-size {sizes.batch} --micro-batch {sizes.micro_batch} "
        f"--optim adamw_torch --adapter {checkpoint} "
        f"--output {checkpoint.with_name('loaded')}".split()
    )
    profile = train_options.choose_profile(asked).profile
    trainer, _, _ = preparing.prepare(asked, profile, *preparing.plan(asked, profile))
    trainer.model.eval()
    each = trainer.args.gradient_accumulation_steps
    batches = islice(trainer.get_train_dataloader(), step * each, (step + 1) * each)
    kind = trainer.args.device.type
    with torch.no_grad(), torch.autocast(kind, torch.bfloat16):
        losses = [
            float(trainer.get_batch_loss_metrics(trainer.model, batch)[0])
            for batch in batches
        ]
    print(f"LOSS {mean(losses)}")
    return 0


def table(record: dict) -> str:
    """The results as text, one line per part."""
    heads = ("part", "s per 1,000 pairs", "scaling", "losses apart", "peak GiB", "note")
    lines = [heads]
    for name, part in record["parts"].items():
        if "error" in part:
            lines.append((name, "-", "-", "-", "-", "failed"))
            continue
        peaks = [f"{p:.1f}" for p in part.get("peak_gib", []) if p is not None]
        note = ""
        if "scaling_if_only_uneven" in part:
            note = f"{part['scaling_if_only_uneven']:.2f} if only pairs were uneven"
        if "seconds_to_end" in part:
            seconds, status = part["seconds_to_end"], part["exit_status"]
            note = f"ended after {seconds:.1f} s, status {status}"
        if "milliseconds" in part:
            note = f"{part['milliseconds']:.2f} ms for {part['mib']:.0f} MiB"
        lines.append(
            (
                name,
                shown(part.get("seconds_per_1000_pairs"), ".1f"),
                shown(part.get("scaling"), ".2f"),
                shown(part.get("largest_relative_difference"), ".1e"),
                ", ".join(peaks) or "-",
                note,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def shown(value, form):
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
