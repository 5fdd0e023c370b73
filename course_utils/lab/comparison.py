"""Six models, trained and measured alike, item by item: the table of notebook 05.

    python -m course_utils.lab.comparison

Knows: the six and their settings; what each costs; everything that is measured of them.
Does not know: how two of them are compared (`evaluation`).

All but the article's run share everything that is not their method: LoRA of rank 16 on
all projections and 124 steps of 8 pairs. Their learning rates are those that did best
in the lab's sweep, three times as high for SFT and ORPO as for DPO. The chat format is
ChatML, which the lab's base has read: TRL 1.16's SFT and DPO take the head's weight
from below PEFT's wrapper, so with trained token rows in the head they raise.

An hour on two cores; a finished run is kept, so that an interrupted record goes on
where it stopped.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from course_utils import evaluation, mixing, models, places, records
from course_utils.benchmarks import harness
from course_utils.benchmarks import lab as tasks
from course_utils.lab.base import BASE_MODEL, MAX_LENGTH, load_base
from course_utils.lab.runs import count_prompt_twice, make_trainer, trainer_arguments

RECORD = places.PACKAGE / "recorded" / "lab_comparison.json"
STEPS, RANK = 124, 16
# method, learning rate, β; DPO goes on from SFT, merged is ORPO (mended) in 16 bit.
SETTINGS = {
    "base": None,
    "SFT": ("sft", 3e-3, 0.0),
    "SFT, then DPO": ("dpo", 1e-3, 0.1),
    "ORPO (article)": ("orpo", 8e-6, 0.1),
    "ORPO (mended)": ("orpo", 3e-3, 0.5),
    "merged": None,
}
MODELS = tuple(SETTINGS)


class Passes:
    """Counts the sequences that go through a model, learning or only looking."""

    def __init__(self, model):
        self.learning = self.looking = 0
        inner = model.get_decoder()  # stays the same module when an adapter wraps it
        self._hook = inner.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        if torch.is_grad_enabled():
            self.learning += len(ids)
        else:
            self.looking += len(ids)

    def close(self):
        self._hook.remove()


def train(name, seed, folder):
    """Train one of the six and save it, merged, in float32, below `folder`.

    Returns: what it cost: {"cpu_seconds", "learning", "looking"}, sequences each.
    """
    method, learning_rate, beta = SETTINGS[name]
    start = saved(folder, "SFT", seed) if method == "dpo" else BASE_MODEL
    model, tokenizer = load_base(start)
    pairs = mixing.build().train
    article = name == "ORPO (article)"
    if article:
        pairs = count_prompt_twice(pairs, tokenizer)
    adapter = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        lora_dropout=0.05 if article else 0.0,
        task_type="CAUSAL_LM",
        target_modules=models.LINEAR_LAYERS,
    )
    passes = Passes(model)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trainer_arguments(learning_rate, STEPS, seed, scratch)
        trainer = make_trainer(
            method, model, tokenizer, pairs, beta, adapter, arguments, []
        )
        trainer.remove_callback(PrinterCallback)
        before = time.process_time()
        trainer.train()
        seconds = time.process_time() - before
    passes.close()
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(saved(folder, name, seed))
    AutoTokenizer.from_pretrained(BASE_MODEL).save_pretrained(saved(folder, name, seed))
    return {
        "cpu_seconds": round(seconds, 1),
        "learning": passes.learning,
        "looking": passes.looking,
    }


def saved(folder, name, seed):
    return Path(folder) / f"{name}-{seed}"


def load(name, seed, folder):
    """(model, tokenizer) of one of the six, as it is measured."""
    if name == "merged":  # what would be published: 16 bit on disk and in memory
        source = saved(folder, "ORPO (mended)", seed)
        tokenizer = load_base(source)[1]
        with tempfile.TemporaryDirectory() as published:
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
            model.save_pretrained(published)
            model = AutoModelForCausalLM.from_pretrained(published)
    else:
        base = name == "base"
        model, tokenizer = load_base(BASE_MODEL if base else saved(folder, name, seed))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def measure(model, tokenizer, seed):
    """Everything that is measured of a model, one entry an item.

    margins: log odds ratios of the held-out pairs in nats. Strings of 0 and 1: is the
    chosen answer preferred; are greedy and sampled answers good; does lm-eval's choice
    among four answers fall on the flawless one, in chat format and in plain text.
    """
    before = time.process_time()
    pairs = list(mixing.build().evaluation)
    scores = evaluation.score_pairs(model, tokenizer, pairs, MAX_LENGTH)
    found = {
        "chosen": round(float(scores.chosen.mean()), 4),
        "rejected": round(float(scores.rejected.mean()), 4),
        "margins": [round(float(margin), 3) for margin in scores.margin],
        "preferred": _bits(scores.preferred),
    }
    prompts = [pair["prompt"] for pair in pairs]
    for name, temperature in (("greedy", 0), ("sampled", 1.0)):
        written = evaluation.generate(model, tokenizer, prompts, temperature, seed=seed)
        verdicts = evaluation.verify_generations(prompts, written)
        found[name] = _bits(verdicts.good)
        found[f"{name}, content"] = _bits(verdicts.content)
    with tempfile.TemporaryDirectory() as folder:
        where = [tasks.write_tasks(folder, tasks.rows())]
        for name, task, in_chat in (
            ("choice, chat", "lab_choice", True),
            ("choice, plain", "lab_choice_framed", False),
        ):
            result = harness.run(model, tokenizer, [task], where, chat_template=in_chat)
            for metric, values in result.tasks[task].metrics.items():
                found[f"{name}, {metric}"] = _bits(values)
    found["measuring_cpu_seconds"] = round(time.process_time() - before, 1)
    return found


def _bits(values):
    return "".join("1" if value else "0" for value in values)


def jobs(seeds):
    """(name, seed) of every run, in an order in which each finds what it needs."""
    return [
        (name, seed)
        for seed in range(seeds)
        for name in MODELS
        if name != "base" or seed == 0
    ]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("outputs/comparison"))
    parser.add_argument("--at-most", type=int, help="stop after so many runs")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args(arguments)
    if options.seeds != 3 and options.out == RECORD:
        parser.error("this is not the whole record: name another file with --out")
    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # then CPU seconds are comparable
    options.folder.mkdir(parents=True, exist_ok=True)
    left = [
        job for job in jobs(options.seeds) if not _file(options.folder, *job).is_file()
    ]
    for name, seed in left[: options.at_most]:
        start = time.perf_counter()
        cost = train(name, seed, options.folder) if SETTINGS[name] else {}
        found = measure(*load(name, seed, options.folder), seed)
        run = {"name": name, "seed": seed, **cost, **found}
        run["minutes"] = (time.perf_counter() - start) / 60
        partial = options.folder / "partial.json"
        partial.write_text(json.dumps(run))
        partial.replace(_file(options.folder, name, seed))
        good = run["sampled"].count("1") / len(run["sampled"])
        print(f"{name}, seed {seed}: good {good:.2f}, {run['minutes']:.1f} min")
    if options.at_most is not None and len(left) > options.at_most:
        return
    _write(options)


def _file(folder, name, seed):
    return folder / f"{name}-{seed}.json"


def _write(options):
    runs = [
        json.loads(_file(options.folder, *job).read_text())
        for job in jobs(options.seeds)
    ]
    minutes = sum(run.pop("minutes") for run in runs)
    start = time.perf_counter() - 60 * minutes
    record = records.describe_run("python -m course_utils.lab.comparison", start)
    record["versions"]["lm-eval"] = records.versions(["lm-eval"])["lm-eval"]
    record["runs"] = runs
    # One line a run: the lists of margins are long and nobody reads them.
    lines = [json.dumps(run, ensure_ascii=False) for run in record.pop("runs")]
    head = json.dumps(record, indent=1, ensure_ascii=False).removesuffix("\n}")
    text = f'{head},\n "runs": [\n' + ",\n".join(lines) + "\n ]\n}\n"
    options.out.write_text(text)
    print(f"wrote {options.out.name}: {len(runs)} runs, {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
