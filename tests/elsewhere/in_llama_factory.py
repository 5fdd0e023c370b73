"""What LLaMA-Factory itself makes of the files that the course wrote for it.

Runs in LLaMA-Factory's environment: `python in_llama_factory.py WORK ANSWER`, as
in_axolotl.py.
"""

import importlib.machinery
import json
import os
import sys
import types
from pathlib import Path

import environment
import yaml

os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="offline", CUDA_VISIBLE_DEVICES="")
CARDS = ("t4", "l4", "a100")
# Mistakes: {name: (changes, removed keys)}.
WRONG = {
    "stage: orpo": ({"stage": "orpo"}, ()),
    "pref_loss: orpoo": ({"pref_loss": "orpoo"}, ()),
    "pref_beta misspelt as pref_betta": ({"pref_betta": 0.1}, ("pref_beta",)),
    "resize_vocab: true on 4 bit": ({"resize_vocab": True}, ()),
    "neat_packing: true": ({"neat_packing": True}, ()),
    "train_on_prompt: true, to score prompts as TRL does": (
        {"train_on_prompt": True},
        (),
    ),
    "no dataset": ({}, ("dataset",)),
}


def stand_in_for_torchaudio():
    """Let LLaMA-Factory import without torchaudio, which it needs for audio only.

    The registry's torchaudio wants CUDA's libraries beside it.
    """
    module = types.ModuleType("torchaudio")
    module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = module


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def parse(config):
    from llamafactory.hparams import get_train_args

    return get_train_args(dict(config))


def configurations(work):
    """For each card's configuration: what the parser dropped or changed."""
    answer = {}
    for card in CARDS:
        config = read(work / card / "llama_factory" / "llama_factory.yaml")
        parsed = {}
        # transformers refuses bf16 where there is neither a GPU nor this key.
        for part in parse(config | {"use_cpu": True}):
            parsed |= vars(part)
        parsed = json.loads(json.dumps(parsed, default=str))
        # These become lists of the names between the commas.
        for name in ("lora_target", "additional_target", "dataset"):
            parsed[name] = ",".join(parsed[name])
        parsed["report_to"] = parsed["report_to"] or "none"  # [] means none
        answer[card] = environment.differing(config, parsed)
    return answer


def wrong_configurations(work):
    config = read(work / "l4" / "llama_factory" / "llama_factory.yaml")
    answer = {}
    for name, (changes, removed) in WRONG.items():
        wrong = {k: v for k, v in config.items() if k not in removed}
        wrong |= changes | {"use_cpu": True}
        answer[name] = environment.attempt(lambda wrong=wrong: parse(wrong))
    return answer


def load_rows(folder, **changes):
    """(all arguments, tokenizer module, template, tokenised rows) of the folder."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.model import load_tokenizer

    os.chdir(folder)
    arguments = parse(read(folder / "llama_factory.yaml") | changes)
    model_args, data_args, training_args, _, _ = arguments
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(
        template, model_args, data_args, training_args, stage="rm", **module
    )["train_dataset"]
    return arguments, module, template, rows


def build(folder):
    """Its trainer on the folder's run, and its tokenised rows."""
    from llamafactory.data import PairwiseDataCollatorWithPadding
    from llamafactory.model import load_model
    from llamafactory.train.dpo.trainer import CustomDPOTrainer

    arguments, module, template, rows = load_rows(folder)
    model_args, _, training_args, finetuning_args, _ = arguments
    model = load_model(module["tokenizer"], model_args, finetuning_args, True)
    collator = PairwiseDataCollatorWithPadding(
        template=template,
        model=model,
        pad_to_multiple_of=8,
        label_pad_token_id=-100,
        **module,
    )
    trainer = CustomDPOTrainer(
        model=model,
        ref_model=None,
        args=training_args,
        finetuning_args=finetuning_args,
        data_collator=collator,
        train_dataset=rows,
        **module,
    )
    return trainer, rows


def batch_loss(trainer, rows):
    import torch

    trainer.model.eval()
    batch = trainer.data_collator(rows)
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, dict(batch))
    return {
        "loss": loss.item(),
        "nll": metrics["sft_loss"],
        "preference": metrics["odds_ratio_loss"],
    }


def wrong_rows(work):
    """What the converter does with rows or entries that the course does not write."""
    folder = work / "cpu" / "llama_factory"
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    rows = json.loads((folder / "train.json").read_text(encoding="utf-8"))

    def after(name, change_info=None, change_rows=None):
        wrong = work / name
        wrong.mkdir()
        text = (folder / "llama_factory.yaml").read_text(encoding="utf-8")
        (wrong / "llama_factory.yaml").write_text(text, encoding="utf-8")
        entry = {"course": info["course"] | (change_info or {})}
        (wrong / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
        changed = [row | (change_rows(row) if change_rows else {}) for row in rows]
        (wrong / "train.json").write_text(json.dumps(changed), encoding="utf-8")
        return environment.attempt(lambda: load_rows(wrong))

    return {
        "no `ranking: true`": after("no_ranking", {"ranking": False}),
        "no tags": after("no_tags", {"tags": {}}),
        "chosen and rejected as lists of messages": after(
            "lists",
            change_rows=lambda row: {s: [row[s]] for s in ("chosen", "rejected")},
        ),
    }


def cut(folder, rows, cutoff_len):
    """What cutoff_len leaves of these rows: prompts and end tokens."""
    (_, _, _, _, _), module, _, short = load_rows(folder, cutoff_len=cutoff_len)

    def prompt(row):
        return row["chosen_labels"].count(-100)

    end = module["tokenizer"].eos_token_id
    pairs = list(zip(rows, short, strict=True))
    long = [new for old, new in pairs if len(old["chosen_input_ids"]) > cutoff_len]
    return {
        "cutoff_len": cutoff_len,
        "rows too long": len(long),
        "with a cut prompt": sum(prompt(new) < prompt(old) for old, new in pairs),
        "without the end token": sum(r["chosen_input_ids"][-1] != end for r in long),
    }


def run(work, name, **changes):
    """The whole tool, as llamafactory-cli calls it, on a configuration with changes.

    Returns: environment.attempt's answer; with the first step's loss if it ran.
    """
    from llamafactory.train.tuner import run_exp

    folder, out = work / "cpu" / "llama_factory", work / name
    os.chdir(folder)
    config = read(folder / "llama_factory.yaml") | changes
    config |= {"output_dir": str(out), "max_steps": 1, "logging_steps": 1}
    answer = environment.attempt(lambda: run_exp(config))
    if not answer["refused"]:
        first = (out / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()[0]
        answer["first loss"] = json.loads(first)["loss"]
    return answer


def trained_parameters(folder):
    """environment.parameters of the adapter over NF4, just built, not trained."""
    from llamafactory.model import load_model

    (model_args, _, _, finetuning_args, _), module, _, _ = load_rows(folder)
    model = load_model(module["tokenizer"], model_args, finetuning_args, True)
    return environment.parameters(model)


def main(work, answer):
    stand_in_for_torchaudio()
    found = {"environment": environment.describe("llamafactory")}
    found["stand-in for"] = "torchaudio (audio only)"
    found["configurations"] = configurations(work)
    found["wrong configurations"] = wrong_configurations(work)
    trainer, rows = build(work / "cpu" / "llama_factory")
    found["trainer"] = type(trainer).__name__
    columns = [
        f"{s}_{c}" for s in ("chosen", "rejected") for c in ("input_ids", "labels")
    ]
    found["rows"] = rows.select_columns(columns).to_list()
    count = len(json.loads((work / "batch.json").read_text(encoding="utf-8")))
    found["batch"] = batch_loss(trainer, [rows[n] for n in range(count)])
    tokenizer = trainer.processing_class
    found["tokens after its template"] = {
        "tokenizer": len(tokenizer),
        "rows of the model": trainer.model.config.vocab_size,
        "added": tokenizer.convert_ids_to_tokens(
            range(trainer.model.config.vocab_size, len(tokenizer))
        ),
        "eos": tokenizer.eos_token,
        "pad": tokenizer.pad_token,
    }
    found["losses of the steps"] = environment.losses(trainer)
    found["rows cut"] = cut(work / "cpu" / "llama_factory", list(rows), 100)
    found["wrong rows"] = wrong_rows(work)
    found["wrong configurations, run"] = {
        "stage: orpo": run(work, "stage", stage="orpo"),
        "pref_loss: orpoo": run(work, "pref_loss", pref_loss="orpoo"),
    }
    found["adapter over NF4"] = trained_parameters(work / "nf4" / "llama_factory")
    environment.write(answer, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
