"""A look at losses and gradients before the optimizer acts on them.

Knows: a Trainer's callbacks, TRL's batches. Does not know: why a loss is not finite,
but for the one cause that it can see.
"""

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback


class NotFinite(RuntimeError):
    """A loss or gradient was NaN or infinite; no weight was touched.

    step: the optimizer step that was not made. rows: of the train dataset.
    """

    def __init__(self, message, step, rows):
        super().__init__(message)
        self.step, self.rows = step, rows


class Guard(TrainerCallback):
    """Looks at losses and gradients once a step, before the optimizer does."""

    def __init__(self, trainer):
        self._trainer = trainer
        self.forget()

    def forget(self):
        self._batches, self._losses = [], []

    def saw(self, batch, loss):
        """Remember a micro-batch and its loss; asking for the value would wait."""
        self._batches.append(batch)
        self._losses.append(loss.detach())

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        # GradScaler meets infinite gradients in float16 by itself and skips the step.
        gradients = [
            _own_part(p.grad)
            for p in model.parameters()
            if p.grad is not None and not args.fp16
        ]
        losses = torch.stack([loss.float() for loss in self._losses])
        norms = torch._foreach_norm(gradients) if gradients else []
        values = torch.cat([losses, *(norm.float().reshape(1) for norm in norms)])
        if not values.isfinite().all():
            self._stop(state, losses.isfinite().tolist(), model)
        self.forget()

    def _stop(self, state, losses_finite, model):
        step = state.global_step + 1
        batches = [
            batch
            for batch, finite in zip(self._batches, losses_finite, strict=True)
            if not finite
        ]
        what = "loss" if batches else "gradient"
        if any("step_groups" in batch for batch in self._batches):
            batches = self._batches  # the fast trainer's last loss is that of them all
        rows, empty = _rows_of(self._trainer, batches or self._batches)
        self.forget()
        model.zero_grad()
        raise NotFinite(
            f"Step {step}: the {what} is not finite, and the step was not made: the "
            f"weights are those of step {step - 1}. Rows of the train dataset in it: "
            f"{', '.join(map(str, rows))}."
            + (
                f" Row {', '.join(map(str, empty))} has no token left to score: its "
                "prompt fills max_length. Drop it (chat.check_pairs)."
                if empty
                else " Look at these rows; or lower the learning rate."
            ),
            step,
            rows,
        )


def _own_part(gradient):
    """A gradient, or under FSDP this process's part of it."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _rows_of(trainer, batches):
    """(row numbers in the train dataset, those without a token to score)."""
    wanted = {}
    for batch in batches:
        for number in range(len(batch["chosen_input_ids"])):
            ids, empty = [], False
            for side in ("chosen", "rejected"):
                real = batch[f"{side}_attention_mask"][number].bool()
                ids.append(tuple(batch[f"{side}_input_ids"][number][real].tolist()))
                empty |= not (batch[f"{side}_labels"][number][real][1:] != -100).any()
            wanted[tuple(ids)] = bool(empty)
    rows, empty = [], []
    columns = ["chosen_input_ids", "rejected_input_ids"]
    for number, row in enumerate(trainer.train_dataset.select_columns(columns)):
        ids = tuple(tuple(row[column]) for column in columns)
        if ids in wanted:
            rows.append(number)
            if wanted[ids]:
                empty.append(number)
    return rows, empty
