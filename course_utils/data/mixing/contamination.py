"""Training pairs that ask what a benchmark asks, found by runs of equal words.

Problems in other words stay: no comparison of texts finds them.
"""

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value

from course_utils.data import texts
from course_utils.data.sources import from_hub

# Where the hub has the test questions: repository, configuration, split, column.
# Source: the task files of lm-evaluation-harness 0.4.13.
BENCHMARKS = {
    "GSM8K": ("openai/gsm8k", "main", "test", "question"),
    "TruthfulQA": (
        "truthfulqa/truthful_qa",
        "multiple_choice",
        "validation",
        "question",
    ),
    "MATH-500": ("HuggingFaceH4/MATH-500", None, "test", "problem"),
}
RUN = 13  # words, as in Brown et al. 2020, arXiv:2005.14165, appendix C


def benchmark_prompts(
    name: str, source: list[str] | str | Path | None = None
) -> list[str]:
    """The test questions of a benchmark.

    name: one of `BENCHMARKS`, loaded from the hub; or any name, with a source.
    source: None, a list of str, or a text file with one question per line.
    Raises: ValueError for an unknown name without a source, or an empty source;
    SourceUnavailable where the hub does not deliver.
    """
    if source is None:
        if name not in BENCHMARKS:
            raise ValueError(
                f"Unknown benchmark {name!r}. Known: {', '.join(BENCHMARKS)}; for "
                "another give its questions as a list or a text file, one per line."
            )
        repo, configuration, split, column = BENCHMARKS[name]
        return list(from_hub(repo, configuration, split=split)[column])
    if not isinstance(source, (list, tuple)):
        # Only \n ends a line: a question may hold other separators, such as U+2028.
        source = Path(source).read_text(encoding="utf-8-sig").split("\n")
    prompts = [text for text in source if text.strip()]
    if not prompts:
        raise ValueError(f"The benchmark {name!r} has no question in it.")
    return prompts


def find_overlap(
    pairs: Dataset, benchmarks: dict[str, list[str]], run: int = RUN
) -> list[str]:
    """Which benchmark a pair's prompt repeats.

    pairs: Dataset with `prompt`. benchmarks: {name: list of str}, the test questions.
    run: words that must be equal in a row. A question of fewer words counts only where
    it is one of the user's messages, word for word.
    Returns: one per pair: "asked by NAME", or "".
    """
    runs, short, hashes = {}, {}, [np.zeros(0, np.uint64)]
    for name, prompts in benchmarks.items():
        for prompt in prompts:
            said = texts.words(prompt)
            if len(said) < run:
                short.setdefault(" ".join(said), name)
            for found in _runs(said, run):
                runs.setdefault(found, name)
            hashes.append(texts.run_hashes(said, run))
    mapped = pairs.select_columns(["prompt"]).map(
        _suspect_batch,
        batched=True,
        remove_columns=["prompt"],
        # Hashes, since a process starts quickly with an array and slowly with texts.
        fn_kwargs={
            "known": np.unique(np.concatenate(hashes)),
            "short": short,
            "run": run,
        },
        features=Features({"suspect": Value("bool")}),
        num_proc=texts.processes(pairs),
    )
    reasons = [""] * len(pairs)
    suspects = np.flatnonzero(mapped["suspect"][:])
    for number, prompt in zip(suspects, pairs.select(suspects)["prompt"], strict=True):
        if name := _asked_by(prompt, runs, short, run):
            reasons[number] = f"asked by {name}"
    return reasons


def _runs(said, run):
    """Every `run` words in a row, a list of str."""
    return [" ".join(said[i : i + run]) for i in range(len(said) - run + 1)]


def _asked_by(prompt, runs, short, run):
    """The benchmark whose words a prompt has, or None."""
    name = None
    for said in _said(prompt):
        name = name or short.get(" ".join(said))
        name = name or next(
            (runs[found] for found in _runs(said, run) if found in runs), None
        )
    return name


def _said(prompt):
    """The words of each of the user's messages."""
    return [texts.words(m["content"]) for m in prompt if m["role"] == "user"]


def _suspect_batch(batch, known, short, run):
    """Which prompts may have a benchmark's words: all that have, and a rare other."""

    def suspect(said):
        hashes = texts.run_hashes(said, run)
        at = np.searchsorted(known, hashes)
        found = len(known) and (known.take(at, mode="clip") == hashes).any()
        return bool(found) or " ".join(said) in short

    return {"suspect": [any(map(suspect, _said(p))) for p in batch["prompt"]]}
