"""Two GPUs against one: the same losses, how much faster, how much leaner, and a kill.

    python -m course_utils.models.random_weights TWIN
    python tests/benchmarks/bench_scaling.py TWIN
    python tests/benchmarks/bench_scaling.py TWIN --rehearse --out FILE   (tiny)

Everything runs through `python -m course_utils.training` and the shipped
configurations, in processes of its own. What does not disturb each other runs side by
side: the timed run on two GPUs is alone, that on one GPU has company on the other one.

The record is written after every part, so that a time limit loses nothing. A part that
fails is recorded with its error, the others still run, and the exit status is 1; --add
runs again what failed, and keeps the rest.
"""

import argparse
import contextlib
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

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "course_utils" / "recorded" / "scaling.json"
# bf16 keeps 8 bits, and other rows of pairs round otherwise.
TOLERANCE = 0.004
TRAIN = "course_utils.training"


@dataclass(frozen=True)
class Sizes:
    """batch: pairs per step; micro_batch: at a time; warmup: steps before the clock.

    *_saved: the step after which a run keeps its checkpoint. scale: the speed
    benchmark's lengths are divided by this.
    """

    batch: int = 32
    micro_batch: int = 8
    steps: int = 10
    warmup: int = 4
    fsdp_steps: int = 5
    fsdp_saved: int = 4
    killed_steps: int = 12
    killed_saved: int = 3
    scale: int = 1


REHEARSAL = Sizes(
    batch=4,
    micro_batch=1,
    steps=3,
    warmup=1,
    fsdp_steps=3,
    fsdp_saved=2,
    killed_steps=8,
    killed_saved=2,
    scale=64,
)


def main(arguments=None):
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


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "twin", type=Path, help="folder of course_utils.models.random_weights"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds in all")
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
    return options


class Failed(RuntimeError):
    """A part of the benchmark did not do what it should."""


class Bench:
    """The parts, and the record that grows with them."""

    def __init__(self, options, arguments):
        self.options = options
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
        self.ddp_parts()
        self.disturbed_parts()
        parts = self.record["parts"]
        graphs = [parts[n].get("cuda_graphs") for n in ("one GPU", "two GPUs, DDP")]
        if graphs == [True, False]:
            with self.part("one GPU, without CUDA graphs"):
                lever = "--lever=cuda_graphs=false"
                job = self.train("no-graphs", "0", *self.timed(), lever)
                parts["one GPU, without CUDA graphs"] = self.timed_result(job)

    def ddp_parts(self):
        """The timed ones; beside the first, the reference for FSDP."""
        parts = self.record["parts"]
        if missing := {"one GPU", "one GPU, 16 bit"} - parts.keys():
            one = self.train("one-gpu", "0", *self.timed())
            one_16 = self.train("one-gpu-16-bit", "1", *self.sixteen_bit())
            with self.part("one GPU"):
                parts["one GPU"] = self.timed_result(one)
            with self.part("one GPU, 16 bit"):
                parts["one GPU, 16 bit"] = self.result(one_16)
        if missing or "two GPUs, DDP" not in parts:
            with self.part("two GPUs, DDP"):
                two = self.train("two-gpus", "0,1", *self.timed(), config="ddp")
                found = self.timed_result(two)
                parts["two GPUs, DDP"] = found | self.compared(found, "one GPU")

    def disturbed_parts(self):
        """A kill and what follows; FSDP beside them, since none of it is timed."""
        parts, fsdp = self.record["parts"], None
        of_fsdp = ("two GPUs, FSDP2, 16 bit", "FSDP2's checkpoint on one GPU")
        if not parts.keys() >= set(of_fsdp):
            arguments = self.sixteen_bit()
            fsdp = self.train("two-gpus-fsdp", "0,1", *arguments, config="fsdp")
        if not parts.keys() >= {"one process of two killed", "resumed"}:
            small = None if self.options.rehearse else self.write_small_twin()
            with self.part("one process of two killed"):
                whole = self.train("undisturbed", "0", *self.kept(), small=small)
                parts["one process of two killed"] = self.killed(small)
            with self.part("resumed"):
                parts["resumed"] = self.resumed(small, whole)
        if fsdp is not None:
            with self.part(of_fsdp[0]):
                found = self.result(fsdp)
                parts[of_fsdp[0]] = found | self.compared(found, "one GPU, 16 bit")
            with self.part(of_fsdp[1]):
                parts[of_fsdp[1]] = self.loaded(self.options.sizes.fsdp_saved)

    # ---- what is run ----

    def timed(self):
        """Options of the timed runs: NF4, fast_config of the speed benchmark's fast."""
        steps = str(self.options.sizes.steps)
        return [
            *self.common(),
            "--steps",
            steps,
            "--save-steps",
            "0",
            *self.fast_config,
        ]

    def sixteen_bit(self):
        """Options of 16-bit LoRA, with one checkpoint on the way."""
        sizes = self.options.sizes
        steps = ["--steps", str(sizes.fsdp_steps)]
        saved = ["--save-steps", str(sizes.fsdp_saved)]
        return [*self.common(), "--sixteen-bit", *steps, *saved]

    def kept(self):
        """Options of the run that is killed, and of the one that is not."""
        sizes = self.options.sizes
        steps = ["--steps", str(sizes.killed_steps)]
        return [*self.common(), *steps, "--save-steps", str(sizes.killed_saved)]

    def common(self):
        sizes = self.options.sizes
        return [
            "--profile",
            "a100",
            "--pairs-file",
            str(self.pairs),
            "--batch-size",
            str(sizes.batch),
            "--micro-batch",
            str(sizes.micro_batch),
            "--optim",
            "adamw_torch",
            "--learning-rate",
            "1e-3",
            "--logging-steps",
            "1",
            "--seed",
            str(self.options.seed),
        ]

    def write_small_twin(self):
        """A Job that writes the twin for the kill, which needs no 32 layers."""
        folder = self.folder / "small-twin"
        shape = ["--shape", "llama3-8b-2-layers"]
        command = [
            sys.executable,
            "-m",
            "course_utils.models.random_weights",
            str(folder),
            *shape,
        ]
        return self.start_job("small-twin", command, "1", folder)

    def train(self, name, gpus, *arguments, config=None, small=None):
        """A Job that trains on these GPUs; with `config` a process each.

        small: the Job that wrote the twin to train, if not the whole one.
        """
        output = self.folder / name.removesuffix("-resumed")
        module = ["-m", TRAIN]
        if config == "fsdp" and self.options.rehearse:
            module = [str(ROOT / "tests" / "train_fsdp_on_cpu.py")]
        command = [sys.executable]
        if config:
            file = ROOT / "course_utils" / "train" / f"{config}.yaml"
            command += ["-m", "accelerate.commands.accelerate_cli", "launch"]
            command += ["--config_file", str(file), "--main_process_port", "0"]
            command += ["--num_processes", str(len(gpus.split(",")))]
        command += [*module, "--output", str(output), *arguments]
        changes = {}
        if small is not None:
            small.wait(self.left())
            # Compiling takes longer than these steps do.
            changes = {"TORCHDYNAMO_DISABLE": "1"}
            changes["COURSE_BASE_MODEL"] = str(small.output)
        return self.start_job(name, command, gpus, output, changes)

    def start_job(self, name, command, gpus, output, changes=None):
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

        options = self.options
        shape = bench_parts.SHAPES["tiny" if options.rehearse else "llama3-8b"]
        usual = vars(FastTrainingConfig())
        self.fast_config = [
            f"--lever={name}={json.dumps(value)}"
            for name, value in vars(shape.fast).items()
            if value != usual[name]
        ]
        self.record.setdefault("fast_config", self.fast_config)  # of the timed parts
        run = ["python tests/benchmarks/bench_scaling.py", *self.arguments]
        self.head = lambda: recorded.describe_run(" ".join(run), self.start)
        sizes = options.sizes
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
                texts = [" ".join(chance.choice(words, count)) for count in counts]
                row = {
                    name: [{"role": role, "content": text}]
                    for name, role, text in zip(
                        ("prompt", "chosen", "rejected"),
                        ("user", "assistant", "assistant"),
                        texts,
                        strict=True,
                    )
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

    # ---- what came of it ----

    @contextlib.contextmanager
    def part(self, name):
        """Notes what fails, and writes the record."""
        try:
            yield
        except Exception as error:  # noted below; the others still run
            text = str(error) if isinstance(error, Failed) else repr(error)
            self.record["parts"][name] = {"error": text[-1500:]}
        part = self.record["parts"][name]
        state = "FAILED" if "error" in part else "done"
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

    def result(self, job):
        """What a finished training wrote down, shortened. Raises: Failed."""
        job.wait(self.left())
        run = json.loads((job.output / "run.json").read_text(encoding="utf-8"))
        return {
            "losses": [row["loss"] for row in run["log"]],
            "peak_gib": [process["peak_gib"] for process in run["by_process"]],
            "loading_peak_gib": [p["loading_peak_gib"] for p in run["by_process"]],
            "tokens": [process["tokens"] for process in run["by_process"]],
            "resumed_at_step": run["resumed_at_step"],
            "before_training_seconds": job.seconds - run["seconds"],
            "processes": run["processes"],
            "attention": run["attention"],
            "compiled": run["compile_layers"],
            "cuda_graphs": run["cuda_graphs"],
            "ends": [row["seconds"] for row in run["log"]],
        }

    def timed_result(self, job):
        found = self.result(job)
        sizes = self.options.sizes
        seconds = found["ends"][-1] - found["ends"][sizes.warmup - 1]
        pairs = sizes.batch * (sizes.steps - sizes.warmup)
        found["seconds_per_1000_pairs"] = 1000 * seconds / pairs
        return found

    def compared(self, found, name):
        """Losses against those of an earlier part, and what else can be compared."""
        other = self.record["parts"].get(name, {})
        if "losses" not in other:
            return {"compared": f"{name} failed"}
        out = same_losses(found["losses"], other["losses"], name)
        key = "seconds_per_1000_pairs"
        if key in found and key in other:
            out["scaling"] = other[key] / found[key]
        return out

    def killed(self, small):
        """Kill one process of two in mid-run: how and when does the other end?"""
        job = self.train("killed", "0,1", *self.kept(), config="ddp", small=small)
        checkpoint = f"checkpoint-{self.options.sizes.killed_saved}"
        job.wait_for(job.output / checkpoint / "trainer_state.json", self.left())
        job.kill_rank("1")
        killed = time.perf_counter()
        try:
            status = job.process.wait(min(60, self.left()))
        except subprocess.TimeoutExpired:
            job.stop()
            raise Failed(f"the other did not end. {job.last_words()}") from None
        seconds = time.perf_counter() - killed
        said = [line for line in job.text().splitlines() if "--resume" in line]
        if status == 0 or not said:
            raise Failed(f"exit status {status}. {job.last_words()}")
        message = said[0].replace(str(self.folder), "")
        return {"exit_status": status, "seconds_to_end": seconds, "message": message}

    def resumed(self, small, whole):
        """Go on from the killed run's checkpoint, and compare with an undisturbed run.

        whole: the Job of that run, on one GPU.
        """
        job = self.train(
            "killed-resumed", "0,1", *self.kept(), "--resume", config="ddp", small=small
        )
        found, expected = self.result(job), self.result(whole)
        out = same_losses(found["losses"], expected["losses"], "an undisturbed run")
        return {"resumed_at_step": found["resumed_at_step"], **out} | {
            "losses": found["losses"]
        }

    def loaded(self, step):
        """Loss of FSDP's checkpoint on one GPU, on the pairs of the step after it."""
        checkpoint = self.folder / "two-gpus-fsdp" / f"checkpoint-{step}"
        command = [
            sys.executable,
            __file__,
            str(self.options.twin.resolve()),
            "--loss-of",
            str(checkpoint),
            "--pairs-file",
            str(self.pairs),
        ]
        if self.options.rehearse:
            command += ["--rehearse", "--out", os.devnull]
        job = self.start_job("loaded", command, "0", None)
        job.wait(self.left())
        found = re.search(r"LOSS ([\d.]+)", job.text())
        if not found:
            raise Failed(f"no loss. {job.last_words()}")
        fsdp = self.record["parts"]["two GPUs, FSDP2, 16 bit"]["losses"][step]
        name = "the same step under FSDP2"
        losses = [float(found[1])]
        return {"losses": losses, **same_losses(losses, [fsdp], name)}


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
            "CUDA_VISIBLE_DEVICES": gpus,
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


def same_losses(found, expected, name):
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


def mean(values):
    return math.fsum(values) / len(values)


def twin_shape(options):
    config = json.loads((options.twin / "config.json").read_text(encoding="utf-8"))
    return config.get("random_weights", "not a twin of the course")


def print_loss_of(options):
    """In a process of its own: the loss of an adapter on the step after its last."""
    checkpoint, sizes = options.loss_of, options.sizes
    import torch

    from course_utils.setup import profiles
    from course_utils.training import options as train_options

    profiles.stay_offline()
    from course_utils.training import preparing

    step = int(checkpoint.name.rpartition("-")[2])
    asked = train_options.parse(
        [
            "--profile",
            "a100",
            "--pairs-file",
            str(options.pairs_file),
            "--sixteen-bit",
            "--batch-size",
            str(sizes.batch),
            "--micro-batch",
            str(sizes.micro_batch),
            "--optim",
            "adamw_torch",
            "--adapter",
            str(checkpoint),
            "--output",
            str(checkpoint.with_name("loaded")),
        ]
    )
    profile = train_options.choose_profile(asked).profile
    plan = preparing.plan(asked, profile)
    trainer, _, _ = preparing.prepare(asked, profile, *plan)
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


def table(record):
    """The results as text, one line per part."""
    heads = ("part", "s per 1,000 pairs", "scaling", "losses apart", "peak GiB", "note")
    lines = [heads]
    for name, part in record["parts"].items():
        if "error" in part:
            lines.append((name, "-", "-", "-", "-", "failed"))
            continue
        peaks = [f"{p:.1f}" for p in part.get("peak_gib", []) if p is not None]
        tokens = part.get("tokens", [])
        note = f"tokens {' and '.join(f'{t:,}' for t in tokens)}" if tokens else ""
        if "seconds_to_end" in part:
            seconds, status = part["seconds_to_end"], part["exit_status"]
            note = f"ended after {seconds:.1f} s, status {status}"
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
