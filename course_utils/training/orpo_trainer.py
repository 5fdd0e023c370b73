"""ORPOTrainer: a batch of pairs in, a loss and its metrics out.

transformers' Trainer does the rest: steps, schedules, checkpoints, several processes.
Where it differs from TRL's trainer: see ORPOConfig.
"""

import contextlib
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)

from course_utils import orpo
from course_utils.training import orpo_checks, orpo_model, orpo_rows
from course_utils.training.orpo_config import ORPOConfig

Datasets = Dataset | IterableDataset | dict[str, Dataset]


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

    loss_is_scaled_for_ga = False  # from transformers 5.19 on
    _tag_names = ("orpo",)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: ORPOConfig | None = None,
        data_collator=None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Datasets | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config=None,
        **trainer_arguments: Any,
    ):
        args = ORPOConfig() if args is None else args
        if not isinstance(args, ORPOConfig):
            raise TypeError(
                f"args must be a course_utils.training.ORPOConfig, got "
                f"{type(args).__module__}.{type(args).__name__}."
            )
        model = orpo_model.prepare_model(model, args, peft_config)
        config = model.config
        if processing_class is None:
            processing_class = AutoTokenizer.from_pretrained(config._name_or_path)
        padding = args.padding_value
        self.padding_value = (
            processing_class.pad_token_id if padding is None else padding
        )
        if self.padding_value is None:
            raise ValueError(
                "The tokenizer has no pad token: set tokenizer.pad_token (a reserved "
                "token, not the end token), or padding_value."
            )
        self.beta, self.max_length = args.beta, args.max_length
        self.aux_loss_enabled = getattr(config, "output_router_logits", False)
        self.lengths: dict[str, orpo_rows.Lengths] = {}
        self._stored_metrics = defaultdict(lambda: defaultdict(list))

        def tokenized(dataset, name):
            if isinstance(dataset, dict):
                return {k: tokenized(v, f"{name}[{k!r}]") for k, v in dataset.items()}
            if dataset is None:
                return None
            with PartialState().main_process_first():
                rows, lengths = orpo_rows.tokenize_rows(
                    dataset,
                    processing_class,
                    args.max_length,
                    name,
                    args.refuse_prompt_twice,
                    args.dataset_num_proc,
                )
            if lengths is not None:
                self.lengths[name] = lengths
            return rows

        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or orpo_rows.PairCollator(self.padding_value),
            train_dataset=tokenized(train_dataset, "train_dataset"),
            eval_dataset=tokenized(eval_dataset, "eval_dataset"),
            processing_class=processing_class,
            **trainer_arguments,
        )
        self.model_accepts_loss_kwargs = False  # before transformers 5.19
        self.model.add_model_tags(list(self._tag_names))
        orpo_checks.report_lengths(self.lengths, self.is_world_process_zero())
        if args.still_after:
            self.add_callback(orpo_checks.StillnessCheck(self))

    # ---- the loss ----

    def get_batch_loss_metrics(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, metrics) of a padded batch of B pairs; metrics have TRL's names."""
        ids = orpo_rows.both_sides(batch, "input_ids", self.padding_value)  # (2B, T)
        mask = orpo_rows.both_sides(batch, "attention_mask", 0)
        labels = orpo_rows.both_sides(batch, "labels", orpo.IGNORE_INDEX)
        real, answer = mask[:, 1:] == 1, labels[:, 1:] != orpo.IGNORE_INDEX
        with self._autocast():
            router = {"output_router_logits": True} if self.aux_loss_enabled else {}
            out = model(ids, attention_mask=mask, use_cache=False, **router)
        logits = orpo.at_least_fp32(out.logits)  # (2B, T, V)
        logps = orpo.token_logps(logits, ids)  # (2B, T - 1)
        nll = -torch.where(real, logps, 0).sum(1).chunk(2)[0]  # (B,)
        chosen, rejected = (torch.where(answer, logps, 0).sum(1) / answer.sum(1)).chunk(
            2
        )  # (B,) each
        with torch.no_grad():
            means = torch.where(real, logits.mean(-1)[:, :-1], 0).sum(1)  # (2B,)
        loss, metrics = self.loss_and_metrics(
            nll,
            chosen,
            rejected,
            means.chunk(2),
            tokens=[part.sum() for part in real.chunk(2)],
            answer_tokens=answer.sum(1).chunk(2)[0],
        )
        if self.aux_loss_enabled:
            loss = loss + self.model.config.router_aux_loss_coef * out.aux_loss
        return loss, metrics

    def loss_and_metrics(
        self, nll, chosen, rejected, logits, tokens, answer_tokens
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of B pairs, and everything that is logged of them.

        nll: (B,) sum of -log p over all tokens of the chosen sequence, prompt included.
        chosen, rejected: (B,) mean log-prob of the answer's tokens.
        logits: two (B,), sums over tokens of the mean logit. tokens: how many tokens
            all B sequences of either side have; answer_tokens: (B,) of the chosen.
        """
        nll_answer = -(chosen * answer_tokens).sum()
        in_prompt = (tokens[0] - answer_tokens.sum()).clamp(min=1)
        if self.args.nll_scope == "answer":
            nll_loss = nll_answer / answer_tokens.sum()
        else:
            nll_loss = nll.sum() / tokens[0]
        log_odds = orpo.log_odds_ratio(chosen, rejected)
        ratio = F.logsigmoid(log_odds)
        loss = nll_loss - self.beta * ratio.mean()
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
            "nll_loss/prompt": (nll.sum() - nll_answer) / in_prompt,
            "nll_loss/answer": nll_answer / answer_tokens.sum(),
            "odds_ratio_loss": -self.beta * ratio.mean(),
            "log_odds_ratio": ratio.mean(),
            "log_odds_chosen": log_odds.mean(),
        }
        # Two collective calls for all of them.
        metrics = {}
        for values, columns in (
            (by_pair, torch.stack(list(by_pair.values()), dim=1)),
            (by_batch, torch.stack(list(by_batch.values()))[None]),
        ):
            means = self.accelerator.gather_for_metrics(columns.detach()).mean(0)
            metrics |= dict(zip(values, means.unbind(), strict=True))
        return loss, metrics

    def compute_loss(
        self, model, inputs, return_outputs=False, num_items_in_batch=None
    ):
        loss, metrics = self.get_batch_loss_metrics(model, inputs)
        self.store_metrics(metrics)
        return (loss, metrics) if return_outputs else loss

    def _autocast(self):
        # Trainer's own autocast is around a prepared model only.
        if self.args.bf16 and getattr(self.model, "is_loaded_in_4bit", False):
            return torch.autocast(self.args.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    # ---- evaluation and logs ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad():
            loss, metrics = self.get_batch_loss_metrics(
                model, self._prepare_inputs(inputs)
            )
        self.store_metrics(metrics, "eval")
        if prediction_loss_only:
            return loss, None, None
        logits = torch.stack([metrics["logits/chosen"], metrics["logits/rejected"]])
        return loss, logits, torch.zeros_like(logits)

    def evaluation_loop(
        self,
        dataloader,
        description,
        prediction_loss_only=None,
        ignore_keys=None,
        metric_key_prefix="eval",
    ):
        out = super().evaluation_loop(
            dataloader,
            description,
            prediction_loss_only,
            ignore_keys,
            metric_key_prefix,
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
