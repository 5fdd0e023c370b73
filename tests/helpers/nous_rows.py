"""Made-up rows in the columns of the Nous suite's data sets, which are on the hub.

The columns are those that the installed harness's own YAML files and functions read.
"""

import json
import random

WORDS = ["river", "heron", "town", "bell", "soup", "clock"]
LETTERS = ["A", "B", "C", "D"]


def row(task, i, rng):
    """Item number i of a task. Right answers and numbers of choices take turns."""

    def words(count):
        return " ".join(rng.choice(WORDS) for _ in range(count))

    four = [words(1), words(2), words(1), words(3)]
    options = {"text": four, "label": LETTERS}
    if task.startswith("agieval"):
        choices = [f"({letter}){words(1)}" for letter in LETTERS]
        return {"query": f"Q: {words(3)}?\nA:", "choices": choices, "gold": [i % 4]}
    if task.startswith("bigbench"):
        choices = [f"The {words(2)} {k}." for k in range((3, 5, 7)[i % 3])]
        right = i % len(choices)
        scores = [int(k == right) for k in range(len(choices))]
        return {
            "inputs": f"{words(3)}\nA:",
            "targets": [choices[right]],
            "multiple_choice_targets": choices,
            "multiple_choice_scores": scores,
        }
    known = {
        "hellaswag": {
            "activity_label": words(1),
            "ctx_a": words(3),
            "ctx_b": words(2),
            "endings": four,
            "label": str(i % 4),
        },
        "openbookqa": {
            "question_stem": words(3),
            "choices": options,
            "answerKey": LETTERS[i % 4],
        },
        "winogrande": {
            "sentence": f"The {words(1)} met us and _ was {words(1)}.",
            "option1": words(1),
            "option2": words(2),
            "answer": str(1 + i % 2),
        },
        "boolq": {"passage": words(6), "question": words(3), "label": i % 2},
        "piqa": {"goal": words(3), "sol1": words(4), "sol2": words(5), "label": i % 2},
        "truthfulqa_mc2": {
            "question": words(3),
            "mc1_targets": {"choices": four[:2], "labels": [1, 0]},
            "mc2_targets": {"choices": four, "labels": [1, 1, 0, 0]},
        },
    }
    arc = {"question": words(3), "choices": options, "answerKey": LETTERS[i % 4]}
    return known.get(task, arc)


def write(folder, tasks, count, seed=0):
    """`count` rows for each task, as <task>.jsonl in the folder; returns the folder."""
    rng = random.Random(seed)
    for task in tasks:
        lines = [json.dumps(row(task, i, rng)) for i in range(count)]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
