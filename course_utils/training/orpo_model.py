"""The model that ORPO trains: loaded, prepared for 4 bit, with an adapter."""

import logging

import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from course_utils.training.orpo_config import ORPOConfig

TABLES = ("embed_tokens", "lm_head", "wte", "wpe")
logger = logging.getLogger(__name__)


def prepare_model(
    model: PreTrainedModel | str,
    args: ORPOConfig,
    peft_config: PeftConfig | None = None,
) -> PreTrainedModel:
    """The model to train, as TRL 1.16 prepares it.

    model: its name, a transformers model, or a PeftModel with an adapter to go on with.
    peft_config: a peft.PeftConfig for a fresh adapter.
    Raises: ValueError or TypeError that says what to change.
    """
    if not isinstance(args, ORPOConfig):
        found = f"{type(args).__module__}.{type(args).__name__}"
        raise TypeError(
            f"args must be a course_utils.training.ORPOConfig, got {found}."
        )
    set_seed(args.seed)  # an adapter begins with random numbers
    if isinstance(model, str):
        model = AutoModelForCausalLM.from_pretrained(
            model,
            use_safetensors=True,  # neither pickles nor a checkpoint's own code
            trust_remote_code=False,
            **(args.model_init_kwargs or {}),
        )
    elif args.model_init_kwargs:
        raise ValueError("model_init_kwargs are for a model given by its name.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder model; ORPO here trains "
            "models that continue a text (AutoModelForCausalLM)."
        )
    if peft_config is not None:
        model = _with_adapter(model, args, peft_config)
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.disable_dropout:
        _disable_dropout(model)
    _require_trainable(model, args)
    return model


def _with_adapter(model, args, peft_config):
    from peft import (
        PeftConfig,
        PeftModel,
        get_peft_model,
        prepare_model_for_kbit_training,
    )

    if not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"peft_config must be a peft.PeftConfig, got {type(peft_config).__name__}."
        )
    if isinstance(model, PeftModel):
        raise ValueError(
            "The model has an adapter already: leave peft_config out to train that "
            "one, or merge it first (merge_and_unload)."
        )
    four_bit = getattr(model, "is_loaded_in_4bit", False)
    if four_bit or getattr(model, "is_loaded_in_8bit", False):
        model = prepare_model_for_kbit_training(
            model,
            use_gradient_checkpointing=args.gradient_checkpointing,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        )
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    model = get_peft_model(model, peft_config)
    if args.bf16 and four_bit:
        _frozen_tables_to_bf16(model)
    return model


def _frozen_tables_to_bf16(model):
    """Embeddings and head back to bf16, which PEFT's 4-bit preparation made float32.

    TRL 1.16 does the same to what is trained in them; here that stays in float32, since
    steps below 1/256 of a weight are lost to bf16's rounding.
    """
    for name, parameter in model.named_parameters():
        frozen = not parameter.requires_grad and parameter.dtype == torch.float32
        if frozen and "norm" not in name and any(table in name for table in TABLES):
            parameter.data = parameter.data.to(torch.bfloat16)


def _disable_dropout(model):
    dropped = {
        name: module.p
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Dropout) and module.p > 0
    }
    for name in dropped:
        model.get_submodule(name).p = 0.0
    if dropped:
        name, rate = next(iter(dropped.items()))
        adapter = any("lora_dropout" in name for name in dropped)
        logger.warning(
            f"disable_dropout=True: the rate of {len(dropped)} dropout modules is now "
            f"0 (the first: {name}, {rate:g}). "
            + ("The adapter's lora_dropout is without effect. " if adapter else "")
            + "Set the rate to 0 yourself, or disable_dropout=False to keep it."
        )


def _require_trainable(model, args):
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise ValueError(
            "No weight of the model is trained: pass a peft_config, or load the "
            "adapter with is_trainable=True."
        )
    halves = [name for name, p in trained if p.dtype == torch.float16]
    if args.fp16 and halves:
        raise ValueError(
            f"fp16=True needs trained weights in float32, and {len(halves)} of "
            f"{len(trained)} are in float16 (the first: {halves[0]}). Load the model "
            "in float32, train an adapter, or use models.keep_trained_in_fp32."
        )
