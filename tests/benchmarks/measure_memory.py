"""Predicted against measured memory on a GPU, over settings of training.

    python -m course_utils.models.random_weights /tmp/twin
    python tests/benchmarks/measure_memory.py /tmp/twin

writes course_utils/recorded/memory.json after each setting. Peaks are those of
torch.cuda.max_memory_allocated in the second optimizer step. Without a GPU,
`--rehearse` runs the same on the CPU with a tiny twin and short rows; its record is for
nobody but the author and needs `--out`.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "helpers"))

# Before the libraries read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from bitsandbytes.optim import GlobalOptimManager
from datasets import Dataset
from memory_harness import as_on_a_gpu, peak_bytes
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from course_utils import models, recorded
from course_utils.models import memory
from course_utils.models.memory import step
from course_utils.setup import places
from course_utils.setup.printing import print_safely
from course_utils.training import (
    FastTrainingConfig,
    ORPOConfig,
    ORPOTrainer,
    PackedORPOTrainer,
)

GIB = 2**30
RECORD = places.PACKAGE / "recorded" / "memory.json"
_L4 = memory.Settings(token_rows=3)
_FAST = replace(_L4, trainer="fast")
SETTINGS = {
    "stock 2x4": _L4,
    "stock 2x4, no token rows": replace(_L4, token_rows=0),
    "stock 8x1": replace(_L4, batch=8, accumulation=1),
    "stock 1x8": replace(_L4, batch=1, accumulation=8),
    "stock 2x4, rows of 512": replace(_L4, length=512),
    "stock 2x4, no padding": replace(_L4, padded=False),
    "stock 2x4, no checkpointing": replace(_L4, checkpointing=False),
    "stock 2x4, rank 64, AdamW in 32 bit": replace(
        _L4, lora_rank=64, optim="adamw_torch"
    ),
    "fast 2x4, rows of 4,096": _FAST,
    "fast 2x4, rows of 2,048": replace(_FAST, token_budget=2048),
    "fast 2x4, embeddings on the CPU": replace(_FAST, embeddings_on_cpu=True),
    "fast 2x4, tiles of 128": replace(_FAST, head_tile=128),
    "fast 2x4, no checkpointing": replace(_FAST, checkpointing=False),
    "bf16 stock 2x4": replace(_L4, precision="bfloat16"),
    "bf16 fast 2x4": replace(_FAST, precision="bfloat16"),
}


def rehearsed(settings):
    """The same settings, small enough for a CPU, which has other kernels."""
    return replace(
        settings,
        length=settings.length // 16,
        token_budget=settings.token_budget // 16,
        head_tile=settings.head_tile // 16,
        log_prob_kernel=False,
        attention="sdpa",
    )


def load(folder, precision, compute):
    """The twin in a precision, on the GPU if there is one."""
    dtype = getattr(torch, compute)
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=models.nf4_config(dtype) if precision == "nf4" else None,
        attn_implementation="sdpa",
        device_map={"": 0} if torch.cuda.is_available() else None,
        use_safetensors=True,
    )


def make_trainer(model, tokenizer, settings, folder):
    """A trainer whose batches fill `settings.length`, for two optimizer steps."""
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(128_002)
    # No common words, so that the fast trainer's rows are full as well.
    answers = [word * 2 * settings.length for word in (" the", " and")]
    long = {"prompt": "What is it?", "chosen": answers[0], "rejected": answers[1]}
    short = long | {"rejected": " the" * 20}
    count = 2 * settings.batch * settings.accumulation
    pairs = [short if settings.padded and i % 2 else long for i in range(count)]
    if settings.padded and settings.batch == 1:
        pairs = [long | {"rejected": " the" * 20}] * count
    rows = list(range(128_006, 128_006 + settings.token_rows))
    kind, config, extra = ORPOTrainer, ORPOConfig, {}
    if settings.trainer == "stock" and settings.log_prob_kernel:
        from trl.experimental import orpo

        kind, config = orpo.ORPOTrainer, orpo.ORPOConfig
    if settings.trainer == "fast":
        # The prediction is for layers as they are; a compiler may keep less. Of what
        # graphs replay PyTorch's allocator sees nothing.
        fast_config = FastTrainingConfig(
            token_budget=settings.token_budget,
            head_tile=settings.head_tile,
            embeddings_on_cpu=settings.embeddings_on_cpu,
            compile_layers=False,
            cuda_graphs=False,
        )
        kind, extra = PackedORPOTrainer, {"fast_config": fast_config}
    made = kind(
        model=model,
        args=config(
            output_dir=str(folder),
            max_steps=2,
            per_device_train_batch_size=settings.batch,
            gradient_accumulation_steps=settings.accumulation,
            max_length=settings.length,
            optim=settings.optim,
            bf16=settings.compute == "bfloat16",
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=settings.checkpointing,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_rank,
            target_modules=list(settings.targets),
            trainable_token_indices=(
                {"embed_tokens": rows, "lm_head": rows} if rows else None
            ),
        ),
        **extra,
    )
    models.keep_trained_in_fp32(made.model)
    return made


class _SecondStep(TrainerCallback):
    """Measures from the end of the first step on, when the optimizer has its state."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 1:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()


def measured_on_gpu(trainer):
    """Bytes: {"allocated", "reserved"} at the peak of the second step."""
    trainer.add_callback(_SecondStep())
    trainer.train()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }


def measured_on_cpu(trainer, settings):
    """{"allocated"}: tensors that stay, and the allocator's peak in the last call."""
    inner, calls, found = trainer.training_step, [], {}
    # The fast trainer does a whole optimizer step in the last call of a step.
    last = 2 * settings.accumulation

    def training_step(*arguments):
        calls.append(1)
        if len(calls) < last:
            return inner(*arguments)
        held = _held_bytes(trainer)
        results = []
        with as_on_a_gpu(settings.compute):
            peak = peak_bytes(lambda: results.append(inner(*arguments)))
        found["allocated"] = held + peak
        return results[0]

    trainer.training_step = training_step
    trainer.train()
    return found


def _held_bytes(trainer):
    total = 0
    for parameter in trainer.model.parameters():
        total += parameter.nbytes
        total += parameter.grad.nbytes if parameter.grad is not None else 0
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.nbytes + state.state2.absmax.nbytes
    paged = "paged" in str(trainer.args.optim)
    for values in [] if paged else trainer.optimizer.state.values():
        total += sum(v.nbytes for v in values.values() if torch.is_tensor(v))
    return total


def forget_embeddings():
    """Free what earlier models left behind, which would be measured as well.

    For its 8-bit optimizers the Trainer tells bitsandbytes of every embedding, and
    bitsandbytes never forgets one: 1 GiB of Llama 3 8B stays on the GPU.
    """
    GlobalOptimManager.get_instance().module_weight_config_triple.clear()
    gc.collect()
    torch.cuda.empty_cache()


def one(model, tokenizer, name, settings, rehearse):
    """A row of the record. The model is left without adapter, for the next."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(model, tokenizer, settings, folder)
        measured = (
            measured_on_cpu(trainer, settings) if rehearse else measured_on_gpu(trainer)
        )
        if settings.trainer == "fast":
            settings = replace(settings, attention=trainer.attention)
        predicted = memory.predict(model.config, settings)
        base = trainer.model.unload()
        base.gradient_checkpointing_disable()
        base.disable_input_require_grads()
    del trainer
    forget_embeddings()
    expected = max(predicted.phases.values()) - rehearse * step.CUBLAS_BYTES
    return {
        "name": name,
        "settings": asdict(settings),
        "predicted_gib": expected / GIB,
        "parts_gib": predicted.gib(),
        "phase": predicted.phase,
        "measured_gib": measured["allocated"] / GIB,
        "reserved_gib": measured.get("reserved", 0) / GIB,
        "off_by": expected / measured["allocated"] - 1,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "twin", help="folder of a twin (python -m course_utils.models.random_weights)"
    )
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small")
    parser.add_argument("--add", action="store_true", help="keep what was measured")
    parser.add_argument("--out", type=Path, help="instead of the package's own record")
    options = parser.parse_args(arguments)
    if not options.rehearse and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; --rehearse runs it small on the CPU")
    partly = options.only and not options.add
    if options.out is None and (options.rehearse or partly):
        parser.error("this is not the whole measurement: name a file with --out")
    out = options.out or RECORD
    start, runs, loaded, model = time.perf_counter(), [], None, None
    if options.add:
        runs = [
            run
            for run in json.loads(out.read_text(encoding="utf-8"))["runs"]
            if options.only not in run["name"]
        ]
    tokenizer = AutoTokenizer.from_pretrained(options.twin)
    command = "python tests/benchmarks/measure_memory.py TWIN"
    command += " --rehearse" * options.rehearse + " --add" * options.add
    command += f" --only {options.only}" if options.only else ""
    for name, settings in SETTINGS.items():
        if options.only not in name:
            continue
        if options.rehearse:
            settings = rehearsed(settings)
        if loaded != settings.precision:
            model = None
            forget_embeddings()
            model = load(options.twin, settings.precision, settings.compute)
            loaded = settings.precision
        needs = memory.predict(model.config, settings).peak_gib + memory.ALLOWANCE_GIB
        if not options.rehearse:
            has = torch.cuda.get_device_properties(0).total_memory / GIB
            if needs > has:
                print(f"{name}: left out, {needs:.1f} GiB predicted of {has:.1f}")
                continue
        runs.append(one(model, tokenizer, name, settings, options.rehearse))
        run = runs[-1]
        print(
            f"{name}: predicted {run['predicted_gib']:.3f} GiB, measured "
            f"{run['measured_gib']:.3f}, {run['off_by']:+.1%} ({run['seconds']} s)",
            flush=True,
        )
        record = recorded.describe_run(command, start)
        record["shape"] = f"{memory.weight_shapes(model.config)['total']:,} weights"
        record["runs"] = runs
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print_safely()
    main()
