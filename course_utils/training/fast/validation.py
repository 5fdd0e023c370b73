"""What the fast trainer refuses before it starts, and why.

Knows: rows, models and setups that packed rows cannot serve. Does not know: training.
"""

from course_utils import chat


def require_answers(dataset, name, most=5):
    """ValueError naming the rows of a tokenised dataset whose prompt fills max_length.

    A dataset that can only be iterated is checked batch by batch instead.
    """
    if dataset is None or not hasattr(dataset, "select_columns"):
        return
    if not hasattr(dataset, "__len__"):
        return
    empty = []
    columns = dataset.select_columns(["chosen_labels", "rejected_labels"])
    for number, row in enumerate(columns.with_format("numpy")):
        for labels in row.values():
            if not chat.has_answer(labels):
                empty.append(number)
                break
    if empty:
        shown = ", ".join(map(str, empty[:most])) + (", ..." if empty[most:] else "")
        raise ValueError(
            f"{name}: {len(empty)} of {len(dataset)} rows leave no room for an answer "
            f"(row {shown}): the prompt alone fills max_length, and TRL would compute "
            "NaN. Drop them (chat.check_pairs), or raise max_length."
        )


def require_packable(model, trainer):
    """ValueError that says why a model or a setup cannot be trained in packed rows."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    peft_config = getattr(model, "active_peft_config", None)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    reasons = {
        "encoder-decoder models have no common row": trainer.is_encoder_decoder,
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
                "Use TRL's ORPOTrainer."
            )
