"""The runs of the lab's sweep: TRL's SFT and DPO, our ORPO, the lab's settings."""

import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from course_utils import chat, evaluation, models
from course_utils.data import mixing, sources
from course_utils.lab.base import BASE_MODEL, BATCH, MAX_LENGTH, load_base
from course_utils.training import ORPOConfig, ORPOTrainer


def trainer_arguments(
    learning_rate: float, steps: int, seed: int, output_dir: str
) -> dict:
    """Keyword arguments that SFTConfig, DPOConfig and ORPOConfig of the lab share."""
    return {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": BATCH,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 10,
        "max_steps": steps,
        "max_length": MAX_LENGTH,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "seed": seed,
        "data_seed": seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "optim": "adamw_torch",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def make_trainer(
    method: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    beta: float,
    lora: LoraConfig | None,
    arguments: dict,
    callbacks: list,
) -> Trainer:
    """The trainer for "sft", "dpo" (both TRL's) or "orpo" (ours, equal to TRL's)."""
    shared = {
        "model": model,
        "processing_class": tokenizer,
        "callbacks": callbacks,
        "peft_config": lora,
    }
    pairs = pairs.select_columns(["prompt", "chosen", "rejected"])
    if method == "sft":
        rows = pairs.remove_columns("rejected").rename_column("chosen", "completion")
        # The loss covers prompt and answer, as the NLL in ORPO does.
        config = SFTConfig(completion_only_loss=False, **arguments)
        return SFTTrainer(args=config, train_dataset=rows, **shared)
    if method == "dpo":
        config = DPOConfig(beta=beta, **arguments)
        return DPOTrainer(args=config, train_dataset=pairs, **shared)
    # One fault that the lab measures is the prompt counted twice.
    config = ORPOConfig(beta=beta, refuse_prompt_twice=False, **arguments)
    return ORPOTrainer(args=config, train_dataset=pairs, **shared)


def count_prompt_twice(pairs: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The fault of the recipe that everyone copied: whole conversations as strings.

    With a string `prompt` column beside them TRL takes them as they are: the prompt's
    text comes twice, and its second coming, the user's turn, is scored as response.
    """

    def to_strings(row):
        text = {"prompt": row["prompt"][0]["content"]}
        for side in ("chosen", "rejected"):
            text[side] = tokenizer.apply_chat_template(
                row["prompt"] + row[side], tokenize=False
            )
        return text

    return pairs.map(to_strings, remove_columns=["prompt", "chosen", "rejected"])


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Dataset
) -> dict:
    """Everything the lab reports of one model, with one entry per held-out pair."""
    scores = evaluation.score_pairs(model, tokenizer, pairs, MAX_LENGTH)
    prompts = [pair["prompt"] for pair in pairs]
    out = {
        "n": len(prompts),
        "chosen": float(scores.chosen.mean()),
        "rejected": float(scores.rejected.mean()),
        "margin": float(scores.margin.mean()),
        "accuracy": float(scores.preferred.mean()),
        "preferred": _bits(scores.preferred),
    }
    for name, temperature in (("greedy", 0), ("sampled", 1.0)):
        written = evaluation.generate(model, tokenizer, prompts, temperature)
        verdicts = evaluation.verify_generations(prompts, written)
        out[name] = {
            part: float(getattr(verdicts, part).mean())
            for part in ("good", "content", "manners", "ending", "ended")
        }
        out[name]["good_bits"] = _bits(verdicts.good)
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in out.items()}


def _bits(values):
    return "".join("1" if v else "0" for v in values)


def run(job: dict) -> dict:
    """One run of the sweep in this process. job: as in `jobs`. Returns: its record."""
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    model, tokenizer = load_base(job.get("base", BASE_MODEL), device)
    mix = mixing.build(without=job.get("without", ()))
    lora = None
    if job["chat"] == "llama3":
        control = chat.use_llama3_chat(tokenizer)
    train = mix.train
    if job.get("pairs"):
        train = train.select(range(job["pairs"]))
    if job.get("prompt_twice"):
        train = count_prompt_twice(train, tokenizer)
    if job.get("lora_rank"):
        lora = LoraConfig(
            r=job["lora_rank"],
            lora_alpha=2 * job["lora_rank"],
            lora_dropout=job.get("dropout", 0.0),
            task_type="CAUSAL_LM",
            target_modules=models.LINEAR_LAYERS,
            trainable_token_indices={"embed_tokens": control, "lm_head": control}
            if job["train_tokens"]
            else None,
        )
    curve = evaluation.PreferenceCurve(
        tokenizer, list(mix.evaluation)[:210], every=job.get("every", 25)
    )
    if job["method"] != "none":
        with tempfile.TemporaryDirectory() as folder:
            arguments = trainer_arguments(
                job["learning_rate"], job["steps"], job["seed"], folder
            )
            if job.get("dropout"):  # TRL switches all dropout off unless asked
                arguments["disable_dropout"] = False
            trainer = make_trainer(
                job["method"],
                model,
                tokenizer,
                train,
                job["beta"],
                lora,
                arguments,
                [curve],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model, log = trainer.model, trainer.state.log_history
        if job.get("save"):
            model.save_pretrained(job["save"])
            own = models.load_tokenizer(job.get("base", BASE_MODEL))
            own.save_pretrained(job["save"])
    result = measure(model, tokenizer, list(mix.evaluation))
    history = [
        {k: round(float(v), 4) if k != "step" else v for k, v in point.items()}
        for point in curve.history
    ]
    kept = {k: v for k, v in job.items() if k not in ("base", "save")}
    minutes = round((time.perf_counter() - start) / 60, 2)
    kept |= {**result, "curve": history, "minutes": minutes}
    if job.get("keep_log"):
        kept["log"] = [_logged(row) for row in log if "loss" in row]
    return kept


def _logged(row):
    """What the trainer itself reports of some steps, under TRL's names."""
    names = ("loss", "nll_loss", "rewards/accuracies", "rewards/margins")
    values = {name: round(float(row[name]), 5) for name in names}
    return {"step": row["step"], **values}


def leave_one_out_jobs(
    seeds: int, folder: str, base: str | Path = BASE_MODEL
) -> list[list[dict]]:
    """ORPO on the whole mix, and on the mix without each source; as one stage.

    folder: not needed here; the same call as `jobs`.
    """
    orpo = {
        "method": "orpo",
        "chat": "chatml",
        "base": str(base),
        "learning_rate": 3e-4,
        "beta": 1.0,
        "steps": 150,
        "every": 150,
    }
    return [
        [
            {
                **orpo,
                "name": f"without {source}" if source else "all sources",
                "without": [source] if source else [],
                "seed": seed,
            }
            for seed in range(seeds)
            for source in (None, *sources.cards())
        ]
    ]


def jobs(
    seeds: int, folder: str, base: str | Path = BASE_MODEL
) -> tuple[list[dict], list[dict]]:
    """The sweep, as two lists: what starts from the base, and what starts from its SFT.

    folder: where the SFT models wait for DPO.
    """
    full = {"chat": "chatml", "base": str(base), "steps": 250, "learning_rate": 3e-4}
    first = [{**full, "name": "base", "method": "none", "seed": 0}]
    first.append(
        {
            **full,
            "name": "base, Llama 3 chat",
            "chat": "llama3",
            "method": "none",
            "seed": 0,
        }
    )
    second = []
    for seed in range(seeds):
        sft_model = str(Path(folder) / f"sft-{seed}")
        sft = {**full, "name": "SFT", "method": "sft", "beta": 0, "seed": seed}
        first.append({**sft, "save": sft_model})
        for beta in (0.1, 0.5, 1.0, 2.0):
            first.append(
                {
                    **full,
                    "name": f"ORPO β {beta:g}",
                    "method": "orpo",
                    "beta": beta,
                    "seed": seed,
                }
            )
        lora = {
            "method": "orpo",
            "chat": "llama3",
            "base": str(base),
            "lora_rank": 16,
            "train_tokens": True,
            "steps": 124,
            "seed": seed,
        }
        for learning_rate, beta in (
            (8e-6, 0.1),
            (8e-5, 0.1),
            (3e-4, 0.1),
            (1e-3, 0.1),
            (3e-3, 0.1),
            (1e-2, 0.1),
            (1e-3, 0.5),
            (3e-3, 0.5),
            (1e-3, 1.0),
            (3e-3, 1.0),
        ):
            run_name = f"LoRA LR {learning_rate:g}, β {beta:g}"
            settings = {"learning_rate": learning_rate, "beta": beta}
            first.append({**lora, **settings, "name": run_name})
        settings = {"learning_rate": 3e-3, "beta": 0.5}
        for fault, change in (
            ("prompt counted twice", {"prompt_twice": True}),
            ("chat tokens not trained", {"train_tokens": False}),
        ):
            first.append({**lora, **settings, **change, "name": f"LoRA, {fault}"})
        for learning_rate in (3e-5, 1e-4):
            second.append(
                {
                    **full,
                    "name": f"SFT, then DPO LR {learning_rate:g}",
                    "base": sft_model,
                    "method": "dpo",
                    "beta": 0.1,
                    "learning_rate": learning_rate,
                    "steps": 125,
                    "seed": seed,
                }
            )
    return first, second
