"""ORPOTrainer: a batch of pairs in, a loss and its metrics out.

transformers' Trainer does the rest. Where it differs from TRL's: see ORPOConfig.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.trainer_utils import EvalLoopOutput

from course_utils import orpo
from course_utils.training import orpo_checks
from course_utils.training.orpo_batches import PairCollator, both_sides
from course_utils.training.orpo_config import ORPOConfig
from course_utils.training.orpo_model import prepare_model
from course_utils.training.orpo_rows import Lengths, tokenize_rows
from course_utils.training.progress import LiveLine


class ORPOTrainer(Trainer):
    """Trains a causal language model on preference pairs; Hong et al. 2024.

    model: a transformers model, a PeftModel, or a name for from_pretrained.
    train_dataset, eval_dataset: rows with chosen, rejected and maybe prompt, messages
        or strings. eval_dataset may be a dict of datasets.
    processing_class: the tokenizer; by default that of the model's name.
    peft_config: for a fresh adapter. trainer_arguments: those of transformers' Trainer.
    Raises: ValueError that names the dataset's faulty rows or the wrong setting.

    `lengths` has the tokens of each dataset's pairs, by its name.
    """

    loss_is_scaled_for_ga = False  # read from transformers 5.19 on

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: ORPOConfig | None = None,
        data_collator: Callable[[list[dict]], dict] | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Dataset | IterableDataset | dict | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        **trainer_arguments: Any,
    ) -> None:
        args = ORPOConfig() if args is None else args
        model = prepare_model(model, args, peft_config)
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(
                model.config._name_or_path, trust_remote_code=False
            )
        self.padding_value = orpo_checks.padding_value(args, processing_class)
        self.beta, self.max_length = args.beta, args.max_length
        self.aux_loss_enabled = getattr(model.config, "output_router_logits", False)
        self.lengths: dict[str, Lengths] = {}
        self._stored_metrics = defaultdict(lambda: defaultdict(list))

        def tokenized(rows, name):
            if rows is None:
                return None
            if isinstance(rows, dict):
                return {k: tokenized(v, f"{name}[{k!r}]") for k, v in rows.items()}
            rows, lengths = tokenize_rows(rows, processing_class, args, name)
            if lengths is not None:
                self.lengths[name] = lengths
            return rows

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or PairCollator(self.padding_value),
            train_dataset=tokenized(train_dataset, "train_dataset"),
            eval_dataset=tokenized(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False  # read before transformers 5.19
        self.model.add_model_tags(["orpo"])
        if self.is_world_process_zero():
            orpo_checks.report_lengths(self.lengths)
        if args.disable_tqdm:
            self.add_callback(LiveLine)
        if args.still_after:
            self.add_callback(orpo_checks.StillnessCheck(self))

    def get_batch_loss_metrics(
        self, model: torch.nn.Module, batch: dict
    ) -> tuple[torch.Tensor, dict]:
        """(loss, metrics) of a padded batch of B pairs; metrics have TRL's names."""
        ids = both_sides(batch, "input_ids", self.padding_value)  # (2B, T)
        mask = both_sides(batch, "attention_mask", 0)
        labels = both_sides(batch, "labels", orpo.IGNORE_INDEX)
        real, answer = mask[:, 1:] == 1, labels[:, 1:] != orpo.IGNORE_INDEX
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        with self._autocast():
            out = model(ids, attention_mask=mask, use_cache=False, **router)
        logits = orpo.at_least_fp32(out.logits)  # (2B, T, V)
        logps = orpo.token_logps(logits, ids)  # (2B, T - 1)
        nll = -torch.where(real, logps, 0).sum(1).chunk(2)[0]  # (B,)
        means = torch.where(answer, logps, 0).sum(1) / answer.sum(1)
        logits = torch.where(real, logits.detach().mean(-1)[:, :-1], 0).sum(1)
        loss, metrics = self.loss_and_metrics(
            nll,
            *means.chunk(2),
            logits=logits.chunk(2),
            tokens=[side.sum() for side in real.chunk(2)],
            answer_tokens=answer.sum(1).chunk(2)[0],
        )
        if self.aux_loss_enabled:
            loss = loss + self.model.config.router_aux_loss_coef * out.aux_loss
        return loss, metrics

    def loss_and_metrics(
        self,
        nll: torch.Tensor,
        chosen: torch.Tensor,
        rejected: torch.Tensor,
        logits: Iterable[torch.Tensor],
        tokens: Iterable[int],
        answer_tokens: torch.Tensor,
    ) -> tuple[torch.Tensor, dict]:
        """The loss of B pairs, and everything that is logged of them.

        nll: (B,) sum of -log p over all tokens of the chosen sequence, prompt included.
        chosen, rejected: (B,) mean log-prob of the answer's tokens.
        logits: for either side (B,), the sum over its tokens of the mean logit.
        tokens: how many all B sequences of either side have; answer_tokens: (B,), of
            the chosen answers. The first token, which nothing predicts, never counts.
        """
        nll_answer, in_answer = -(chosen * answer_tokens).sum(), answer_tokens.sum()
        nll_prompt, in_prompt = nll.sum() - nll_answer, tokens[0] - in_answer
        if self.args.nll_scope == "answer":
            nll_loss = nll_answer / in_answer
        else:
            nll_loss = nll.sum() / tokens[0]
        log_odds = orpo.log_odds_ratio(chosen, rejected)
        log_sigmoid = F.logsigmoid(log_odds)
        odds_ratio_loss = -self.beta * log_sigmoid.mean()
        by_pair = {
            "rewards/chosen": self.beta * chosen,
            "rewards/rejected": self.beta * rejected,
            "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
            "rewards/margins": self.beta * (chosen - rejected),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        by_batch = {
            "logits/chosen": logits[0].sum() / tokens[0],
            "logits/rejected": logits[1].sum() / tokens[1],
            "nll_loss": nll_loss,
            "nll_loss/prompt": nll_prompt / in_prompt.clamp(min=1),
            "nll_loss/answer": nll_answer / in_answer,
            "odds_ratio_loss": odds_ratio_loss,
            "log_odds_ratio": log_sigmoid.mean(),  # TRL's name; of the log-odds ratio
            "log_odds_chosen": log_odds.mean(),
        }
        pairs = torch.stack([*by_pair.values()], dim=1)  # (B, 6)
        batch = torch.stack([*by_batch.values()])[None]
        metrics = {}
        for names, columns in ((by_pair, pairs), (by_batch, batch)):
            means = self.accelerator.gather_for_metrics(columns.detach()).mean(0)
            metrics |= dict(zip(names, means.unbind(), strict=True))
        return nll_loss + odds_ratio_loss, metrics

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        loss, metrics = self.get_batch_loss_metrics(model, inputs)
        self.store_metrics(metrics)
        return (loss, metrics) if return_outputs else loss

    def _autocast(self):
        """For 4-bit models that accelerate, with its own autocast, did not prepare."""
        if self.args.bf16 and getattr(self.model, "is_loaded_in_4bit", False):
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    # ---- evaluation and logs ----

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, metrics = self.get_batch_loss_metrics(model, inputs)
        self.store_metrics(metrics, "eval")
        if prediction_loss_only:
            return loss, None, None
        logits = [
            torch.as_tensor(metrics[f"logits/{s}"]) for s in ("chosen", "rejected")
        ]
        return loss, torch.stack(logits), torch.zeros(2)

    def evaluation_loop(
        self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        out = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **kwargs
        )
        for name, value in self._take_metrics("eval").items():
            out.metrics[f"{metric_key_prefix}_{name}"] = value
        return out

    def store_metrics(self, metrics: dict, train_eval: str = "train") -> None:
        """Keep a batch's metrics, on the device, until they are logged."""
        for name, value in metrics.items():
            self._stored_metrics[train_eval][name].append(value)

    def _take_metrics(self, train_eval):
        return {
            name: torch.stack([torch.as_tensor(v) for v in values]).mean().item()
            for name, values in self._stored_metrics.pop(train_eval, {}).items()
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._take_metrics("train")
        super().log(logs, start_time)
