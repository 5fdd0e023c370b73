"""Shared by the tests of the fast trainer: tiny trainers, random pairs, one step.

An optimizer step is run through the Trainer's own two methods, `get_batch_samples` and
`training_step`, by TRL's trainer and by ours alike.
"""

import random

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_llama import TEXTS, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from trl_orpo import trl_orpo

from course_utils import models
from course_utils.training import ORPOConfig, PackedORPOTrainer

VOCABULARY = 48
TRAINED_ROWS = [1, 2]  # frequent in the random pairs below
# TRL's average includes what the model says about padding; ours does not.
WITH_PADDING = {"logits/chosen", "logits/rejected"}


def tokenizer():
    found = tiny_tokenizer()
    found.pad_token = "<|reserved_special_token_0|>"
    return found


def text_rows(count, seed=0):
    """Rows of text for trainers that tokenise themselves, lengths mixed."""
    chance = random.Random(seed)

    def words(most):
        text = chance.choice(TEXTS)
        start = chance.randrange(len(text) - 10)
        return text[start : start + chance.randint(3, most)]

    return [
        {"prompt": words(20), "chosen": words(60), "rejected": words(40)}
        for _ in range(count)
    ]


def nf4_model(folder, dtype=torch.float32, **shape):
    """A tiny model in NF4 that computes in `dtype`, on a GPU if there is one."""
    tiny_model(len(tokenizer()), **{"hidden_size": 64} | shape).save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=models.nf4_config(dtype),
        dtype=dtype,
        device_map={"": 0} if torch.cuda.is_available() else None,
    )


def lora(train_rows=True, **changes):
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "task_type": "CAUSAL_LM",
        "target_modules": models.LINEAR_LAYERS,
        "init_lora_weights": False,  # both matrices random: every gradient flows
    }
    if train_rows:
        rows = {"embed_tokens": TRAINED_ROWS, "lm_head": TRAINED_ROWS}
        settings["trainable_token_indices"] = rows
    return LoraConfig(**settings | changes)


def config(folder, cls=ORPOConfig, **changes):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "beta": 0.5,
        "max_length": 64,
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
        "seed": 0,
    }
    return cls(**settings | changes)


def make_trainer(
    cls, folder, dtype=torch.float64, model=None, peft_config=None, rows=4, **settings
):
    """A trainer of class `cls` around a tiny Llama, all trained weights in `dtype`.

    settings: eval_dataset, callbacks, fast_config and the like go to the trainer, the
        rest to ORPOConfig.
    """
    rows = text_rows(rows) if isinstance(rows, int) else rows
    names = (
        "eval_dataset",
        "callbacks",
        "fast_config",
        "compute_metrics",
        "data_collator",
    )
    of_trainer = {name: settings.pop(name) for name in names if name in settings}
    of_trainer.setdefault("callbacks", None)
    reading = tokenizer()
    if model is None:
        model = tiny_model(len(reading)).to(dtype)
    of_trl = cls.__module__.startswith("trl.")
    trainer = cls(
        model,
        config(folder, trl_orpo().ORPOConfig if of_trl else ORPOConfig, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=reading,
        peft_config=peft_config,
        **of_trainer,
    )
    if dtype is not None:
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return trainer


def make_both(
    folder, make_model=lambda: None, fast_config=None, cls=PackedORPOTrainer, **settings
):
    """(TRL's trainer, ours), alike in everything and with the same trained weights.

    cls: the class of ours. Skips the test where TRL's ORPO is not installed.
    """
    reference = trl_orpo().ORPOTrainer
    theirs = make_trainer(reference, folder, model=make_model(), **settings)
    extra = {"fast_config": fast_config} if cls is PackedORPOTrainer else {}
    ours = make_trainer(cls, folder, model=make_model(), **extra, **settings)
    copy_trained(theirs.model, ours.model)
    return theirs, ours


def trained(model):
    """{name: parameter} of what a model trains."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def copy_trained(source, target):
    """Give `target` the trained weights of `source`, in its own precision."""
    source = trained(source)
    for name, parameter in trained(target).items():
        parameter.data.copy_(source[name].data)


def random_feature(chance, vocabulary=VOCABULARY):
    """A tokenised row: short prompts, common beginnings and short answers frequent."""
    prompt = [chance.randrange(vocabulary) for _ in range(chance.choice([1, 1, 2, 7]))]
    common = [chance.randrange(vocabulary) for _ in range(chance.choice([0, 0, 3]))]
    rests = [
        [chance.randrange(vocabulary) for _ in range(chance.choice([0, 1, 1, 4, 11]))]
        for _ in range(2)
    ]
    return feature(prompt, *(common + rest or [0] for rest in rests))


def feature(prompt, chosen, rejected):
    """A tokenised row, as either trainer makes it, from ids."""
    row = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        row[f"{side}_input_ids"] = prompt + answer
        row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
        row[f"{side}_labels"] = [-100] * len(prompt) + answer
    return row


def run_step(trainer, groups):
    """(loss, {name: metrics of the micro-batches}, gradients) of an optimizer step.

    groups: micro-batches, each a list of features.
    """
    batches = [trainer.data_collator(group) for group in groups]
    trainer.model.zero_grad()
    samples, items = trainer.get_batch_samples(
        iter(batches), len(batches), trainer.args.device
    )
    trainer.current_gradient_accumulation_steps = len(samples)
    losses = [trainer.training_step(trainer.model, each, items) for each in samples]
    metrics = trainer._stored_metrics.pop("train")
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in trained(trainer.model).items()
        if parameter.grad is not None
    }
    return (
        float(sum(losses)),
        {name: [float(value) for value in values] for name, values in metrics.items()},
        gradients,
    )


def gradient_error(found, expected):
    """Norm of the difference of two gradients, as a share of the expected norm."""
    assert found.keys() == expected.keys()
    difference = torch.cat([(found[k] - expected[k]).flatten() for k in expected])
    whole = torch.cat([gradient.flatten() for gradient in expected.values()])
    return float(difference.norm() / whole.norm())


def assert_same_step(theirs, ours, groups, tolerance=1e-6, gradient_tolerance=None):
    """Loss, metrics and gradients of an optimizer step are equal, to `tolerance`."""
    loss, metrics, gradients = run_step(ours, groups)
    expected_loss, expected_metrics, expected_gradients = run_step(theirs, groups)
    assert abs(loss - expected_loss) <= tolerance * abs(expected_loss)
    assert metrics.keys() >= expected_metrics.keys()
    # Log-odds and margins are differences of mean log-probs, which set the scale.
    scale = max(
        1, *(abs(v) for k in ("chosen", "rejected") for v in metrics[f"logps/{k}"])
    )
    # Of two answers that are the same, rounding decides which is ahead.
    ties = [
        sum(row["chosen_input_ids"] == row["rejected_input_ids"] for row in group)
        / len(group)
        for group in groups
    ]
    for name in expected_metrics.keys() - WITH_PADDING:
        for value, expected, tied in zip(
            metrics[name], expected_metrics[name], ties, strict=True
        ):
            slack = tied if name == "rewards/accuracies" else 0
            assert abs(value - expected) <= tolerance * scale + slack, name
    error = gradient_error(gradients, expected_gradients)
    assert error <= (gradient_tolerance or tolerance), error
