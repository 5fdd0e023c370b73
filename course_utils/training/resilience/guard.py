"""A look at weights, losses and gradients before the optimizer acts on them."""

from typing import Any

import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from course_utils.training.resilience.finite import (
    first_not_finite,
    own_part,
    weights,
)


class NotFinite(RuntimeError):
    """A weight, loss or gradient was NaN or infinite, and no harm was done yet.

    step: the optimizer step that was not made. rows: of the train dataset.
    """

    def __init__(self, message: str, step: int, rows: list) -> None:
        super().__init__(message)
        self.step, self.rows = step, rows


class Guard(TrainerCallback):
    """Looks at all weights once, at losses and gradients before each optimizer step."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.forget()

    def forget(self) -> None:
        self._batches, self._losses = [], []

    def saw(self, batch: dict, loss: torch.Tensor) -> None:
        """Remember a micro-batch and its loss; asking for the value would wait."""
        self._batches.append(batch)
        self._losses.append(loss.detach())

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        for trained, whose in ((False, "base model"), (True, "adapter")):
            broken = first_not_finite(weights(model, trained=trained))
            if broken:
                raise NotFinite(
                    f"The {whose} came in broken: before the first step {broken} holds "
                    f"NaN or infinite values. Take another copy of the {whose}.",
                    state.global_step + 1,
                    [],
                )

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        # GradScaler meets infinite gradients in float16 by itself and skips the step.
        gradients = [
            own_part(p.grad)
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
        cause = (
            _weights_cause(self._trainer, step)
            or _empty_cause(empty)
            or _sure_cause(self._trainer, rows)
            or "Look at these rows; or lower the learning rate, "
            f"{self._trainer.args.learning_rate:g}."
        )
        raise NotFinite(
            f"Step {step}: the {what} is not finite, and the step was not made: the "
            f"weights are those of step {step - 1}. Rows of the train dataset in it: "
            f"{', '.join(map(str, rows))}. {cause}",
            step,
            rows,
        )


def _weights_cause(trainer, step):
    broken = first_not_finite(weights(trainer.model, trained=True))
    if not broken:
        return ""
    return (
        f"The weights themselves are not finite since step {step - 1}, {broken} among "
        f"them: the learning rate, {trainer.args.learning_rate:g}, is too high. Go on "
        "from an earlier checkpoint with a lower one."
    )


def _empty_cause(empty):
    if not empty:
        return ""
    return (
        f"Row {', '.join(map(str, empty))} has no token left to score: its prompt "
        "fills max_length. Drop it (chat.check_pairs)."
    )


def _sure_cause(trainer, rows):
    """Which of these rows has an answer that the model gives probability 1.

    The model reads each row again, so not where that would wait for other processes.
    """
    if trainer.accelerator.num_processes > 1:
        return ""
    sure = []
    for number in rows:
        batch = trainer.data_collator([trainer.train_dataset[number]])
        batch = trainer._prepare_inputs(batch)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            _, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
        for side in ("chosen", "rejected"):
            logp = torch.as_tensor(metrics[f"logps/{side}"]).float()
            # Where this is infinite, so are the log-odds.
            if torch.log1p(-torch.exp(logp)).isneginf():
                sure.append(f"row {number} ({side})")
    if not sure:
        return ""
    return (
        f"The model is sure of an answer, with log-prob 0, in {', '.join(sure)}: "
        "log-odds are not defined there. Drop rows that are so easy, train fewer "
        "steps, or lower the learning rate."
    )


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
