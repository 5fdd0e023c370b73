"""Preference on held-out pairs while a trainer runs."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from course_utils.evaluation.scoring import score_pairs


class PreferenceCurve(TrainerCallback):
    """Scores held-out pairs while any trainer runs, always in the same way.

    `history` is a list of {"step", "chosen", "rejected", "margin", "accuracy"}: mean
    log-probs per token in nats, mean log odds ratio, share preferred.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pairs: list[dict],
        every: int,
        max_length: int = 1024,
        on_point: Callable[[list[dict]], None] | None = None,
    ) -> None:
        """every: steps between points. on_point: called with the history at each."""
        self.tokenizer, self.pairs, self.every = tokenizer, pairs, every
        self.max_length, self.on_point = max_length, on_point
        self.history = []

    def _measure(self, model, step):
        scores = score_pairs(model, self.tokenizer, self.pairs, self.max_length)
        self.history.append(
            {
                "step": step,
                "chosen": scores.chosen.mean(),
                "rejected": scores.rejected.mean(),
                "margin": scores.margin.mean(),
                "accuracy": scores.preferred.mean(),
            }
        )
        if self.on_point:
            self.on_point(self.history)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step == 0:
            self._measure(model, 0)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(model, state.global_step)
