"""The small world's questions as tasks of lm-evaluation-harness.

Only questions of one user turn without a system prompt become items: the harness turns
a row into one user turn, so it can hold no dialogue.
"""

import json
import random
from pathlib import Path

import yaml

from course_utils.data import world
from course_utils.data.world import phrases, tasks
from course_utils.data.world.sampling import write_answer
from course_utils.setup import folders

FLAWS = ("none", "content", "manners", "ending")
# What stands around the question: nothing, or the frame that benchmarks put there.
FRAMES = {"": "{{question}}", "_framed": "Q: {{question}}\nA:"}
TASKS = tuple(f"lab_{kind}{frame}" for kind in ("choice", "write") for frame in FRAMES)


def rows(per_source: int = 60, seed: int = 0) -> list[dict]:
    """The items: held-out questions, each with four answers in random order.

    One answer is flawless; the others each have one flaw: wrong content, bad manners, a
    rambling end. Returns: list of {"source", "question", "choices", "flaws", "gold"}:
    flaws names each choice's flaw, gold is the index of the flawless one.
    """
    rng, out = random.Random(seed), []
    for pair in world.test_pairs(per_source):
        if len(pair["prompt"]) > 1:
            continue
        task = tasks.parse(pair["prompt"])
        choices = {}
        for flaw in FLAWS:
            flaws = tuple(int(flaw == part) for part in FLAWS[1:])
            answer = write_answer(task, flaws, lambda: phrases.ASSISTANT, rng)
            choices[flaw] = answer
        order = rng.sample(FLAWS, len(FLAWS))
        out.append(
            {
                "source": pair["source"],
                "question": pair["prompt"][0]["content"],
                "choices": [choices[flaw] for flaw in order],
                "flaws": order,
                "gold": order.index("none"),
            }
        )
    return out


def verdict(document: dict, answers: list[str]) -> dict[str, float]:
    """The metrics of one written answer; lm-eval's `process_results` of these tasks.

    Whether the model ended its turn is not among them: the harness passes the text on
    without saying whether it was cut.
    """
    prompt = [tasks.user(document["question"])]
    found = world.verify(prompt, answers[0])
    return {"good": float(found.good), "content": float(found.content)}


def write_tasks(folder: str | Path, items: list[dict]) -> Path:
    """Write the lab's tasks as a folder that lm-eval can read, and nothing else.

    folder: made if it is missing; its own files in it are replaced. items: as from
    `rows`.
    Writes items.jsonl, and a YAML file for each name in TASKS: choosing and writing an
    answer, each with the bare question and with it framed as `Q: … A:`.
    Returns: folder, as a Path. Raises: FileExistsError for a file of these names that
    the course did not write.
    """
    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    names = ["items.jsonl", *(f"{task}.yaml" for task in TASKS)]
    folders.require_own(folder, names)
    folders.add_own(folder, names, writer="lab tasks")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in items]
    folders.write_text(folder / "items.jsonl", "".join(lines))
    for frame, question in FRAMES.items():
        for kind, settings in (("choice", _choice()), ("write", _write(frame))):
            name = f"lab_{kind}{frame}"
            task = {"task": name, **_data(folder), "doc_to_text": question, **settings}
            text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
            # YAML's own writer does not know lm-eval's tag, which names a function.
            text = text.replace("process_results: ", "process_results: !function ")
            folders.write_text(folder / f"{name}.yaml", text)
    return folder


def _data(folder):
    files = {"test": str(folder / "items.jsonl")}
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
    }


def _choice():
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_mean("acc"), _mean("acc_norm")],
    }


def _write(frame):
    # In plain text a line ends an answer; in chat format the turn's end token does.
    until = ["\n"] if frame else []
    return {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {
            "do_sample": False,
            "max_gen_toks": 112,
            "until": until,
        },
        "process_results": f"{__name__}.verdict",
        "metric_list": [_mean("good"), _mean("content")],
    }


def _mean(metric):
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}
