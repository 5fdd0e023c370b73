"""The flow of notebook 04 for any number of processes.

Knows: profile, pairs, model, trainer, what is written at the end. Does not know: the
command line (`options`), who reports a failure (`__main__`).

Every process runs all of this. What may only happen once, reading pairs and files,
happens on the main process, and the others are told.
"""

import hashlib
import json
import os
import time
from dataclasses import fields

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainerCallback

from course_utils import chat, models, recorded
from course_utils.data import mixing
from course_utils.training import ORPOConfig, ORPOTrainer, packing, resilience
from course_utils.training.batches import share
from course_utils.training.fast import FastTrainingConfig, PackedORPOTrainer

GIB = 2**30
COLUMNS = ("prompt", "chosen", "rejected")


def run(options, profile):
    """Train as asked; the adapter, its tokenizer and run.json lie in options.output.

    run.json is written last. Every process must call this.
    Returns: what run.json holds, on the main process; None on others.
    Raises: ValueError or OSError that say what to change.
    """
    start = time.perf_counter()
    transformers.utils.logging.disable_progress_bar()
    require_fsdp_to_fit(options, profile)
    trainer, pairs, settings = prepare(options, profile)
    state = PartialState()
    last = broadcast_from_main(lambda: checkpoint_to_resume(options, settings))
    progress = Progress(state.is_main_process)
    trainer.add_callback(progress)
    trainer.data_collator = counted = CountedTokens(trainer.data_collator)
    with resilience.watched(trainer):
        trainer.train(resume_from_checkpoint=last)
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    seconds = time.perf_counter() - progress.began
    micro_batches = trainer.state.global_step - progress.first_step
    micro_batches *= trainer.args.gradient_accumulation_steps
    by_process = gather_object(
        [
            {
                "tokens": sum(counted.tokens[:micro_batches]),
                "peak_gib": peak_gib(),
                "loading_peak_gib": progress.loading_peak_gib,
            }
        ]
    )
    trainer.save_model(str(options.output))
    # FSDP's shares are still on their way to the main process when the others are done,
    # and a process that ends takes its share with it.
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    record = recorded.describe_run(options.command, start) | {
        "settings": settings,
        "trainer": options.trainer,
        "processes": state.num_processes,
        "distributed": str(trainer.accelerator.distributed_type.value),
        "pairs": len(pairs),
        "steps": trainer.state.global_step,
        "resumed_at_step": progress.first_step,
        "seconds": seconds,
        "by_process": by_process,
        "log": [row for row in trainer.state.log_history if "loss" in row],
    }
    for name in ("attention", "compile_layers", "cuda_graphs"):
        record[name] = getattr(trainer, name, None)
    write_json(options.output / "run.json", record)
    print(
        f"{options.output}: adapter, tokenizer, run.json; {seconds:.0f} s of training"
    )
    return record


def prepare(options, profile):
    """(trainer, pairs, settings): all that training needs, the same on every process.

    pairs: list of dicts with messages. settings: dict of what makes a run what it is.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    shares = share(
        options.batch_size
        or profile.per_device_batch_size * profile.gradient_accumulation_steps,
        options.micro_batch or profile.per_device_batch_size,
        processes,
        exactly=options.micro_batch is not None,
    )
    config = configuration(options, profile, shares)
    if config.n_gpu > 1:
        raise ValueError(
            f"One process sees {config.n_gpu} GPUs. Start one process a GPU with "
            "accelerate launch, or show one with CUDA_VISIBLE_DEVICES=0."
        )
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
    settings = {
        "profile": profile.name,
        "base_model": profile.base_model,
        "nf4": profile.nf4,
        "dtype": profile.dtype,
        "lora_rank": profile.lora_rank,
        "batch_size": shares.batch,
        "micro_batch": shares.micro_batch,
        "steps": config.max_steps,
        "learning_rate": config.learning_rate,
        "beta": config.beta,
        "max_length": config.max_length,
        "optim": str(config.optim.value),
        "seed": config.seed,
        "token_rows": control_ids,
        "pairs": len(pairs),
        "pairs_sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
    }
    return trainer, pairs, settings


def configuration(options, profile, shares):
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


def make_trainer(options, profile, model, tokenizer, config, pairs):
    """The trainer that was asked for: PackedORPOTrainer, ORPOTrainer, or TRL's own."""
    adapter = None
    if options.adapter:
        model = PeftModel.from_pretrained(model, options.adapter, is_trainable=True)
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


def fast_config(options):
    """The fast trainer's FastTrainingConfig, with what was asked for.

    Raises: ValueError for a lever that does not exist, naming those that do.
    """
    known, asked = [field.name for field in fields(FastTrainingConfig)], {}
    for text in options.lever:
        name, _, value = text.partition("=")
        if name not in known or not value:
            raise ValueError(
                f"--lever {text}: give NAME=VALUE, NAME one of {', '.join(known)}."
            )
        try:
            asked[name] = json.loads(value)  # a number, true, false or null
        except ValueError:
            asked[name] = value
    return FastTrainingConfig(**asked)


def require_fsdp_to_fit(options, profile):
    """ValueError if accelerate was told to use FSDP for what it cannot do."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    optim = options.optim or profile.optim
    problems = {
        "FSDP here means FSDP2: set fsdp_version: 2, as the shipped fsdp.yaml does.": (
            os.environ.get("FSDP_VERSION") != "2"
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


# ---- once, on the main process ----


def broadcast_from_main(function):
    """What `function` returns on the main process, told to all of them.

    A ValueError or OSError there is raised everywhere, so that all end together.
    """
    box = [None, None]
    if PartialState().is_main_process:
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = error
    broadcast_object_list(box)
    result, error = box
    if error is not None:
        raise error
    return result


def read_pairs(options, profile, tokenizer):
    """(pairs, Counter of reasons to drop one): what to train on, checked."""
    if options.pairs_file:
        rows = read_json_lines(options.pairs_file)
    else:
        mix = mixing.build(profile.data, evaluation_pairs=profile.eval_pairs)
        rows = mix.train.select_columns(list(COLUMNS))
    kept, dropped = chat.check_pairs(rows, tokenizer, profile.max_length, "drop")
    # Of a mix as many as the profile has time for; of somebody's own file all.
    most = options.pairs or (None if options.pairs_file else profile.train_pairs)
    return [{name: row[name] for name in COLUMNS} for row in kept[:most]], dropped


def read_json_lines(path):
    """The rows of a file with one JSON object a line.

    Raises: ValueError that names the line.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not an object with {COLUMNS}.")
        rows.append(row)
    return rows


def checkpoint_to_resume(options, settings):
    """The checkpoint to go on from, or None to begin; leaves settings.json there.

    Raises: ValueError if the folder holds a run and --resume was not given, or if that
        run had other settings.
    """
    folder, file = options.output, options.output / "settings.json"
    # What JSON makes of them, so that a list read back equals a list.
    settings = json.loads(json.dumps(settings))
    if file.is_file():
        if not options.resume:
            raise ValueError(
                f"{folder} holds a run already. Go on with it by --resume, or name "
                "another folder."
            )
        before = json.loads(file.read_text())
        for name, value in settings.items():
            if before.get(name) != value:
                raise ValueError(
                    f"{folder} was begun with {name} {before.get(name)}, and now it is "
                    f"{value}. Resume with the same, or name another folder."
                )
    last = resilience.last_whole_checkpoint(folder)
    if options.resume:
        print(f"resuming from {last}" if last else "no checkpoint yet: from the start")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)
    return last


def write_json(path, content):
    """Write a file that is whole whenever it is there."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


# ---- while it trains ----


class Progress(TrainerCallback):
    """Adds `seconds` to what the Trainer logs, prints it, and starts the meters."""

    def __init__(self, printing):
        self.printing = printing
        self.began = self.first_step = self.loading_peak_gib = None

    def on_train_begin(self, args, state, control, **_):
        self.loading_peak_gib = peak_gib()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.began, self.first_step = time.perf_counter(), state.global_step

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" not in logs:
            return
        seconds = time.perf_counter() - self.began
        state.log_history[-1]["seconds"] = seconds
        if self.printing:
            print(
                f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  "
                f"{seconds:.1f} s",
                flush=True,
            )


class CountedTokens:
    """A collator that notes how many tokens each micro-batch has, prefixes once."""

    def __init__(self, collator):
        self.collator = collator
        self.tokens = []

    def __call__(self, features):
        pairs = [packing.pair_from_row(row) for row in features]
        self.tokens.append(sum(map(packing.packed_length, pairs)))
        return self.collator(features)


def peak_gib():
    """The most that this process has allocated on its GPU so far, or None."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / GIB
