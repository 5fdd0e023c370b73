"""The flow of notebook 04 for any number of processes.

Every process runs all of this. What may only happen once, reading pairs and files,
happens on the main process, and the others get the result.
"""

import contextlib
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from course_utils import models, recorded
from course_utils.setup import folders
from course_utils.setup.profiles import Profile
from course_utils.training import packing, resilience
from course_utils.training.preparing import plan, prepare
from course_utils.training.reading import broadcast_from_main, read_json_lines
from course_utils.training.resuming import (
    checkpoint_to_resume,
    require_room_for_run,
)

__all__ = ["Job", "read_json_lines", "run"]

GIB = 2**30


class Job(NamedTuple):
    """A run that can begin. began: time.perf_counter() at the start of the command."""

    options: Namespace
    trainer: transformers.Trainer
    pairs: list
    settings: dict
    checkpoint: str | None
    began: float


def run(options: Namespace, profile: Profile) -> dict | None:
    """Train as asked; the adapter, its tokenizer and run.json lie in options.output.

    run.json is written last. Every process must call this.
    Returns: what run.json holds, on the main process; None on others.
    Raises: ValueError or OSError that say what to change; NotFinite, OutOfMemory or
        DiskFull of `resilience`.
    """
    with prepared(options, profile) as job:
        return train(job)


@contextlib.contextmanager
def prepared(options: Namespace, profile: Profile) -> Iterator[Job]:
    """All that training needs; meanwhile no other process can use the output folder.

    Raises: ValueError or OSError that say what to change.
    """
    began = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    # The configuration also decides how processes talk to each other.
    config, shares = plan(options, profile)
    with contextlib.ExitStack() as held:
        # One lock for all processes, which the main process takes.
        lock = resilience.locked(options.output)
        broadcast_from_main(lambda: held.enter_context(lock))
        resume = options.resume
        broadcast_from_main(lambda: require_room_for_run(options.output, resume))
        trainer, pairs, settings = prepare(options, profile, config, shares)
        last = broadcast_from_main(
            lambda: checkpoint_to_resume(options.output, resume, settings)
        )
        yield Job(options, trainer, pairs, settings, last, began)


def train(job: Job) -> dict | None:
    """Train, save, and write run.json; as `run`."""
    trainer, output = job.trainer, job.options.output
    state = PartialState()
    progress = Progress(state.is_main_process)
    trainer.add_callback(progress)
    trainer.data_collator = counted = CountedTokens(trainer.data_collator)
    with resilience.watched(trainer, job.settings):
        trainer.train(resume_from_checkpoint=job.checkpoint)
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    seconds = time.perf_counter() - progress.began
    each = trainer.args.gradient_accumulation_steps
    steps = trainer.state.global_step - progress.first_step
    tokens = [sum(counted.tokens[n * each : (n + 1) * each]) for n in range(steps)]
    by_process = gather_object(
        [
            {
                "tokens": sum(tokens),
                "tokens_by_step": tokens,
                "peak_gib": peak_gib(),
                "loading_peak_gib": progress.loading_peak_gib,
            }
        ]
    )
    resilience.save_adapter(trainer, output)
    if not state.is_main_process:
        return None
    models.record_base(output, trainer.model)  # so that it is merged into no other base
    record = recorded.describe_run(job.options.command, job.began) | {
        "settings": job.settings,
        "trainer": job.options.trainer,
        "processes": state.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        "pairs": len(job.pairs),
        "steps": trainer.state.global_step,
        "resumed_at_step": progress.first_step,
        "seconds": seconds,
        "by_process": by_process,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }
    for name in ("attention", "compile_layers", "cuda_graphs"):
        record[name] = getattr(trainer, name, None)
    folders.write_json(output / "run.json", record)
    print(f"{output}: adapter, tokenizer, run.json; {seconds:.0f} s of training")
    return record


class Progress(TrainerCallback):
    """Adds `seconds` to what the Trainer logs, prints it, and starts the meters."""

    def __init__(self, printing: bool) -> None:
        self.printing = printing
        self.began = self.first_step = self.loading_peak_gib = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self.loading_peak_gib = peak_gib()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.began, self.first_step = time.perf_counter(), state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **_: Any,
    ) -> None:
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self.began
        state.log_history[-1]["seconds"] = seconds
        if self.printing:
            print(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
                f"{seconds:.1f} s",
                flush=True,
            )


class CountedTokens:
    """A collator that notes how many tokens each micro-batch has, prefixes once."""

    def __init__(self, collator: Callable[[list[dict]], dict]) -> None:
        self.collator = collator
        self.tokens = []

    def __call__(self, features: list[dict]) -> dict:
        pairs = [packing.pair_from_row(row) for row in features]
        self.tokens.append(sum(map(packing.packed_length, pairs)))
        return self.collator(features)


def peak_gib() -> float | None:
    """The most that this process has allocated on its GPU so far, or None."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / GIB
