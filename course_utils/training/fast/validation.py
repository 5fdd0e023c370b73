"""What the fast trainer refuses before it starts, and why."""

from transformers import PreTrainedModel, Trainer


def require_packable(model: PreTrainedModel, trainer: Trainer) -> None:
    """ValueError that says why a model or a setup cannot be trained in packed rows."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    peft_config = getattr(model, "active_peft_config", None)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reasons = {
        "the router's auxiliary loss averages over batches": trainer.aux_loss_enabled,
        "its attention cannot be replaced (no AttentionInterface)": (
            not getattr(base, "_supports_attention_backend", False)
        ),
        f"its sliding window of {window} tokens is shorter than max_length": (
            window is not None and window < trainer.max_length
        ),
        "prompt learning puts tokens of its own before the row": (
            getattr(peft_config, "is_prompt_learning", False)
        ),
        "DeepSpeed counts every backward pass as a micro-batch": (
            trainer.is_deepspeed_enabled
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(
                f"{type(base).__name__} cannot be trained in packed rows: {reason}. "
                "Use ORPOTrainer."
            )
