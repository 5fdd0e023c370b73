"""What Axolotl itself makes of the files that the course wrote for it.

Runs in Axolotl's environment: `python in_axolotl.py WORK ANSWER`. WORK is what
validate.py prepared, ANSWER the JSON to write.
"""

import json
import os
import sys
from pathlib import Path

import environment
import yaml

os.environ.update(
    AXOLOTL_DO_NOT_TRACK="1",
    AXOLOTL_DATASET_NUM_PROC="1",
    HF_HUB_OFFLINE="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    WANDB_MODE="offline",
    CUDA_VISIBLE_DEVICES="",
)
# What its schema is told of the card: there is none here.
CARDS = {
    "t4": {"bf16": False, "compute_capability": "sm_75"},
    "l4": {"bf16": True, "compute_capability": "sm_89"},
    "a100": {"bf16": True, "compute_capability": "sm_80"},
}
# Mistakes: {name: (changes, removed keys)}.
WRONG = {
    "sample_packing: true": ({"sample_packing": True}, ()),
    "rl: orpoo": ({"rl": "orpoo"}, ()),
    "adapter: qlora without load_in_4bit": ({"load_in_4bit": False}, ()),
    "warmup_ratio beside warmup_steps": ({"warmup_ratio": 0.1}, ()),
    "no chat_template": ({}, ("chat_template",)),
    "orpo_alpha misspelt as orpo_aplha": ({"orpo_aplha": 0.1}, ("orpo_alpha",)),
}


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def validate(config, card):
    import torch
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    capabilities = {"fp8": False, "tf32": True, "n_gpu": 1} | CARDS[card]
    torch_version = torch.__version__.partition("+")[0]
    return validate_config(
        DictDefault(config), capabilities, {"torch_version": torch_version}
    )


def configurations(work):
    """For each card's configuration: what the schema dropped or changed."""
    answer = {}
    for card in CARDS:
        config = read(work / card / "axolotl" / "axolotl.yaml")
        parsed = validate(dict(config), card).to_dict()
        parsed = json.loads(
            json.dumps(parsed, default=lambda x: getattr(x, "value", x))
        )
        answer[card] = environment.differing(config, parsed)
    return answer


def wrong_configurations(work):
    config = read(work / "l4" / "axolotl" / "axolotl.yaml")
    answer = {}
    for name, (changes, removed) in WRONG.items():
        wrong = {k: v for k, v in config.items() if k not in removed} | changes
        answer[name] = environment.attempt(lambda wrong=wrong: validate(wrong, "l4"))
    return answer


def build(folder):
    """(cfg, trainer) of axolotl.yaml in `folder`, through Axolotl's own functions."""
    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_preference_datasets
    from axolotl.train import setup_model_and_trainer

    os.chdir(folder)
    cfg = load_cfg(str(folder / "axolotl.yaml"))
    data = load_preference_datasets(cfg=cfg, cli_args=TrainerCliArgs())
    return cfg, setup_model_and_trainer(cfg, data)[0]


def tokens(trainer):
    columns = [
        f"{s}_{c}" for s in ("chosen", "rejected") for c in ("input_ids", "labels")
    ]
    return trainer.train_dataset.select_columns(columns).to_list()


def batch_loss(trainer, cfg, rows):
    """The loss that its trainer computes for these rows, adapter still at its start."""
    import torch
    from axolotl.prompt_strategies.orpo.chat_template import argilla

    transform, _ = argilla(cfg)
    texts = ("prompt", "chosen", "rejected")
    place = {
        tuple(row[name] for name in texts): number
        for number, row in enumerate(trainer.train_dataset.select_columns(texts))
    }
    wanted = [transform(row, tokenizer=trainer.processing_class) for row in rows]
    numbers = [place[tuple(row[name] for name in texts)] for row in wanted]
    batch = trainer.data_collator([trainer.train_dataset[n] for n in numbers])
    trainer.model.eval()
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    odds = -float(metrics["log_odds_ratio"])  # TRL logs log sigmoid of it
    return {"loss": loss.item(), "nll": float(metrics["nll_loss"]), "preference": odds}


def traps(trainer, cfg, work):
    """What the transform does with rows that the course does not write."""
    from axolotl.prompt_strategies.orpo.chat_template import argilla
    from transformers import AutoTokenizer

    transform, _ = argilla(cfg)
    lines = (
        (work / "cpu" / "axolotl" / "train.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    rows = [json.loads(line) for line in lines]
    long = next(row for row in rows if len(row["chosen"]) >= 4)
    first = long["chosen"][0]["content"]
    rendered = transform(long | {"prompt": first}, tokenizer=trainer.processing_class)
    spoken = next(row for row in rows if row["system"])
    inside = [{"role": "system", "content": spoken["system"]}]
    sides = {side: inside + spoken[side] for side in ("chosen", "rejected")}
    return {
        "`prompt` column in a multi-turn row": {
            "user turns": [m["content"] for m in long["chosen"] if m["role"] == "user"],
            "rendered prompt": rendered["prompt"],
        },
        "no chat_template": environment.attempt(
            lambda: argilla(type(cfg)({**cfg, "chat_template": None}))[0](
                spoken, tokenizer=AutoTokenizer.from_pretrained(work / "base")
            )
        ),
        "system message among the turns": environment.attempt(
            lambda: transform(sides, tokenizer=trainer.processing_class)
        ),
    }


def cut(trainer, max_length):
    """How its TRL cuts the answers of a row that max_length has no room for."""
    row = max(trainer.train_dataset, key=lambda row: len(row["chosen_input_ids"]))
    before = trainer.max_length
    trainer.max_length = max_length
    tokens = trainer.tokenize_row(row, trainer.model)
    trainer.max_length = before
    answer = sum(label != -100 for label in tokens["chosen_labels"])
    prompt = len(tokens["chosen_labels"]) - answer
    return {
        "max_length": max_length,
        "prompt tokens": prompt,
        "room for the answer": max_length - prompt,
        "answer tokens kept": answer,
    }


def trained_parameters(folder):
    """environment.parameters of the adapter over NF4, just built, not trained."""
    from axolotl.cli.config import load_cfg
    from axolotl.loaders import ModelLoader, load_tokenizer

    os.chdir(folder)
    cfg = load_cfg(str(folder / "axolotl.yaml"))
    model, _ = ModelLoader(cfg, load_tokenizer(cfg)).load()
    return environment.parameters(model)


def main(work, answer):
    found = {"environment": environment.describe("axolotl")}
    found["configurations"] = configurations(work)
    found["wrong configurations"] = wrong_configurations(work)
    cfg, trainer = build(work / "cpu" / "axolotl")
    found["trainer"] = type(trainer).__name__
    rows = (
        (work / "cpu" / "axolotl" / "train.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    found["rows"] = tokens(trainer)
    count = len(json.loads((work / "batch.json").read_text(encoding="utf-8")))
    batch = [json.loads(line) for line in rows[:count]]
    found["batch"] = batch_loss(trainer, cfg, batch)
    found["wrong rows"] = traps(trainer, cfg, work)
    found["an answer cut by its TRL"] = cut(trainer, 100)
    found["losses of the steps"] = environment.losses(trainer)
    _, plain = build(work / "base_eos" / "axolotl")
    found["rows with the base's eos"] = tokens(plain)[:8]
    found["adapter over NF4"] = trained_parameters(work / "nf4" / "axolotl")
    environment.write(answer, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
