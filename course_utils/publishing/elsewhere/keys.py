"""The course's settings in both tools' keys, each trap with its reason.

Knows: the keys of Axolotl and of LLaMA-Factory. Does not know: data, files.

A configuration is a list of (key, value, why): `why` becomes the comment above the key.
"""

from course_utils import models

# <|start_header_id|>, <|end_header_id|> and <|eot_id|> of every Llama 3 tokenizer.
LLAMA3_CONTROL_IDS = (128006, 128007, 128009)
PADDING = "<|reserved_special_token_0|>"  # what chat.use_llama3_chat takes


def _base(profile, key):
    why = ""
    if profile.ungated_copy:
        why = f"The ungated copy of {profile.base_model}: this tool looks for no other."
    return key, profile.ungated_copy or profile.base_model, why


def axolotl_keys(profile, control_ids, steps, warmup_steps):
    """Axolotl's keys; arguments as elsewhere.axolotl."""
    return [
        _base(profile, "base_model"),
        ("adapter", "qlora" if profile.nf4 else "lora", ""),
        (
            "load_in_4bit",
            profile.nf4,
            "NF4 with double quantisation is Axolotl's default." if profile.nf4 else "",
        ),
        ("lora_r", profile.lora_rank, ""),
        ("lora_alpha", profile.lora_alpha, ""),
        ("lora_dropout", 0.0, "TRL switches dropout off, whatever stands here."),
        ("lora_target_modules", models.LINEAR_LAYERS, ""),
        (
            "peft_trainable_token_indices",
            {matrix: list(control_ids) for matrix in ("embed_tokens", "lm_head")},
            "The chat tokens' rows in both matrices: no pretraining trained them, and "
            "LoRA on the projections does not. A plain list would leave lm_head out.",
        ),
        ("rl", "orpo", ""),
        (
            "orpo_alpha",
            profile.beta,
            "The course's beta. rl_beta and trl.beta would win over it, so neither is "
            "set.",
        ),
        ("chat_template", "llama3", "Named, because a base tokenizer brings none."),
        (
            "special_tokens",
            {"eos_token": "<|eot_id|>", "pad_token": PADDING},
            "With the base's eos, TRL appends a second end token to every answer. "
            "Padding is never the end token. Both tokens exist: nothing is resized.",
        ),
        (
            "datasets",
            [
                {
                    "path": "train.jsonl",
                    "ds_type": "json",
                    "type": "chat_template.argilla",
                }
            ],
            "Without a `prompt` column: this transform puts `prompt` in the place of "
            "every user turn. The system message has its own column: among the turns "
            "it stops the transform.",
        ),
        ("sequence_len", profile.max_length, ""),
        (
            "excess_length_strategy",
            "drop",
            "The TRL that Axolotl pins cuts long answers wrongly; the course's does "
            "not, and cuts where this drops.",
        ),
        ("sample_packing", False, "Preference rows cannot be packed."),
        ("remove_unused_columns", False, "The trainer tokenises the text columns."),
        ("micro_batch_size", profile.per_device_batch_size, ""),
        ("gradient_accumulation_steps", profile.gradient_accumulation_steps, ""),
        ("num_epochs", 1, "max_steps decides."),
        ("max_steps", steps, ""),
        ("learning_rate", profile.learning_rate, ""),
        ("lr_scheduler", "linear", ""),
        ("warmup_steps", warmup_steps, ""),
        ("optimizer", profile.optim, ""),
        ("bf16", profile.dtype == "bfloat16", "bf16: auto would hide the choice."),
        ("fp16", profile.dtype == "float16", ""),
        ("gradient_checkpointing", profile.gradient_checkpointing, ""),
        ("attn_implementation", "sdpa", "PyTorch's own; flash-attn must be compiled."),
        ("logging_steps", 5, ""),
        ("logging_nan_inf_filter", False, "Show NaN instead of hiding it."),
        ("val_set_size", 0, "Evaluation is notebook 05's, on pairs of its own."),
        ("seed", 0, ""),
        ("output_dir", "../axolotl-run", ""),
        ("dataset_prepared_path", "../axolotl-prepared", ""),
    ]


def llama_factory_keys(profile, steps, warmup_steps):
    """LLaMA-Factory's keys; arguments as elsewhere.llama_factory."""
    four_bit = [
        ("quantization_bit", 4, "NF4 with double quantisation is the default."),
        ("quantization_method", "bnb", ""),
    ]
    on_cpu = [
        (
            "use_cpu",
            True,
            "It trains in the checkpoint's own dtype: on a CPU give it a float32 copy.",
        )
    ]
    return [
        _base(profile, "model_name_or_path"),
        *(four_bit if profile.nf4 else []),
        *(on_cpu if profile.name == "cpu" else []),
        ("stage", "dpo", "There is no stage `orpo` any more: pref_loss says it."),
        (
            "pref_loss",
            "orpo",
            "Check the spelling: an unknown word passes the parser and trains DPO.",
        ),
        ("pref_beta", profile.beta, "The course's beta."),
        ("do_train", True, ""),
        ("finetuning_type", "lora", ""),
        ("lora_rank", profile.lora_rank, ""),
        ("lora_alpha", profile.lora_alpha, ""),
        (
            "lora_dropout",
            0.0,
            "The trainer switches dropout off, whatever stands here.",
        ),
        ("lora_target", ",".join(models.LINEAR_LAYERS), ""),
        (
            "additional_target",
            "embed_tokens,lm_head",
            "The nearest to the course's trainable_token_indices, which has no key "
            "here: both matrices whole, because the chat tokens' rows are untrained. "
            "On Llama 3 8B these are 1,050,673,152 more weights to train, about "
            "9.8 GiB (computed: fp32 copies 3.9, gradients 3.9, 8-bit Adam 2.0).",
        ),
        ("template", "llama3", "Ends a turn with <|eot_id|>, and makes it the eos."),
        ("dataset_dir", ".", ""),
        ("dataset", "course", "An entry of dataset_info.json."),
        (
            "cutoff_len",
            profile.max_length,
            "May cut the prompt as well as the answer, and its end token: pass pairs "
            "that fit.",
        ),
        ("per_device_train_batch_size", profile.per_device_batch_size, ""),
        ("gradient_accumulation_steps", profile.gradient_accumulation_steps, ""),
        ("max_steps", steps, ""),
        ("learning_rate", profile.learning_rate, ""),
        ("lr_scheduler_type", "linear", ""),
        ("warmup_steps", warmup_steps, ""),
        ("optim", profile.optim, ""),
        ("bf16", profile.dtype == "bfloat16", ""),
        ("fp16", profile.dtype == "float16", ""),
        (
            "disable_gradient_checkpointing",
            not profile.gradient_checkpointing,
            "LLaMA-Factory has it on unless this key says otherwise.",
        ),
        ("flash_attn", "sdpa", "PyTorch's own; flash-attn must be compiled."),
        ("logging_steps", 5, ""),
        ("logging_nan_inf_filter", False, "Show NaN instead of hiding it."),
        ("report_to", "none", ""),
        ("seed", 0, ""),
        ("output_dir", "../llama-factory-run", ""),
    ]
