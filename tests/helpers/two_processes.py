"""Run under torch.distributed.run: TRL's trainer and both of ours, two processes.

Argument: the folder for theirs-RANK.pt, plain-RANK.pt and packed-RANK.pt.
"""

import sys
from pathlib import Path

import torch
from fast_harness import lora, make_trainer, trained
from trl_orpo import trl_orpo

from course_utils.training import ORPOTrainer
from course_utils.training.fast import FastTrainingConfig, PackedORPOTrainer


def main(folder):
    for name, cls, extra in (
        ("theirs", trl_orpo().ORPOTrainer, {}),
        ("plain", ORPOTrainer, {}),
        # so small that the windows take several rows
        (
            "packed",
            CountingTrainer,
            {"fast_config": FastTrainingConfig(token_budget=90)},
        ),
    ):
        trainer = make_trainer(
            cls,
            folder,
            peft_config=lora(),
            rows=22,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            logging_steps=1,
            max_steps=6,
            **extra,
        )
        if name == "packed" and trainer.accelerator.process_index == 1:
            for parameter in trained(trainer.model).values():
                parameter.data.add_(1)  # the first process's adapter is what counts
        trainer.rows_must_match = True  # as under FSDP; the others know no such thing
        trainer.train()
        wrapped = isinstance(
            trainer.model_wrapped, torch.nn.parallel.DistributedDataParallel
        )
        assert wrapped == (name != "packed")
        result = {
            "weights": {n: p.data for n, p in trained(trainer.model).items()},
            "logs": trainer.state.log_history,
            "rows": getattr(trainer, "rows", []),
            "passes": getattr(trainer, "passes", []),
        }
        rank = trainer.accelerator.process_index
        torch.save(result, folder / f"{name}-{rank}.pt")


class CountingTrainer(PackedORPOTrainer):
    """Counts the rows of each step, and the rows that run with those of others."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rows, self.passes = [], []

    def _idle_rows(self, rows):
        idle = super()._idle_rows(rows)
        self.rows.append(len(rows))
        self.passes.append(len(rows) + len(idle))
        return idle


if __name__ == "__main__":
    main(Path(sys.argv[1]))
