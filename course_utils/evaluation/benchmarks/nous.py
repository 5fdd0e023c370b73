"""The Nous suite of the article, on today's lm-evaluation-harness.

It has 34 rows in four groups, the metric of each, how they become one number, the
scores that were published, and where today's tasks differ from those.

The published scores come from LLM AutoEval (mlabonne/llm-autoeval at eca2992), which
ran the branch `add-agieval` of dmahan93/lm-evaluation-harness (ca333d9, August 2023).
What is said about it here was read in those two repositories.
"""

import json
import math
import re
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import yaml
from lm_eval.tasks import TaskManager
from scipy import stats

from course_utils.data import sources
from course_utils.evaluation import Estimate

GROUPS = ("AGIEval", "GPT4All", "TruthfulQA", "Bigbench")


@dataclass(frozen=True)
class Row:
    """One row of the suite. name: as published. task: today's. metric: its column.

    choices: only the items with so many choices count; None for all.
    """

    group: str
    name: str
    task: str
    metric: str
    choices: int | None = None


_AGIEVAL = (
    "aqua_rat",
    "logiqa_en",
    "lsat_ar",
    "lsat_lr",
    "lsat_rc",
    "sat_en",
    "sat_en_without_passage",
    "sat_math",
)
_GPT4ALL = {
    "hellaswag": "acc_norm",
    "openbookqa": "acc_norm",
    "winogrande": "acc",
    "arc_easy": "acc_norm",
    "arc_challenge": "acc_norm",
    "boolq": "acc",
    "piqa": "acc_norm",
}
_BIGBENCH = (
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "geometric_shapes",
    "movie_recommendation",
    "navigate",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
)
_OBJECTS = {"three": 3, "five": 5, "seven": 7}
_TODAY = {"causal_judgement": "causal_judgment"}  # the spelling changed


def _bigbench(name):
    return f"bigbench_{_TODAY.get(name, name)}_multiple_choice"


ROWS = (
    *(Row("AGIEval", f"agieval_{n}", f"agieval_{n}", "acc_norm") for n in _AGIEVAL),
    *(Row("GPT4All", name, name, metric) for name, metric in _GPT4ALL.items()),
    Row("TruthfulQA", "truthfulqa_mc (mc2)", "truthfulqa_mc2", "acc"),
    *(Row("Bigbench", f"bigbench_{n}", _bigbench(n), "acc") for n in _BIGBENCH),
    # Today one task holds all three sizes; an item has as many choices as objects.
    *(
        Row("Bigbench", f"bigbench_{n}_{size}_objects", _bigbench(n), "acc", choices)
        for n in ("logical_deduction", "tracking_shuffled_objects")
        for size, choices in _OBJECTS.items()
    ),
)
# The file of the first was the file of the second.
_DOUBLED = {
    "bigbench_tracking_shuffled_objects_three_objects": (
        "bigbench_logical_deduction_three_objects"
    )
}
TASKS = tuple(dict.fromkeys(row.task for row in ROWS))
# Where the installed harness keeps the YAML files of these tasks.
_FOLDERS = (
    "agieval",
    "hellaswag",
    "openbookqa",
    "winogrande",
    "arc",
    "super_glue/boolq",
    "piqa",
    "truthfulqa",
    "bigbench/multiple_choice",
)

DIFFERENCES = (
    "The old model class put no beginning-of-text token before a text; today's puts "
    "one wherever the tokenizer does. This command leaves it out, as published; --bos "
    "puts it in.",
    "The old BigBench tasks built their prompts from files of their own, with a task "
    "prefix and, in some, the options in shuffled order; today's read finished prompts "
    "from the data set hails/bigbench.",
    "The old branch took log-probabilities in the model's 16 bit, where sums come in "
    "steps; here they are float32.",
    "In the old branch the file of tracking_shuffled_objects_three_objects is the file "
    "of logical_deduction_three_objects, byte for byte: the published Bigbench "
    "average counts logical deduction of three objects twice and never tracks three. "
    "The file's `as_published` repeats that, its other numbers do not.",
    "The old branch had 18 BigBench tasks; today 14 hold the same names, those with "
    "three, five and seven objects together. The rows here are separated by the number "
    "of choices.",
    "The harness's own group agieval_nous weighs tasks by their size; the published "
    "average does not, and neither does this one.",
    "The data sets have moved on the hub (AGIEval, BigBench, PIQA among them). Whether "
    "their rows are the same as in 2023 was not checked.",
)


def folders() -> list[Path]:
    """Where the installed harness defines the suite's tasks."""
    tasks = Path(find_spec("lm_eval").origin).parent / "tasks"
    return [tasks / folder for folder in _FOLDERS]


def published() -> dict:
    """The published scores: {"columns", "sources", "rows": [{"model", "scores", …}]}"""
    path = (
        resources.files("course_utils.evaluation.benchmarks") / "published_scores.json"
    )
    return json.loads(path.read_text(encoding="utf-8"))


# Benchmarks that the sources of the mix touch; of these the suite holds TruthfulQA.
_TOUCHED = ("TruthfulQA", "MATH", "GSM8K", "TheoremQA")


def contamination() -> dict:
    """What the data cards say of the mix and benchmarks: list of dicts, one per remark.

    Keys: "source", "benchmarks" (tuple), "in the suite" (bool), "remark", "card" (file
    name). Both versions of the mix are looked through. Whether questions *are* shared
    only a comparison can say: `mixing.find_overlap`.
    """
    cards = {
        card.path: card
        for version in ("v1.0", "v1.2")
        for card in sources.cards(version=version).values()
    }
    found = []
    for path, card in sorted(cards.items()):
        for bullet in _bullets(path.read_text(encoding="utf-8")):
            named = tuple(n for n in _TOUCHED if re.search(rf"\b{n}\b", bullet))
            if named:
                found.append(
                    {
                        "source": card.source,
                        "benchmarks": named,
                        "in the suite": "TruthfulQA" in named,
                        "remark": bullet.removeprefix("**Contamination:** "),
                        "card": path.name,
                    }
                )
    return found


def _bullets(text):
    """The list items of a Markdown text, each on one line."""
    items = re.findall(r"^- (.+(?:\n  \S.*)*)", text, re.MULTILINE)
    return [re.sub(r"\s+", " ", item) for item in items]


def items(tasks: dict) -> dict[str, np.ndarray]:
    """{row's name: (N,) scores}, from the harness's {task: TaskResult}.

    Raises: ValueError if a row has no item, e.g. because --limit cut them all off.
    """
    found = {}
    for row in ROWS:
        result = tasks[row.task]
        scores = result.metrics[row.metric]
        if row.choices is not None:
            counts = [len(d["multiple_choice_targets"]) for d in result.documents]
            if unknown := set(counts) - set(_OBJECTS.values()):
                raise ValueError(
                    f"{row.task}: items with {sorted(unknown)} choices, and the course "
                    "knows sizes 3, 5 and 7 only. Its data set has changed."
                )
            scores = scores[np.array(counts) == row.choices]
        if not len(scores):
            raise ValueError(
                f"{row.name}: none of the {len(result.documents)} items of {row.task} "
                f"has {row.choices} choices. Raise --limit."
            )
        found[row.name] = scores
    return found


def weights(as_published: bool = False) -> dict:
    """{group: {row's name: weight}}; the weights of a group sum to 1.

    as_published: with the row that the old branch counted twice.
    """
    shares = {group: {} for group in GROUPS}
    for row in ROWS:
        name = _DOUBLED.get(row.name, row.name) if as_published else row.name
        share = 1 / sum(other.group == row.group for other in ROWS)
        group = shares[row.group]
        group[name] = group.get(name, 0) + share
    return shares


def summary(
    scores: dict[str, np.ndarray], as_published: bool = False
) -> dict[str, Estimate]:
    """{group: Estimate} and "average", in the order of the published columns.

    scores: {row's name: (N,) scores of the items}, or their differences between two
    models on the same items. The intervals are normal ones from the spread of items in
    each row; an average of many rows is near normal. n: items.
    """
    found, sampled = {}, {}
    for name, values in scores.items():
        spread = np.var(values, ddof=1) / len(values) if len(values) > 1 else math.nan
        sampled[name] = float(np.mean(values)), float(spread), len(values)
    parts = weights(as_published)
    everything = {
        name: share / len(GROUPS)
        for group in parts.values()
        for name, share in group.items()
    }
    for label, shares in (*parts.items(), ("average", everything)):
        value = sum(share * sampled[name][0] for name, share in shares.items())
        variance = sum(share**2 * sampled[name][1] for name, share in shares.items())
        half = stats.norm.ppf(0.975) * math.sqrt(variance)
        n = sum(sampled[name][2] for name in shares)
        found[label] = Estimate(value, value - half, value + half, n)
    return found


def difference(first: dict, second: dict) -> dict[str, Estimate]:
    """`summary` of second minus first, item by item: a paired comparison.

    first, second: {row's name: (N,) scores} of two models.
    Raises: ValueError naming a row whose items are not equally many.
    """
    for name in first:
        if len(first[name]) != len(second[name]):
            raise ValueError(
                f"{name}: {len(first[name])} and {len(second[name])} items. Evaluate "
                "both models with the same --limit, on the same data."
            )
    return summary({n: np.subtract(second[n], first[n]) for n in first})


def use_local_rows(folder: str | Path, data: str | Path) -> Path:
    """Tasks that read `data`/<task>.jsonl instead of the hub; all else stays theirs.

    folder: where to write the YAML files, each of which includes the harness's own.
    Returns: folder. Raises: FileNotFoundError naming the first file that is missing.
    """
    data = Path(data).resolve()
    missing = [task for task in TASKS if not (data / f"{task}.jsonl").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{data} lacks {missing[0]}.jsonl, and {len(missing)} files of "
            f"{len(TASKS)}: one JSON object a line, in the columns of the data set."
        )
    own = TaskManager(include_path=folders(), include_defaults=False).task_index
    for task in TASKS:
        wrapped = {
            "include": str(own[task].yaml_path),
            "task": task,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(data / f"{task}.jsonl")}},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
        }
        text = yaml.safe_dump(wrapped, sort_keys=False)
        (Path(folder) / f"{task}.yaml").write_text(text, encoding="utf-8", newline="\n")
    return Path(folder)
