"""Ask Axolotl and LLaMA-Factory themselves about the files that the course writes.

    python tests/elsewhere/validate.py --make FOLDER
    python tests/elsewhere/validate.py --axolotl PYTHON --llama-factory PYTHON

The first form makes the two environments in FOLDER (about 3 GB with a CPU build of
torch, kept for the next time) and uses them; the second uses environments that are
there. Everything runs on the CPU, with the lab's model in float32.

Writes course_utils/recorded/elsewhere.json: what each parser said of the configurations
and of wrong ones, whether the tokens are the course's, three optimizer steps, and the
ORPO loss of one batch by each trainer, beside the course's decomposition of it. Exits
with an error, and writes nothing, if a check fails.
"""

import argparse
import collections
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import replace
from pathlib import Path

from course_utils.setup import profiles

profiles.stay_offline()  # the libraries read the environment when first imported
# ruff: noqa: E402
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from course_utils import chat, lab, recorded
from course_utils.data import mixing
from course_utils.publishing import elsewhere
from course_utils.setup import places
from course_utils.setup.printing import print_safely

HERE = Path(__file__).resolve().parent
RECORD = places.PACKAGE / "recorded" / "elsewhere.json"
TOOLS = ("axolotl", "llama_factory")
PAIRS, STEPS, TOLERANCE = 200, 10, 1e-5
TORCH = "torch==2.13.0"


def make_environment(folder, tool):
    """Path of the Python of a new environment for the tool; as it is if there is one.

    The tool's list is installed without dependencies: the GPU parts are left out, and
    Axolotl is not kept from a Python older than it asks for. What is missing or of
    another version than the tool asks for, the record says.
    """
    scripts = "Scripts" if os.name == "nt" else "bin"
    python = folder / tool / scripts / "python"
    if not python.exists():
        venv.create(folder / tool, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, TORCH], check=True)
        listed = ["--no-deps", "--ignore-requires-python", "-r", HERE / f"{tool}.txt"]
        subprocess.run([*pip, *listed], check=True)
    return python


def choose_pairs():
    """(batch, pairs): one pair of each source and the longest; these and others."""
    mix = list(mixing.build().train)
    batch = list({pair["source"]: pair for pair in reversed(mix)}.values())
    batch.append(max(mix, key=lambda pair: len(json.dumps(pair))))
    rest = [pair for pair in mix if pair not in batch]
    return batch, [*batch, *rest[: PAIRS - len(batch)]]


def prepare(work, batch, pairs):
    """Everything that the tools read, below `work`. Returns the profile of the run."""
    base = work / "base"
    model = AutoModelForCausalLM.from_pretrained(
        profiles.lab_model_folder(), dtype=torch.float32
    )
    model.save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(profiles.lab_model_folder())
    tokenizer.save_pretrained(base)
    control_ids = chat.use_llama3_chat(tokenizer)
    known = profiles.all_profiles()
    here = replace(known["cpu"], base_model=str(base))
    in_4bit = replace(here, nf4=True, dtype="bfloat16")
    for name, profile, ids in [
        *((card, known[card], elsewhere.LLAMA3_CONTROL_IDS) for card in known),
        ("cpu", here, control_ids),
        ("nf4", in_4bit, control_ids),
    ]:
        count = {"steps": STEPS} if profile.base_model == str(base) else {}
        if name == "cpu" and profile is not here:
            continue
        elsewhere.axolotl(profile, pairs, work / name / "axolotl", ids, **count)
        elsewhere.llama_factory(profile, pairs, work / name / "llama_factory", **count)
    shutil.copytree(work / "cpu", work / "base_eos")
    config = work / "base_eos" / "axolotl" / "axolotl.yaml"
    without = yaml.safe_load(config.read_text(encoding="utf-8"))
    del without["special_tokens"]["eos_token"]
    config.write_text(yaml.safe_dump(without), encoding="utf-8")
    (work / "batch.json").write_text(json.dumps(batch), encoding="utf-8")
    return here


def ask(python, tool, work):
    """The answer of in_<tool>.py, run by the tool's own Python."""
    answer = work / f"{tool}.json"
    log = work / f"{tool}.log"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    with open(log, "w", encoding="utf-8") as file:
        run = subprocess.run(
            [python, HERE / f"in_{tool}.py", work, answer],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=clean,
            cwd=work,
        )
    if run.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-30:])
        raise SystemExit(f"{tool} ended with {run.returncode}:\n{tail}")
    return json.loads(answer.read_text(encoding="utf-8"))


def same_tokens(found, pairs, tokenizer, max_length):
    """How many of the tool's rows are, id for id and label for label, the course's."""
    columns = [
        f"{s}_{c}" for s in ("chosen", "rejected") for c in ("input_ids", "labels")
    ]

    def key(row):
        return json.dumps([row[column] for column in columns])

    ours = collections.Counter()
    for pair in pairs:
        row = chat.tokenize_pair(tokenizer, pair, max_length)
        ours[key({column: getattr(row, column) for column in columns})] += 1
    same = sum((ours & collections.Counter(key(row) for row in found)).values())
    return {"written": len(pairs), "read": len(found), "same": same}


def double_ends(found, tokenizer):
    """Of these rows, how many chosen answers end with two end tokens."""
    ends = {
        tokenizer.convert_tokens_to_ids(t) for t in ("<|eot_id|>", "<|end_of_text|>")
    }
    return sum(set(row["chosen_input_ids"][-2:]) == ends for row in found)


def trl_loss(model, tokenizer, batch, max_length, beta):
    """The loss that the installed TRL computes for the batch."""
    columns = ["prompt", "chosen", "rejected"]
    with tempfile.TemporaryDirectory() as scratch:
        config = ORPOConfig(
            output_dir=scratch,
            max_length=max_length,
            beta=beta,
            bf16=False,
            use_cpu=True,
            report_to="none",
            remove_unused_columns=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        )
        trainer = ORPOTrainer(
            model,
            config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(batch).select_columns(columns),
        )
    rows = trainer.data_collator([trainer.train_dataset[n] for n in range(len(batch))])
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model.eval(), rows)
    odds = -float(metrics["log_odds_ratio"])
    return {"loss": loss.item(), "nll": float(metrics["nll_loss"]), "preference": odds}


def compare(answers, profile, batch):
    """(losses, definitions): each implementation's value beside the course's for it."""
    model, tokenizer = lab.load_base()
    chat.use_llama3_chat(tokenizer)
    model = model.float().eval()
    arguments = (tokenizer, batch, profile.max_length, profile.beta)
    definitions = elsewhere.loss_by_definition(model, *arguments)
    ours = {"TRL": definitions[0], "axolotl": definitions[0]}
    ours["llama_factory"] = definitions[-1]
    values = {"TRL": trl_loss(model, *arguments)}
    values |= {tool: answers[tool]["batch"] for tool in TOOLS}
    versions = recorded.versions()
    asked = {tool: answers[tool]["environment"]["versions"] for tool in TOOLS}
    names = {
        "TRL": f"TRL {versions['trl']}",
        "axolotl": f"Axolotl {asked['axolotl']['axolotl']} "
        f"(TRL {asked['axolotl']['trl']})",
        "llama_factory": f"LLaMA-Factory {asked['llama_factory']['llamafactory']}",
    }
    losses = []
    for name, value in values.items():
        terms = ("loss", "nll", "preference")
        recomputed = {term: ours[name][term] for term in terms}
        losses.append(
            {
                "implementation": names[name],
                **value,
                "definition": ours[name]["definition"],
                "recomputed": recomputed,
                "difference": max(abs(value[t] - recomputed[t]) for t in terms),
            }
        )
    return losses, definitions


def check(record):
    """Raise AssertionError where a tool does otherwise than the written files say."""
    for tool in TOOLS:
        found = record[tool]
        for card, parsed in found["configurations"].items():
            assert not parsed["dropped"] and not parsed["changed"], (tool, card, parsed)
        rows = found["tokens"]
        assert rows["written"] == rows["read"] == rows["same"], (tool, rows)
        steps = found["losses of the steps"]
        assert str(STEPS) in steps, (tool, steps)
        assert all(math.isfinite(loss) for loss in steps.values()), (tool, steps)
        assert found["adapter over NF4"]["frozen, nf4"]["tensors"] == 28, tool
    for loss in record["losses"]:
        assert loss["difference"] < TOLERANCE, loss
    check_traps(record["axolotl"], record["llama_factory"])


def check_traps(axolotl, llama_factory):
    """The traps that the written files warn of are still there, or they must change."""
    for name in ("sample_packing: true", "rl: orpoo"):
        assert axolotl["wrong configurations"][name]["refused"], name
    misspelt = axolotl["wrong configurations"]["orpo_alpha misspelt as orpo_aplha"]
    assert not misspelt["refused"], misspelt
    wrong = axolotl["wrong rows"]
    repeated = wrong["`prompt` column in a multi-turn row"]
    first, *later = repeated["user turns"]
    assert repeated["rendered prompt"].count(first) == 1 + len(later), repeated
    assert not any(turn in repeated["rendered prompt"] for turn in later), repeated
    assert wrong["system message among the turns"]["refused"], wrong
    cut = axolotl["an answer cut by its TRL"]
    assert cut["answer tokens kept"] < cut["room for the answer"], cut
    ends = axolotl["answers with two end tokens, with the base's eos"]
    assert ends["two"] == ends["rows"], ends
    assert "rows" in axolotl["adapter over NF4"], axolotl["adapter over NF4"]
    run = llama_factory["wrong configurations, run"]
    assert run["stage: orpo"]["refused"], run
    # log 2 is what DPO's loss begins with, and ORPO's does not.
    first = run["pref_loss: orpoo"]["first loss"]
    assert math.isclose(first, math.log(2), abs_tol=1e-3), run
    for name, found in llama_factory["wrong rows"].items():
        assert found["refused"], name
    assert llama_factory["tokens after its template"]["added"] == ["<|eom_id|>"]
    cut = llama_factory["rows cut"]
    assert cut["with a cut prompt"] and cut["without the end token"], cut
    assert "matrices" in llama_factory["adapter over NF4"]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", type=Path, metavar="FOLDER")
    parser.add_argument("--axolotl", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-factory", type=Path, metavar="PYTHON")
    parser.add_argument(
        "--keep", type=Path, help="a new folder for what the tools read"
    )
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    pythons = {}
    for tool in TOOLS:
        given = getattr(options, tool)
        if not given and not options.make:
            parser.error(f"give --make, or --{tool.replace('_', '-')}")
        pythons[tool] = (
            given.absolute()
            if given
            else make_environment(options.make.absolute(), tool)
        )
    batch, pairs = choose_pairs()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(options.keep or scratch).absolute()
        work.mkdir(exist_ok=True)
        profile = prepare(work, batch, pairs)
        answers = {tool: ask(pythons[tool], tool, work) for tool in TOOLS}
    tokenizer = lab.load_base()[1]
    chat.use_llama3_chat(tokenizer)
    for answer in answers.values():
        rows = answer.pop("rows")
        answer["tokens"] = same_tokens(rows, pairs, tokenizer, profile.max_length)
    unmended = answers["axolotl"].pop("rows with the base's eos")
    answers["axolotl"]["answers with two end tokens, with the base's eos"] = {
        "rows": len(unmended),
        "two": double_ends(unmended, tokenizer),
    }
    losses, definitions = compare(answers, profile, batch)
    command = "python tests/elsewhere/validate.py --make FOLDER"
    record = recorded.describe_run(command, start) | {
        "model": "the lab's base in float32",
        "beta": profile.beta,
        "max_length": profile.max_length,
        "steps": STEPS,
        "losses": losses,
        "definitions": definitions,
        **answers,
        "batch": batch,
    }
    check(record)
    RECORD.write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"{RECORD.name}: written after {record['minutes']} min")


if __name__ == "__main__":
    print_safely()
    main(sys.argv[1:])
