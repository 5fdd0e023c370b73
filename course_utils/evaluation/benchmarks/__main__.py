"""`python -m course_utils.evaluation.benchmarks nous --model FOLDER --out FILE.json`"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils import models, recorded
from course_utils.evaluation import estimate
from course_utils.evaluation.benchmarks import harness, lab, nous
from course_utils.setup import folders, profiles
from course_utils.setup.printing import print_safely

_MARK = b"course_utils.evaluation.benchmarks"  # each record names its command


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"benchmarks {options.command}: {error}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.evaluation.benchmarks"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("nous", _nous, "the article's suite: AGIEval, GPT4All, TruthfulQA, BigBench"),
        ("lab", _lab, "the small world's tasks; no network"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("--model", required=True, help="folder, or hub id")
        command.add_argument("--out", required=True, type=Path, help="file to write")
        command.add_argument(
            "--limit",
            type=_number,
            help="at most so many items per task; below 1, that share of them",
        )
        command.add_argument("--chat-template", action="store_true")
        command.add_argument("--batch-size", default="auto" if _gpu() else "8")
        command.add_argument(
            "--dtype",
            default="float16" if _gpu() else "float32",
            choices=("float16", "bfloat16", "float32"),
        )
        if name == "nous":
            command.add_argument(
                "--bos", action="store_true", help="begin texts as the tokenizer does"
            )
            command.add_argument(
                "--data", help="folder with <task>.jsonl, instead of the hub"
            )
    compare = commands.add_parser("compare", help="two files of nous, item by item")
    compare.set_defaults(run=_compare)
    compare.add_argument("first", type=Path)
    compare.add_argument("second", type=Path)
    return parser


def _number(text: str) -> float:
    """A number, whole or not; argparse names the option where it is none."""
    try:
        return int(text)
    except ValueError:
        return float(text)


def _gpu() -> bool:
    return torch.cuda.is_available()


def load(model: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) on the GPU if there is one."""
    place = {"": 0} if _gpu() else None
    loaded = models.load_model(model, dtype=getattr(torch, dtype), device_map=place)
    return loaded, models.load_tokenizer(model)


def _nous(options):
    _check(options)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        local = options.data is not None
        where = [nous.use_local_rows(folder, options.data)] if local else nous.folders()
        bos = None if options.bos else False
        found = _run(options, nous.TASKS, where, bos=bos)
    scores = nous.items(found.tasks)
    record = {
        **_head(options, start, found),
        "settings": {
            "examples": 0,
            "beginning of text": options.bos,
            "chat template": options.chat_template,
            "dtype": options.dtype,
            "limit": options.limit,
            "rows": "a local folder" if local else "the hub",
        },
        "scores": {k: _as_dict(e) for k, e in nous.summary(scores).items()},
        "as_published": {k: e.value for k, e in nous.summary(scores, True).items()},
        "rows": {
            row.name: {
                "task": row.task,
                "metric": row.metric,
                "n": len(scores[row.name]),
                "value": float(scores[row.name].mean()),
            }
            for row in nous.ROWS
        },
        "differences_from_published": nous.DIFFERENCES,
        "items": {name: _short(values) for name, values in scores.items()},
    }
    _write(options, record)
    print(table(record))


def _lab(options):
    _check(options)
    start = time.perf_counter()
    names = ["lab_choice", "lab_write"]
    if not options.chat_template:  # a base reads the frame it has seen in plain text
        names = [f"{name}_framed" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        where = [lab.write_tasks(folder, lab.rows())]
        found = _run(options, names, where, bos=None)
    metrics = {
        f"{name} {metric}": values
        for name, result in found.tasks.items()
        for metric, values in result.metrics.items()
    }
    record = {
        **_head(options, start, found),
        "settings": {"chat template": options.chat_template, "dtype": options.dtype},
        "scores": {k: _as_dict(estimate(v == 1)) for k, v in metrics.items()},
        "items": {name: _short(values) for name, values in metrics.items()},
    }
    _write(options, record)
    for name, score in record["scores"].items():
        low, high = score["interval"]
        print(f"{name}: {score['value']:.3f} [{low:.3f}, {high:.3f}], n = {score['n']}")


def _run(options, names, where, bos):
    model, tokenizer = load(options.model, options.dtype)
    size = options.batch_size
    return harness.run(
        model,
        tokenizer,
        names,
        where,
        chat_template=options.chat_template,
        bos=bos,
        limit=options.limit,
        batch_size=size if size.startswith("auto") else int(size),
        progress=sys.stderr.isatty(),
    )


def _compare(options):
    first, second = (
        json.loads(path.read_text(encoding="utf-8"))
        for path in (options.first, options.second)
    )
    for setting, value in first["settings"].items():
        if second["settings"][setting] != value:
            raise ValueError(
                f"the two runs differ in {setting}: {value} and "
                f"{second['settings'][setting]}. Evaluate both models alike."
            )
    found = nous.difference(first["items"], second["items"])
    print(f"{second['model']} minus {first['model']}, percentage points, paired:")
    for name, d in found.items():
        low, high = 100 * d.low, 100 * d.high
        print(f"{name:11} {100 * d.value:+6.2f} [{low:+.2f}, {high:+.2f}], n = {d.n}")


def table(record: dict) -> str:
    """A run of the suite beside the published scores, as text."""
    reference = nous.published()
    head = ["", *reference["columns"]]
    scores = [record["scores"][name] for name in reference["columns"]]
    rows = [
        [record["model"], *(f"{100 * each['value']:.2f}" for each in scores)],
        [
            "  95 % interval",
            *(
                "±{:.2f}".format(50 * (e["interval"][1] - e["interval"][0]))
                for e in scores
            ),
        ],
        [
            "  with the old branch's row",
            *(f"{100 * record['as_published'][n]:.2f}" for n in reference["columns"]),
        ],
    ]
    rows += [
        [f"{row['model']} (published)", *(f"{score:.2f}" for score in row["scores"])]
        for row in reference["rows"]
    ]
    width = max(len(row[0]) for row in rows)
    lines = [
        f"{row[0]:<{width}}" + "".join(f"{cell:>12}" for cell in row[1:])
        for row in (head, *rows)
    ]
    return "\n".join([*lines, "", reference["what"], *reference["sources"].values()])


def _head(options, start, found):
    command = f"python -m course_utils.evaluation.benchmarks {options.command}"
    head = recorded.describe_run(command, start)
    head["versions"]["lm-eval"] = version("lm-eval")
    # A folder's path says where somebody's files lie, and nothing about the model.
    name = options.model if profiles.is_hub_id(options.model) else Path(options.model)
    return {
        **head,
        "model": name if isinstance(name, str) else name.resolve().name,
        "passes": found.passes,
        "harness_warnings": found.warnings,
    }


def _as_dict(value):
    return {"value": value.value, "interval": [value.low, value.high], "n": value.n}


def _short(values):
    """Yes and no as 1 and 0, shares with four digits: the file holds 30,000 items."""
    return [int(v) if v in (0, 1) else round(float(v), 4) for v in values]


def _check(options):
    """A typing error must not cost the loading of a model, or hours of evaluation."""
    harness.check_limit(options.limit)
    if not options.out.parent.is_dir():
        raise FileNotFoundError(
            f"--out {options.out}: there is no folder {options.out.parent}."
        )
    if not profiles.is_hub_id(options.model):
        profiles.require_checkpoint(options.model)
    folders.require_own_file(options.out, _MARK, _inputs(options))


def _inputs(options):
    rows = getattr(options, "data", None)
    return [options.model, *(Path(rows).glob("*.jsonl") if rows else ())]


def _write(options, record):
    """A line for the items of each row, the rest to be read."""
    items = record.pop("items")
    lines = [f"  {json.dumps(name)}: {json.dumps(v)}" for name, v in items.items()]
    head = json.dumps(record, indent=1, ensure_ascii=False).removesuffix("\n}")
    text = f'{head},\n "items": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    inputs = _inputs(options)
    with folders.written_file(options.out, _MARK, inputs=inputs) as partial:
        folders.write_text(partial, text)


if __name__ == "__main__":
    print_safely()
    main()
