"""The Unsloth arm of bench_orpo: the same model, pairs and recipe, Unsloth's defaults.

Run by bench_orpo in a process of its own, with a job file; prints one line of JSON.
"""

import importlib.metadata
import json
import os
import sys
import time
from pathlib import Path

# Read when the libraries are first imported.
os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1")
from unsloth import FastLanguageModel, PatchDPOTrainer

PatchDPOTrainer()
import bench_clock  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402
from trl.experimental.orpo import ORPOConfig, ORPOTrainer  # noqa: E402


class CountingCollator:
    """Notes the tokens of each micro-batch."""

    def __init__(self, collator):
        self.collator = collator
        self.batches = []

    def __call__(self, features):
        sizes = [
            len(row["chosen_input_ids"]) + len(row["rejected_input_ids"])
            for row in features
        ]
        self.batches.append(sizes)
        return self.collator(features)


def main(job):
    start = time.perf_counter()
    recipe, warmup, steps = job["recipe"], job["warmup"], job["steps"]
    laps = job["laps"]
    model, _ = FastLanguageModel.from_pretrained(
        job["checkpoint"],
        max_seq_length=recipe["max_length"],
        load_in_4bit=job["four_bit"],
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        use_gradient_checkpointing="unsloth",
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
    )
    clock = bench_clock.Clock(warmup, steps, laps)
    trainer = ORPOTrainer(
        model=model,
        args=ORPOConfig(
            output_dir=job["folder"],
            seed=job["seed"],
            max_steps=warmup + laps * steps + job["more_steps"],
            **recipe,
        ),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=PreTrainedTokenizerFast.from_pretrained(job["tokenizer"]),
        callbacks=[clock],
    )
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if job["start"]:
        adapter = torch.load(job["start"])
        if trained.keys() != adapter.keys():
            raise ValueError(f"other names: {sorted(trained.keys() ^ adapter.keys())}")
        for name, parameter in trained.items():
            parameter.data.copy_(adapter[name])
    trainer.data_collator = counted = CountingCollator(trainer.data_collator)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    trainer.train()
    done = time.perf_counter()
    timed = clock.results()
    batches = bench_clock.laps_of(
        counted.batches, warmup, steps, laps, recipe["gradient_accumulation_steps"]
    )
    for lap, of_lap in zip(timed, batches, strict=True):
        lap |= {"pairs": sum(map(len, of_lap)), "tokens": sum(map(sum, of_lap))}
    all_laps = sum(lap["seconds"] for lap in timed)
    timed[0] |= {
        "building_seconds": ready - start,
        # With the steps after the laps, if there are any.
        "warmup_seconds": done - ready - all_laps,
        "mean_loss": trainer.state.log_history[-1]["train_loss"],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
        "losses": [r["loss"] for r in trainer.state.log_history if "loss" in r],
        "unsloth": importlib.metadata.version("unsloth"),
    }
    if job["start"]:
        with torch.no_grad():
            losses = [
                float(trainer.compute_loss(trainer.model, batch))
                for batch in trainer.get_train_dataloader()
            ]
        timed[0]["own_loss"] = sum(losses) / len(losses)
        timed[0]["adapter"] = str(Path(job["folder"]) / "adapter.pt")
        values = {n: p.detach().float().cpu() for n, p in trained.items()}
        torch.save(values, timed[0]["adapter"])
    print(json.dumps(timed), flush=True)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
