"""The one call into EleutherAI's lm-evaluation-harness, for every task of the course.

The harness gives shares and standard errors of one model. To compare two models one
needs the items, so these are what comes back.
"""

import logging
import math
import random
import re
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lm_eval import evaluator, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.evaluation import half_precision
from course_utils.setup.patching import replaced


@dataclass(frozen=True)
class TaskResult:
    """What the harness found for the N items of one task, in the task's order.

    metrics: {metric: (N,) float64}. documents: the task's rows, one dict per item.
    requests: per item its (context, continuation) strings; for written answers one
    (context, settings). answers: per item the (K,) log-likelihoods of the K
    continuations in nats, or the text that the model wrote.
    """

    metrics: dict[str, np.ndarray]
    documents: tuple[dict, ...]
    requests: tuple[tuple, ...]
    answers: tuple[np.ndarray | str, ...]


@dataclass(frozen=True)
class Run:
    """tasks: {name: TaskResult}. seconds: wall time, loading data included. passes:
    sequences scored or written. warnings: {what the harness warned of, with N for each
    number: how often}.
    """

    tasks: dict[str, TaskResult]
    seconds: float
    passes: int
    warnings: dict[str, int]


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: list[str],
    folders: list[str | Path],
    chat_template: bool = False,
    bos: bool | None = None,
    limit: float | None = None,
    batch_size: int | str = 16,
    progress: bool = False,
) -> Run:
    """Evaluate a loaded model on tasks of the harness, without examples (0-shot).

    tasks: names. folders: where the YAML files lie that define them; only these are
    read, since the harness's own 14,000 take half a minute.
    chat_template: put each question into the tokenizer's chat format as one user turn.
    bos: begin each text with the beginning-of-text token? None: as the tokenizer does.
    limit: at most so many items per task or, below 1, that share of them, rounded up as
    the harness does. They are drawn with a fixed seed: the first ones would be of one
    kind where rows are grouped. batch_size: sequences, or "auto" on a GPU.
    progress: show the harness's bars.
    Returns: Run. The model and the global random generators, which the harness seeds,
    are left as they were found.
    Raises: ValueError as check_limit, if a task is not in the folders, if a chat
    template is asked for and there is none, or if written answers would not stop at the
    turn's end.
    """
    check_limit(limit)
    manager = TaskManager(include_path=list(folders), include_defaults=False)
    missing = [name for name in tasks if name not in manager.all_subtasks]
    if missing:
        raise ValueError(
            f"lm-eval finds no task {', '.join(missing)} in the folders given. Another "
            "version may have renamed or moved it: the course was written for 0.4.13."
        )
    if chat_template and not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template to apply. Save one with the model, or "
            "evaluate without."
        )
    writes = [n for n in tasks if _output_type(manager, n) == "generate_until"]
    if writes:
        _check_end_of_turn(model, tokenizer, writes)
    was_training, start = model.training, time.perf_counter()
    with _caught_warnings() as warnings, _kept_random_state(), _no_inventory():
        loaded = manager.load(list(tasks))["tasks"]
        found = simple_evaluate(
            model=_Model(
                progress,
                pretrained=model,
                tokenizer=tokenizer,
                batch_size=batch_size,
                add_bos_token=bos,
                # As in training; a model in 4 bit may have a float32 head.
                mixed_precision_dtype=half_precision(model),
                # Else a 16-bit model's log-likelihoods come in steps of 0.1 nats.
                softmax_dtype=torch.float32,
            ),
            tasks=list(loaded.values()),
            task_manager=manager,
            num_fewshot=0,
            apply_chat_template=chat_template,
            samples=_drawn(loaded, limit),
            bootstrap_iters=0,  # its standard errors; intervals come from the items
        )
    model.train(was_training)
    results = {name: _task_result(found["samples"][name]) for name in tasks}
    passes = sum(len(item) for each in results.values() for item in each.requests)
    return Run(results, time.perf_counter() - start, passes, dict(warnings))


class _Model(HFLM):
    """The harness's own model; it has no switch for its progress bars."""

    def __init__(self, progress, **settings):
        super().__init__(**settings)
        self._silent = not progress

    def loglikelihood(self, requests, disable_tqdm=False):
        return super().loglikelihood(requests, disable_tqdm=self._silent)

    def generate_until(self, requests, disable_tqdm=False):
        return super().generate_until(requests, disable_tqdm=self._silent)


def check_limit(limit: float | None) -> None:
    """Raise ValueError for a limit that is no number of items and no share of them."""
    number = isinstance(limit, int | float) and not isinstance(limit, bool)
    if limit is not None and not (number and 0 < limit < math.inf):  # NaN is not
        raise ValueError(
            f"limit is {limit!r}: give a number of items from 1, a share of them "
            "between 0 and 1, or None for all."
        )


def _drawn(loaded: dict, limit: float | None) -> dict[str, list[int]] | None:
    """{task: sorted indices of its items}, or None for all of all tasks."""
    if limit is None:
        return None
    drawn = {}
    for name, task in loaded.items():
        count = len(task.eval_docs)
        wanted = math.ceil(count * limit) if limit < 1 else int(limit)
        chosen = random.Random(0).sample(range(count), min(wanted, count))
        drawn[name] = sorted(chosen)
    return drawn


def _output_type(manager, name):
    return manager.task_index[name].cfg.get("output_type", "generate_until")


def _check_end_of_turn(model, tokenizer, tasks):
    """The harness lets `generate` stop where the model's generation config says, and
    drops special tokens from the text: past another token it reads on unnoticed."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if tokenizer.eos_token_id not in ends:
        raise ValueError(
            f"{', '.join(tasks)}: the turn's end token is {tokenizer.eos_token!r} "
            f"({tokenizer.eos_token_id}), but the model's generation config stops at "
            f"{ends}, so the harness would take what comes behind the end for answer. "
            "Set model.generation_config.eos_token_id = tokenizer.eos_token_id."
        )


def _task_result(samples):
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    names = samples[0]["metrics"]
    written = isinstance(samples[0]["filtered_resps"][0], str)

    def answer(sample):
        if written:
            return sample["filtered_resps"][0]
        return np.array([response[0] for response in sample["filtered_resps"]])

    return TaskResult(
        metrics={
            name: np.array([sample[name] for sample in samples], dtype=float)
            for name in names
        },
        documents=tuple(sample["doc"] for sample in samples),
        requests=tuple(tuple(sample["arguments"]) for sample in samples),
        answers=tuple(answer(sample) for sample in samples),
    )


# What it says of every run of ours: that a loaded model is handed over, that there are
# no examples, and that a mean is the mean.
_EXPECTED = (
    "`pretrained` model kwarg is not of type `str`",
    "Passed an already-initialized model",
    "Overwriting default num_fewshot",
    "is defined, but aggregation is not",
    "is defined, but higher_is_better is not",
)


@contextmanager
def _caught_warnings():
    """Count the harness's warnings instead of printing each of them per item."""

    class Collector(logging.Handler):
        def emit(self, record):
            message = record.getMessage()
            if not any(expected in message for expected in _EXPECTED):
                found[re.sub(r"\d+", "N", message)] += 1

    found, logger = Counter(), logging.getLogger("lm_eval")
    handler, propagated = Collector(logging.WARNING), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


@contextmanager
def _kept_random_state():
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


@contextmanager
def _no_inventory():
    """Skip the harness's inventory of this machine, which nobody reads here: it lists
    all packages for a second or two, and complains where there is no git."""
    with (
        replaced(evaluator, "get_git_commit_hash", lambda: None),
        replaced(evaluator, "add_env_info", lambda found: None),
    ):
        yield
