"""What the command needs before it trains: model, pairs, trainer, settings."""

import hashlib
import json
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import PreTrainedTokenizerBase, Trainer

from course_utils import chat, models
from course_utils.setup.profiles import Profile
from course_utils.training import ORPOConfig, ORPOTrainer, resilience
from course_utils.training.batches import Shares, share
from course_utils.training.fast import PackedORPOTrainer
from course_utils.training.options import fast_config
from course_utils.training.reading import broadcast_from_main, read_pairs
from course_utils.training.resuming import adapter_fingerprint, base_fingerprint


def plan(options: Namespace, profile: Profile) -> tuple[ORPOConfig, Shares]:
    """The configuration, and how processes share a step; nothing is loaded yet.

    Raises: ValueError that says what to change; UsageError for an impossible lever.
    """
    require_fsdp_to_fit(options, profile)
    require_adapter(options.adapter)
    fast_config(options)
    shares = share(
        options.batch_size
        or profile.per_device_batch_size * profile.gradient_accumulation_steps,
        options.micro_batch or profile.per_device_batch_size,
        int(os.environ.get("WORLD_SIZE", "1")),
        exactly=options.micro_batch is not None,
    )
    config = configuration(options, profile, shares)
    if config.n_gpu > 1:
        raise ValueError(
            f"One process sees {config.n_gpu} GPUs. Start one process a GPU with "
            "accelerate launch, or show one with CUDA_VISIBLE_DEVICES=0."
        )
    return config, shares


def prepare(
    options: Namespace, profile: Profile, config: ORPOConfig, shares: Shares
) -> tuple[Trainer, list[dict], dict]:
    """(trainer, pairs, settings): all that training needs, the same on every process.

    config, shares: what `plan` returned.
    pairs: list of dicts with messages. settings: dict of what makes a run what it is.
    """
    # Sets each process's GPU, on which load_base then puts the model.
    state = PartialState()
    model, tokenizer = models.load_base(profile)
    control_ids = chat.use_llama3_chat(tokenizer)
    pairs, dropped = broadcast_from_main(
        lambda: read_pairs(options, profile, tokenizer)
    )
    # Whole steps only: with a rest, processes would disagree about an epoch's end.
    pairs = pairs[: len(pairs) // shares.batch * shares.batch]
    if not pairs:
        raise ValueError(
            f"There are fewer pairs than the {shares.batch} of one step. Lower "
            "--batch-size, or give more pairs."
        )
    config.max_steps = options.steps or len(pairs) // shares.batch
    if state.is_main_process:
        print(
            f"{len(pairs)} pairs (dropped: {dict(dropped)}), {config.max_steps} steps "
            f"of {shares.batch}: {shares.processes} processes x "
            f"{shares.accumulation} x {shares.micro_batch}",
            flush=True,
        )
    trainer = make_trainer(options, profile, model, tokenizer, config, pairs)
    models.keep_trained_in_fp32(trainer.model)  # TRL casts trained token rows to bf16
    chat.assert_labels_hold_no_user_text(trainer, tokenizer, pairs)
    trainer.remove_callback(transformers.PrinterCallback)
    fast = options.trainer == "fast"
    settings = {
        "profile": profile.name,
        "base_model": base_fingerprint(models.resolve_model(profile)[0], model),
        "nf4": profile.nf4,
        "dtype": profile.dtype,
        "adapter": adapter_fingerprint(options.adapter),
        "lora_rank": profile.lora_rank,
        "batch_size": shares.batch,
        "micro_batch": shares.micro_batch,
        "steps": config.max_steps,
        "fsdp": trainer.is_fsdp_enabled,
        "learning_rate": config.learning_rate,
        "beta": config.beta,
        "max_length": config.max_length,
        "optim": str(config.optim.value),
        "seed": config.seed,
        "token_rows": control_ids,
        "pairs": len(pairs),
        "pairs_sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
        "trainer": options.trainer,
        "fast_config": asdict(fast_config(options)) if fast else None,
        "processes": shares.processes,
    }
    return trainer, pairs, settings


def configuration(options: Namespace, profile: Profile, shares: Shares) -> ORPOConfig:
    """The ORPOConfig of notebook 04; its steps are set once the pairs are read.

    For --trainer stock it is TRL's. Raises: ModuleNotFoundError where TRL has no ORPO.
    """
    config_class = ORPOConfig
    if options.trainer == "stock":
        from trl.experimental.orpo import ORPOConfig as config_class

    def chosen(name):
        value = getattr(options, name)
        return getattr(profile, name) if value is None else value

    return config_class(
        output_dir=str(options.output),
        learning_rate=chosen("learning_rate"),
        beta=chosen("beta"),
        lr_scheduler_type="linear",
        warmup_steps=10,
        per_device_train_batch_size=shares.micro_batch,
        gradient_accumulation_steps=shares.accumulation,
        max_length=profile.max_length,
        optim=chosen("optim"),
        bf16=profile.dtype == "bfloat16",
        fp16=profile.dtype == "float16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=profile.gradient_checkpointing,
        # Reentrant checkpoints and DDP do not go together.
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=options.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if options.save_steps else "no",
        save_steps=options.save_steps or 500,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to=options.report_to,
        disable_tqdm=True,
        seed=options.seed,
        log_level_replica="error",
        # All that is trained takes part in every pass.
        ddp_find_unused_parameters=False,
    )


def make_trainer(
    options: Namespace,
    profile: Profile,
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    config: ORPOConfig,
    pairs: list[dict],
) -> ORPOTrainer:
    """The trainer that was asked for: PackedORPOTrainer, ORPOTrainer, or TRL's own."""
    adapter = None
    if options.adapter:
        model = _with_adapter(model, options.adapter)
    else:
        control_ids = chat.use_llama3_chat(tokenizer)
        adapter = LoraConfig(
            r=profile.lora_rank,
            lora_alpha=profile.lora_alpha,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules=models.LINEAR_LAYERS,
            trainable_token_indices={
                "embed_tokens": control_ids,
                "lm_head": control_ids,
            },
        )
    kind = {"fast": PackedORPOTrainer, "plain": ORPOTrainer}.get(options.trainer)
    if kind is None:
        from trl.experimental.orpo import ORPOTrainer as kind
    fast = options.trainer == "fast"
    extra = {"fast_config": fast_config(options)} if fast else {}
    trainer = kind(
        model,
        config,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=adapter,
        **extra,
    )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if plugin is not None and config.bf16:
        # accelerate's own would reduce gradients and return log-probs in bf16.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16,
            reduce_dtype=torch.float32,
            # The others take the log-softmax of what the model returns.
            output_dtype=None if fast else torch.float32,
        )
    return trainer


def require_adapter(folder: Path | None) -> None:
    """Raise ValueError, naming the file, unless `folder` holds a whole adapter."""
    if folder is None:
        return
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(
                f"--adapter {folder}: there is no {name}. Give the folder that "
                "save_pretrained wrote; pickled weights are not read."
            )
    broken = resilience.broken_weights(folder / "adapter_model.safetensors")
    if broken:
        raise ValueError(f"--adapter {folder} came in broken: {broken}.")


def _with_adapter(model, folder):
    try:
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    except (RuntimeError, KeyError, TypeError) as error:  # PEFT's, for other shapes
        raise ValueError(
            f"--adapter {folder} does not fit this base model: {error}"
        ) from error


def require_fsdp_to_fit(options: Namespace, profile: Profile) -> None:
    """ValueError if accelerate was told to use FSDP for what it cannot do."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    optim = options.optim or profile.optim
    problems = {
        "FSDP here means FSDP2: set fsdp_version: 2, as the shipped fsdp.yaml does.": (
            os.environ.get("FSDP_VERSION") != "2"
        ),
        "Checkpoints want fsdp_state_dict_type: FULL_STATE_DICT, as in fsdp.yaml.": (
            os.environ.get("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
            != "FULL_STATE_DICT"
        ),
        "FSDP shards weights in 16 bit, and leaves NF4 weights whole on every GPU. Add "
        "--sixteen-bit, or take the configuration ddp for QLoRA.": profile.nf4,
        f"The optimizer {optim} keeps its state in a format of its own, which FSDP "
        "cannot shard. Add --optim adamw_torch.": "bit" in optim or "paged" in optim,
        "accelerate runs FSDP on GPUs only. Take the configuration ddp.": (
            "ACCELERATE_TORCH_DEVICE" not in os.environ
            and not torch.cuda.is_available()
        ),
    }
    for problem, applies in problems.items():
        if applies:
            raise ValueError(problem)
