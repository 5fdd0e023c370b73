"""Records TRL 1.16's ORPO for tests that outlive it; from the checkout's root:

    PYTHONPATH=tests/helpers python tests/golden/make_golden.py

Writes tokens.json, steps.json and curve.json beside this file. test_golden.py reads
them; it needs no TRL. Run it only with TRL 1.16: other versions are other references.
"""

import json
import random
import tempfile
from importlib.metadata import version
from pathlib import Path

import golden_cases
from fast_harness import random_feature, run_step, text_rows
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from course_utils.data import mixing

HERE = Path(__file__).parent
TRL = (ORPOTrainer, ORPOConfig)


def write(name, content):
    """One line per entry, so that a difference can be read."""
    made_with = {name: version(name) for name in ("trl", "transformers", "torch")}
    lines = [f'"made with": {json.dumps(made_with)}']
    lines += [
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}"
        for key, value in content.items()
    ]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (HERE / name).write_text(text, encoding="utf-8", newline="\n")


def steps(folder):
    """Optimizer steps of random pairs: {kind: {features, loss, metrics, gradients}}."""
    found = {}
    for number, kind in enumerate(golden_cases.KINDS):
        chance = random.Random(number)
        groups = [[random_feature(chance) for _ in range(size)] for size in (3, 1, 2)]
        trainer = golden_cases.make(kind, *TRL, folder, text_rows(4))
        loss, metrics, gradients = run_step(trainer, groups)
        gradients = golden_cases.projections(gradients)
        found[kind] = {"groups": groups, "loss": loss, "metrics": metrics}
        found[kind]["gradients"] = gradients
    return found


def main():
    with tempfile.TemporaryDirectory() as folder:
        write("tokens.json", golden_cases.tokens(*TRL, folder))
        write("steps.json", steps(folder))
        columns = ["prompt", "chosen", "rejected"]
        lab_rows = mixing.build().train.select_columns(columns).to_list()[:24]
        curves = {}
        for name, rows in (("lab", lab_rows), ("LoRA", text_rows(24))):
            settings = golden_cases.CURVE_SETTINGS
            if name == "lab":
                trainer = golden_cases.make_lab(*TRL, folder, rows, **settings)
            else:
                trainer = golden_cases.make("LoRA", *TRL, folder, rows, **settings)
            curves[name] = {"rows": rows} | golden_cases.curve(trainer)
        write("curve.json", curves)


if __name__ == "__main__":
    main()
