"""A short training of a tiny Llama that writes down which rows each step saw.

    python resilience_run.py FOLDER KILL_AT

kills itself with SIGKILL in the middle of step KILL_AT.
"""

import json
import os
import signal
import sys
from pathlib import Path

from course_utils.setup import profiles

profiles.stay_offline()  # before the libraries read their variables
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tiny_llama import TEXTS, tiny_model, tiny_tokenizer  # noqa: E402

from course_utils.training import (  # noqa: E402
    ORPOConfig,
    ORPOTrainer,
    resilience,
)

STEPS, SAVE_STEPS = 6, 2
WORDS = " ".join(TEXTS).split()


def pairs(count=24):
    """Pairs of different lengths, no two alike."""
    return [
        {
            "prompt": f"What is {number} + 38?",
            "chosen": " " + " ".join(WORDS[number : number + 5]),
            "rejected": " " + " ".join(WORDS[number + 7 : number + 9]),
        }
        for number in range(count)
    ]


def make_trainer(folder, rows=None, kind=ORPOTrainer, **changes):
    """The trainer; `order.jsonl` in its folder gets a line per micro-batch."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "save_steps": SAVE_STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_length": 64,
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "logging_nan_inf_filter": False,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    config = ORPOConfig
    if kind.__module__.startswith("trl."):
        from trl.experimental.orpo import ORPOConfig as config
    made = kind(
        model=tiny_model(len(tokenizer), hidden_size=32),
        args=config(**(settings | changes)),
        train_dataset=Dataset.from_list(rows or pairs()),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    step = made.training_step

    def training_step(model, batch, *rest):
        with open(Path(folder) / "order.jsonl", "a", encoding="utf-8") as file:
            seen = [made.state.global_step, batch["chosen_input_ids"].sum(1).tolist()]
            file.write(json.dumps(seen) + "\n")
        return step(model, batch, *rest)

    made.training_step = training_step
    Path(folder).mkdir(parents=True, exist_ok=True)
    return made


def order(folder):
    """[step, what identifies its rows] of each micro-batch, the last time it ran."""
    lines = (Path(folder) / "order.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1])
    inner, left = trainer.training_step, 2 * (int(sys.argv[2]) - 1) + 1

    def dying(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return inner(*arguments)

    trainer.training_step = dying
    with resilience.watched(trainer):
        trainer.train()
