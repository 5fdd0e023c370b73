"""What tests/golden records of TRL's ORPO, run with any trainer of its interface.

Weights come from a formula, so that they are the same with every version of PyTorch.
"""

import torch
from datasets import Dataset
from fast_harness import config, lora, tokenizer, trained
from orpo_rows_samples import AWKWARD, both_tokenizers
from tiny_llama import tiny_model

from course_utils.lab import base

SIDES = ("chosen", "rejected")
MAX_LENGTHS = (64, 300)
KINDS = ("all weights", "LoRA", "tied embeddings")
STEPS = 50


def set_weights(model):
    """Fill all weights with a sequence of numbers spread evenly; norms around 1."""
    for number, (name, weight) in enumerate(model.named_parameters()):
        count = torch.arange(1, weight.numel() + 1, dtype=torch.float64)
        spread = (count * 0.6180339887498949 + number * 0.414213562373095) % 1 - 0.5
        scale = 1.0 if weight.ndim == 1 else 3 * weight.shape[-1] ** -0.5
        spread = spread.view_as(weight) * (0.2 if weight.ndim == 1 else scale)
        weight.data = spread.to(weight.dtype) + (1 if "norm" in name else 0)


def make(kind, cls, config_cls, folder, rows, **settings):
    """A trainer around the tiny model, in float64."""
    tied = kind == "tied embeddings"
    model = tiny_model(len(tokenizer()), tie_word_embeddings=tied).double()
    trainer = cls(
        model,
        config(folder, config_cls, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=lora() if kind == "LoRA" else None,
    )
    for parameter in trained(trainer.model).values():
        parameter.data = parameter.data.double()
    set_weights(trainer.model)
    return trainer


def make_lab(cls, config_cls, folder, rows, **settings):
    """A trainer around the lab's base model, all weights trained, in float64."""
    model, reading = base.load_base()
    return cls(
        model.double(),
        config(folder, config_cls, max_length=base.MAX_LENGTH, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=reading,
    )


def tokens(cls, config_cls, folder):
    """{case: the ids of a row, and where its labels begin}, of every awkward row."""
    found = {}
    for number, reading in enumerate(both_tokenizers()):
        for length in MAX_LENGTHS:
            for kind, row in AWKWARD.items():
                trainer = cls(
                    tiny_model(len(reading)),
                    config(folder, config_cls, max_length=length),
                    train_dataset=Dataset.from_list([row]),
                    processing_class=reading,
                )
                case = f"{kind}, tokenizer {number}, max_length {length}"
                found[case] = in_short(trainer.train_dataset[0])
    return found


def in_short(row):
    """Ids of the prompt and of either sequence, and how many labels are -100 first."""
    short = {"prompt": row["prompt_input_ids"]}
    for side in SIDES:
        ids, labels = row[f"{side}_input_ids"], row[f"{side}_labels"]
        unscored = next((i for i, k in enumerate(labels) if k != -100), len(labels))
        assert labels == [-100] * unscored + ids[unscored:]
        assert row[f"{side}_attention_mask"] == [1] * len(ids)
        short |= {side: ids, f"{side}_unscored": unscored}
    return short


def projections(values):
    """{name: [norm, product with the evenly spread sequence]} of tensors by name."""
    found = {}
    for name, value in values.items():
        count = torch.arange(1, value.numel() + 1, dtype=torch.float64)
        spread = (count * 0.7548776662466927) % 1 - 0.5
        flat = value.double().flatten()
        found[name] = [float(flat.norm()), float(flat @ spread)]
    return found


def curve(trainer):
    """Fifty steps: what is logged at each, and how far each tensor went."""
    start = {name: p.data.clone() for name, p in trained(trainer.model).items()}
    trainer.train()
    names = ("loss", "grad_norm", "nll_loss", "log_odds_chosen", "rewards/accuracies")
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    assert len(logs) == STEPS
    moved = {n: p.data - start[n] for n, p in trained(trainer.model).items()}
    return {
        "logs": {name: [log[name] for log in logs] for name in names},
        "update": projections(moved),
    }


CURVE_SETTINGS = {
    "max_steps": STEPS,
    "logging_steps": 1,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 5,
    "gradient_accumulation_steps": 1,
}
