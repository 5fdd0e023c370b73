"""What a run should tell before it has cost an hour: lengths, small evaluations, and
that nothing moves."""

import logging
import math
from typing import Any

import numpy as np
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from course_utils.chat.untrained import untrained_token_ids
from course_utils.training.orpo_config import ORPOConfig
from course_utils.training.orpo_rows import Lengths

ENOUGH_PAIRS = 200  # 95 % interval of an accuracy: at most 0.07 to either side
STILL = 0.005  # nats of log-odds that nobody would call a change
LOW_SHARE = 0.1  # of the loss, for the preference term
# The paper trains all weights at 8e-6; an adapter needs about ten times that or more.
LOW_RATES = {"an adapter": 5e-5, "all weights": 2e-6}
logger = logging.getLogger(__name__)


def padding_value(args: ORPOConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id to pad with. Raises: ValueError if neither names one."""
    value = args.padding_value
    value = tokenizer.pad_token_id if value is None else value
    if value is None:
        raise ValueError(
            "The tokenizer has no pad token: set tokenizer.pad_token (a reserved "
            "token, not the end token), or padding_value in ORPOConfig."
        )
    return value


def report_lengths(lengths: dict[str, Lengths]) -> None:
    """Log how long the pairs are, and warn of cut answers and small evaluation sets."""
    for name, found in lengths.items():
        cut = found.chosen_cut.any() or found.rejected_cut.any()
        logger.log(logging.WARNING if cut else logging.INFO, str(found))
        count = len(found.prompt)
        if name.startswith("eval_dataset") and count < ENOUGH_PAIRS:
            low, high = wilson_interval(0.5, count)
            logger.warning(
                f"{name} has {count} pairs: an accuracy of 0.5 measured on them has "
                f"the 95 % interval {low:.2f} to {high:.2f}. Take at least "
                f"{ENOUGH_PAIRS} pairs; to tell 0.55 from 0.5 takes about 800."
            )


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share seen in `count` items; Wilson 1927."""
    z = 1.959964
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    half *= z / (1 + z**2 / count)
    return middle - half, middle + half


class StillnessCheck(TrainerCallback):
    """Warns once if the log-odds of chosen over rejected do not change.

    After `args.still_after` logs (and ENOUGH_PAIRS pairs) the second half of the logged
    means is compared with the first: a difference within twice its standard error, or
    below STILL, is none.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.logs, self.judged = trainer, [], False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self.logs, self.judged = [], False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict | None = None,
        **_: Any,
    ) -> None:
        if self.judged or "log_odds_chosen" not in logs:
            return
        self.logs.append(dict(logs, step=state.global_step))
        pairs = state.global_step * args.train_batch_size * args.world_size
        pairs *= args.gradient_accumulation_steps
        if len(self.logs) >= args.still_after and pairs >= ENOUGH_PAIRS:
            self.judged = True
            change, error = change_of_halves([e["log_odds_chosen"] for e in self.logs])
            if abs(change) <= max(2 * error, STILL) and state.is_world_process_zero:
                logger.warning(self._message(change, error, pairs, args, state))

    def _message(self, change, error, pairs, args, state):
        reasons = [
            *self._learning_rate(args, state),
            *self._beta(args),
            *self._end_token(),
        ]
        return (
            f"Nothing moves: in {state.global_step} steps ({pairs} pairs) the log-odds "
            f"of chosen over rejected changed by {change:+.4f} nats, with a standard "
            f"error of {error:.4f}. "
            + " ".join(reasons or ["Look at the pairs: do the answers differ?"])
        )

    def _learning_rate(self, args, state):
        peak = max(entry.get("learning_rate", 0.0) for entry in self.logs)
        kind = "an adapter" if hasattr(self.trainer.model, "peft_config") else None
        kind = kind or "all weights"
        if peak < LOW_RATES[kind]:
            yield (
                f"The learning rate was at most {peak:g}; {kind} usually needs "
                f"{LOW_RATES[kind]:g} or more."
            )
        warmup = args.get_warmup_steps(state.max_steps)
        if state.global_step <= warmup:
            yield f"Warm-up is not over: it takes {warmup} steps."

    def _beta(self, args):
        whole = np.mean([abs(entry["loss"]) for entry in self.logs])
        share = np.mean([entry["odds_ratio_loss"] for entry in self.logs]) / whole
        if share < LOW_SHARE:
            yield (
                f"With beta {args.beta:g} the preference term is {share:.0%} of the "
                "loss: a larger beta gives it more weight."
            )

    def _end_token(self):
        tokenizer = self.trainer.processing_class
        end = tokenizer.eos_token_id
        if end is None or self.trainer.is_fsdp_enabled or self._is_trained(end):
            return
        untrained, _ = untrained_token_ids(self.trainer.model, [end])
        if untrained:
            yield (
                f"The end token {tokenizer.eos_token} looks untrained, and its rows "
                "are not trained now: add it to trainable_token_indices of "
                "embed_tokens and lm_head."
            )

    def _is_trained(self, token_id):
        model = self.trainer.model
        if not hasattr(model, "peft_config"):
            return model.get_input_embeddings().weight.requires_grad
        adapter = model.peft_config[model.active_adapter]
        rows = getattr(adapter, "trainable_token_indices", None) or []
        tables = rows.values() if isinstance(rows, dict) else [rows]
        trained = any(token_id in table for table in tables)
        return trained or bool(getattr(adapter, "modules_to_save", None))


def change_of_halves(values: list[float]) -> tuple[float, float]:
    """(mean of the second half minus that of the first, its standard error)."""
    first, second = np.array_split(np.asarray(values, dtype=float), 2)
    error = math.sqrt(sum(np.var(half, ddof=1) / len(half) for half in (first, second)))
    return float(second.mean() - first.mean()), error
