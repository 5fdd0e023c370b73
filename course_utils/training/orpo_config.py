"""ORPOConfig: TRL's names and defaults, checked, and without its traps."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

NLL_SCOPES = ("prompt_and_answer", "answer")


@dataclass
class ORPOConfig(TrainingArguments):
    """The settings of ORPOTrainer and PackedORPOTrainer.

    Names and defaults are those of TRL 1.16's `ORPOConfig`, besides all fields of
    transformers' `TrainingArguments`:

    beta: weight of the preference term, >= 0; the paper's lambda.
    max_length: tokens of prompt and answer together. Only answers are cut.
    nll_scope: what the NLL covers: "prompt_and_answer", as TRL, or "answer", as the
        paper's equation 6.
    disable_dropout: set the rate of every dropout module to 0, and say which.
    padding_value: token id to pad with. None: the tokenizer's pad token.
    model_init_kwargs: for `from_pretrained`, where the model is given by its name.
    dataset_num_proc: processes that tokenise the dataset.
    refuse_prompt_twice: refuse rows whose answers repeat their prompt.
    still_after: after so many logs without a change in the log-odds the trainer warns
        once, with the likely reasons. 0: never.

    Where it differs from TRL 1.16:

    | setting | TRL 1.16 | here |
    |---|---|---|
    | prompt that fills max_length | the loss is NaN | refused, with the row's number |
    | prompt counted twice | trained as it is | refused, with the row's number |
    | disable_dropout=True | silent | names the modules whose rate becomes 0 |
    | NLL | prompt and answer | the same, or the answer alone by nll_scope |
    | logging_nan_inf_filter | True: NaN is logged as 0 | False |
    | remove_unused_columns | True, then overwritten | False |
    | bf16 unset | on, wherever fp16 is off | on where the device computes in bf16 |
    | trained token rows, NF4 and bf16 | cast to bf16 | stay in float32 |
    | max_length=None | 512, with a warning | refused |
    | a column `tools` | ignored | passed to the chat template |
    | device_map of a model given by name | "auto" | none: one device per process |
    | evaluation sets as a dict | fails | one set of metrics for each |
    | encoder-decoder, generate_during_eval | there | refused, and not there |
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
    ]

    learning_rate: float = field(
        default=1e-6, metadata={"help": "The initial learning rate for AdamW."}
    )
    logging_steps: float = field(
        default=10, metadata={"help": "Log every so many optimizer steps."}
    )
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "Compute activations again in backward."}
    )
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Compute in bfloat16. Unset: where the device can."},
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Log 0 in the place of NaN."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must be False: the loss reads all columns."}
    )
    beta: float = field(
        default=0.1, metadata={"help": "Weight of the preference term, >= 0."}
    )
    max_length: int = field(
        default=1024, metadata={"help": "Tokens of prompt and answer together."}
    )
    nll_scope: str = field(
        default="prompt_and_answer",
        metadata={"help": "What the NLL covers.", "choices": list(NLL_SCOPES)},
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set the rate of every dropout module to 0."}
    )
    padding_value: int | None = field(
        default=None, metadata={"help": "Token id to pad with."}
    )
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "For from_pretrained, as JSON."}
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenise the dataset."}
    )
    refuse_prompt_twice: bool = field(
        default=True, metadata={"help": "Refuse answers that repeat their prompt."}
    )
    still_after: int = field(
        default=10, metadata={"help": "Logs without a change before a warning."}
    )

    def __post_init__(self) -> None:
        self._check()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and _computes_in_bf16(self.use_cpu)
        super().__post_init__()

    def _check(self):
        """Raises: ValueError that names the setting and what to give."""
        for name in ("beta", "learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} must be a number, got {value!r}.")
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be finite and >= 0, got {value!r}.")
        if not isinstance(self.max_length, int) or self.max_length < 2:
            raise ValueError(
                f"max_length must be an integer of at least 2, got {self.max_length!r}:"
                " it is the tokens of prompt and answer together."
            )
        if self.nll_scope not in NLL_SCOPES:
            raise ValueError(
                f"nll_scope must be one of {', '.join(NLL_SCOPES)}, got "
                f"{self.nll_scope!r}."
            )
        if self.remove_unused_columns:
            raise ValueError(
                "remove_unused_columns must be False: the Trainer would remove the "
                "columns of token ids, which no model takes by their names."
            )
        if self.still_after < 0 or 0 < self.still_after < 4:
            raise ValueError(
                f"still_after must be 0 or at least 4, got {self.still_after}: two "
                "halves of the logs are compared."
            )


def _computes_in_bf16(use_cpu):
    """Does the GPU compute in bf16 by itself? torch's own answer counts emulation."""
    if use_cpu or not torch.cuda.is_available():
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)
