"""Run by test_orpo_trainer under torch.distributed.run: TRL's plain trainer and ours.

Argument: the folder for theirs-RANK.pt and ours-RANK.pt.
"""

import sys
from pathlib import Path

import torch
from fast_harness import lora, make_trainer, trained
from trl_orpo import trl_orpo

from course_utils.training import ORPOTrainer


def main(folder):
    for name, cls in (("theirs", trl_orpo().ORPOTrainer), ("ours", ORPOTrainer)):
        trainer = make_trainer(
            cls,
            folder,
            peft_config=lora(),
            rows=22,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            logging_steps=1,
            max_steps=6,
        )
        trainer.train()
        rank = trainer.accelerator.process_index
        result = {
            "weights": {n: p.data for n, p in trained(trainer.model).items()},
            "logs": trainer.state.log_history,
        }
        torch.save(result, folder / f"{name}-{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
