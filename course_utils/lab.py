"""The CPU lab: the base model that ships with the course, and its recorded findings.

Knows: the lab's base model, TRL's trainers with the lab's settings, the sweep. Does not
know: how the base was pretrained (`pretrain`), what the world is (`world`).

    python -m course_utils.lab

repeats the sweep behind every recorded lab figure: minutes on a GPU, hours on two
cores.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from . import chat, evaluation, mixing, models, records

BASE_MODEL = Path(__file__).parent / "base_model"
MAX_LENGTH = 256
BATCH = 8
# The lab's base knows ChatML from its corpus. The turn's last line break comes with the
# next turn, so that an answer ends with its end token and with nothing after it.
CHATML_TEMPLATE = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if not loop.first -%}{{ '\n' }}{%- endif -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' -}}"
    "{{- message['content'] + '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '\n<|im_start|>assistant\n' }}{%- endif -%}"
)


def use_chatml(tokenizer):
    """Give the lab's tokenizer the one chat format that its base has read."""
    tokenizer.chat_template = CHATML_TEMPLATE
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|reserved_special_token_0|>"


def load_base(path=BASE_MODEL, device="cpu"):
    """The lab's base in float32 and its tokenizer with ChatML.

    Raises: FileNotFoundError if the checkpoint is missing.
    """
    if not (Path(path) / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{path} holds no model.safetensors. Restore it with git, or pretrain it "
            "with `python -m course_utils.pretrain course_utils/base_model`."
        )
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    use_chatml(tokenizer)
    return model, tokenizer


def trainer_arguments(learning_rate, steps, seed, output_dir):
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


def make_trainer(method, model, tokenizer, pairs, beta, lora, arguments, callbacks):
    """TRL's own trainer for "sft", "dpo" or "orpo". Notebooks spell these calls out."""
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
    config = ORPOConfig(beta=beta, **arguments)
    return ORPOTrainer(args=config, train_dataset=pairs, **shared)


def count_prompt_twice(pairs, tokenizer):
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


def measure(model, tokenizer, pairs):
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


def run(job):
    """One run of the sweep in this process. job: as in `jobs`. Returns: its record."""
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(1)
    model, tokenizer = load_base(job.get("base", BASE_MODEL), device)
    mix = mixing.build()
    lora = None
    if job["chat"] == "llama3":
        control = chat.use_llama3_chat(tokenizer)
    train = mix.train
    if job.get("prompt_twice"):
        train = count_prompt_twice(train, tokenizer)
    if job.get("lora_rank"):
        lora = LoraConfig(
            r=job["lora_rank"],
            lora_alpha=2 * job["lora_rank"],
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
            target_modules=models.LINEAR_LAYERS,
            trainable_token_indices={"embed_tokens": control, "lm_head": control}
            if job["train_tokens"] else None,
        )  # fmt: skip
    curve = evaluation.PreferenceCurve(tokenizer, list(mix.evaluation)[:210], every=25)
    if job["method"] != "none":
        with tempfile.TemporaryDirectory() as folder:
            arguments = trainer_arguments(
                job["learning_rate"], job["steps"], job["seed"], folder
            )
            trainer = make_trainer(
                job["method"], model, tokenizer, train, job["beta"], lora, arguments,
                [curve],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            model = trainer.model
        if job.get("save"):
            model.save_pretrained(job["save"])
            AutoTokenizer.from_pretrained(job.get("base", BASE_MODEL)).save_pretrained(
                job["save"]
            )
    result = measure(model, tokenizer, list(mix.evaluation))
    history = [
        {k: round(float(v), 4) if k != "step" else v for k, v in point.items()}
        for point in curve.history
    ]
    job = {k: v for k, v in job.items() if k not in ("base", "save")}
    minutes = round((time.perf_counter() - start) / 60, 2)
    return {**job, **result, "curve": history, "minutes": minutes}


def jobs(seeds, folder, base=BASE_MODEL):
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
            (8e-6, 0.1), (8e-5, 0.1), (3e-4, 0.1), (1e-3, 0.1), (3e-3, 0.1),
            (1e-2, 0.1), (1e-3, 0.5), (3e-3, 0.5), (1e-3, 1.0), (3e-3, 1.0),
        ):  # fmt: skip
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


def recorded(name):
    """The recorded runs of one name, one a seed. Raises: KeyError listing the names."""
    runs = records.load("lab_findings")["runs"]
    found = [run for run in runs if run["name"] == name]
    if not found:
        raise KeyError(f"{name!r}; there are {sorted({run['name'] for run in runs})}")
    return found


def over_seeds(runs, bits):
    """Mean of a yes/no measurement over seeds, with its interval over prompts.

    runs: records of one setting, one a seed. bits: function from a run to its string of
    0 and 1, one a prompt. The interval is a bootstrap over prompts of each prompt's
    mean over seeds, so it says how sure we are for other prompts of this kind.
    Returns: (Estimate, (lowest seed, highest seed)).
    """
    table = np.array([[int(bit) for bit in bits(run)] for run in runs], dtype=float)
    seeds = table.mean(1)
    if table.min() == table.max():  # nothing to resample: as sure as one seed can be
        value = evaluation.estimate(table[0] == 1)
    else:
        value = evaluation.estimate(table.mean(0))
    return value, (float(seeds.min()), float(seeds.max()))


def summary(names):
    """The recorded findings as a table: one row a setting.

    Intervals: 95 % over prompts; in brackets behind them the range over seeds.
    """

    def cell(runs, bits):
        value, (low, high) = over_seeds(runs, bits)
        return f"{value} ({low:.2f}–{high:.2f})" if len(runs) > 1 else str(value)

    rows = []
    for name in names:
        runs = recorded(name)
        rows.append(
            {
                "method": name,
                "seeds": len(runs),
                "n": runs[0]["n"],
                "log-prob chosen": f"{np.mean([r['chosen'] for r in runs]):.3f}",
                "log-prob rejected": f"{np.mean([r['rejected'] for r in runs]):.3f}",
                "preference accuracy": cell(runs, lambda r: r["preferred"]),
                "good, sampled": cell(runs, lambda r: r["sampled"]["good_bits"]),
                "good, greedy": cell(runs, lambda r: r["greedy"]["good_bits"]),
            }
        )
    return pd.DataFrame(rows).set_index("method")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--base", type=Path, default=BASE_MODEL)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "recorded" / "lab_findings.json",
    )
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    runs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(
            options.processes, maxtasksperchild=4
        ) as pool,
    ):
        for stage in jobs(options.seeds, folder, options.base):
            stage = [job for job in stage if options.only in job["name"]]
            for done in pool.imap_unordered(run, stage):
                runs.append(done)
                print(
                    f"{done['name']}, seed {done['seed']}: accuracy "
                    f"{done['accuracy']:.2f}, good sampled "
                    f"{done['sampled']['good']:.2f}, greedy "
                    f"{done['greedy']['good']:.2f}, {done['minutes']} min",
                    flush=True,
                )
    command = "python -m course_utils.lab" + (
        f' --only "{options.only}"' * bool(options.only)
    )
    record = records.describe_run(command, start)
    record["base"] = options.base.name
    record["runs"] = sorted(runs, key=lambda r: (r["name"], r["seed"]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {options.out.name} in {record['minutes']} minutes")


if __name__ == "__main__":
    main()
