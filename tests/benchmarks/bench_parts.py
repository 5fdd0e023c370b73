"""What the speed benchmark measures: shapes, arms, pairs, one timed run.

Knows: how to build a model and pairs of a shape, and how to time some optimizer steps.
Does not know: rounds, tables, files (`bench_orpo`).
"""

import gc
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import bench_clock
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    TrainerCallback,
    set_seed,
)

from course_utils import chat, lab, models
from course_utils.data import mixing
from course_utils.models import random_weights
from course_utils.training import (
    FastTrainingConfig,
    ORPOConfig,
    ORPOTrainer,
    PackedORPOTrainer,
    packing,
)

GIB = 2**30
# The article's recipe on every shape, changed where a shape says so.
RECIPE = {
    "learning_rate": 8e-6,
    "beta": 0.1,
    "lr_scheduler_type": "linear",
    "warmup_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "max_length": 1024,
    "optim": "paged_adamw_8bit",
    "gradient_checkpointing": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "remove_unused_columns": False,
    "logging_steps": 10_000,  # the mean loss is taken at the end, by the Trainer
    "logging_nan_inf_filter": False,
}


@dataclass(frozen=True)
class Shape:
    """A model and the pairs it is trained on.

    twin: a shape of models.random_weights, or None for the lab's own base model.
    scale: the drawn lengths are divided by this.
    fast, lean: fast_config in the memory that TRL's trainer takes, and in little.
    everything: fast_config of the arm "fast" where the card has more, or None.
    """

    twin: str | None
    changes: dict
    scale: int = 1
    fast: FastTrainingConfig = field(default_factory=FastTrainingConfig)
    lean: FastTrainingConfig = field(default_factory=FastTrainingConfig)
    everything: FastTrainingConfig | None = None


SHAPES = {
    # Notebook 04's settings on the CPU profile.
    "lab": Shape(
        twin=None,
        changes={
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 1,
            "learning_rate": 3e-3,
            "beta": 0.5,
            "max_length": 256,
            "bf16": False,
            "optim": "adamw_torch",
            "gradient_checkpointing": False,
        },
        lean=FastTrainingConfig(token_budget=256, head_tile=64, activation_gib=0),
    ),
    # The rehearsal of llama3-8b: the same code, small enough for a CPU.
    "tiny": Shape(
        twin="tiny",
        changes={"max_length": 32, "bf16": False, "optim": "adamw_torch"},
        scale=32,
        fast=FastTrainingConfig(token_budget=128, activation_gib=0.01),
        lean=FastTrainingConfig(token_budget=32, head_tile=16, activation_gib=0),
    ),
    "llama3-8b": Shape(
        twin="llama3-8b",
        changes={"bf16": True},
        # Together no more than TRL takes for the same recipe.
        fast=FastTrainingConfig(token_budget=3072, activation_gib=7.3),
        # All that the card has. A step of 8 pairs is about 6,930 tokens: one row.
        everything=FastTrainingConfig(token_budget="auto", activation_gib="auto"),
        lean=FastTrainingConfig(token_budget=2048, head_tile=128, activation_gib=0.7),
    ),
}


IN_STOCK_MEMORY = "fast, TRL's memory"  # what ladder and ablations change
# From TRL's trainer to the fast one, a lever at a time, in the order of the notebook.
LADDER = {
    "packed rows": {},
    "+ head in tiles": {"head_tile": 512},
    "+ embeddings on the CPU": {"embeddings_on_cpu": "auto"},
    "+ shared prefix": {"shared_prefix": True},
    "+ fused LoRA": {"fused_lora": True},
    "+ one decode": {"triton_decode": "auto"},
    "+ compiled layers": {"compile_layers": "auto"},
    "+ CUDA graphs": {"cuda_graphs": "auto"},
    "+ running ahead": {"run_ahead": True},
}
_FOOT = {
    "head_tile": None,
    "embeddings_on_cpu": False,
    "shared_prefix": False,
    "fused_lora": False,
    "triton_decode": False,
    "compile_layers": False,
    "cuda_graphs": False,
    "run_ahead": False,
    "activation_gib": None,
}


def ladder(fast):
    """{arm: fast_config}: each adds one switch to the one before; `fast` is next."""
    fast_config, out = replace(fast, **_FOOT), {}
    for name, change in LADDER.items():
        fast_config = out[name] = replace(fast_config, **change)
    return out


def arms(shape):
    """{arm: (fast_config, changes to the recipe)}; TRL's trainer has no fast_config."""
    fast = shape.fast
    without = {
        "fast, prefix read twice": {"shared_prefix": False},
        "fast, one pair a row": {"packing": False},
        "fast, head in one piece": {"head_tile": None},
        "fast, embeddings on the GPU": {"embeddings_on_cpu": False},
        "fast, PEFT's LoRA": {"fused_lora": False},
        "fast, bitsandbytes decodes": {"triton_decode": False},
        "fast, layers not compiled": {"compile_layers": False},
        "fast, no CUDA graphs": {"cuda_graphs": False},
        "fast, FlexAttention": {"attention": "flex", "cuda_graphs": False},
        "fast, checkpointing as configured": {"activation_gib": None},
        "fast, metrics fetched": {"deferred_metrics": False},
        "fast, waiting optimizer": {"run_ahead": False},
    }
    return {
        "stock": (None, {}),
        "stock, batch of 8": (
            None,
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1},
        ),
        "plain": ("plain", {}),  # ORPOTrainer, ours
        "fast": (shape.everything or fast, {}),
        IN_STOCK_MEMORY: (fast, {}),
        "lean": (shape.lean, {}),
        "fast, all activations kept": (replace(fast, activation_gib=100), {}),
        **{name: (fast_config, {}) for name, fast_config in ladder(fast).items()},
        **{name: (replace(fast, **change), {}) for name, change in without.items()},
    }


# ---- pairs ----


def draw_lengths(count, scale, max_length, seed):
    """(prompt, chosen, rejected) tokens of pairs, log-normal with long tails.

    Medians of 120, 280 and 250 tokens; prompts are cut at half of max_length and
    answers at what is left of it.
    """
    chance = np.random.default_rng(seed)

    def drawn(median, sigma, least, most):
        values = chance.lognormal(math.log(median), sigma, count)
        return (np.clip(values, least, most) / scale).astype(int) + 1

    columns = (
        drawn(120, 1.0, 12, 900),
        drawn(280, 0.8, 8, 2000),
        drawn(250, 0.9, 8, 2000),
    )
    out = []
    for prompt, chosen, rejected in zip(*columns, strict=True):
        prompt = min(prompt, max_length // 2)
        room = max_length - prompt
        out.append((int(prompt), int(min(chosen, room)), int(min(rejected, room))))
    return out


def read_lengths(path):
    """Lengths that somebody measured: a JSON list of [prompt, chosen, rejected]."""
    lengths = json.loads(Path(path).read_text(encoding="utf-8"))
    if not lengths or any(len(row) != 3 or min(row) < 1 for row in lengths):
        raise ValueError(
            f"{path} must hold a list of [prompt, chosen, rejected], each at least 1."
        )
    return [tuple(row) for row in lengths]


def random_pairs(lengths, vocabulary, seed):
    """Rows of text whose every word is one token; content has no influence on speed."""
    chance = np.random.default_rng(seed)
    rows = []
    for sizes in lengths:
        words = [
            "".join(f" t{token}" for token in chance.integers(0, vocabulary, size))
            for size in sizes
        ]
        rows.append(dict(zip(("prompt", "chosen", "rejected"), words, strict=True)))
    return rows


def word_tokenizer(vocabulary):
    """A tokenizer that knows the words t0, t1, ... as single tokens."""
    words = {f"t{number}": number for number in range(vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = WhitespaceSplit()
    bos, eos, pad = (f"t{vocabulary - 1 - number}" for number in range(3))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad
    )


# ---- a shape, ready to train ----


class Prepared:
    """Model, tokenizer and rows of a shape. The lab's model is loaded anew each time.

    shape: a Shape. checkpoint: the twin's folder; written if it is not there yet.
    lengths: of the pairs, or None for the lab's own. four_bit: NF4 or 16-bit weights.
    """

    def __init__(self, shape, checkpoint, lengths, seed, four_bit=True):
        self.shape = shape
        self.recipe = RECIPE | shape.changes
        if shape.twin is None:
            columns = ["prompt", "chosen", "rejected"]
            self.rows = mixing.build().train.select_columns(columns)
            return
        if not Path(checkpoint).is_dir():
            random_weights.write(checkpoint, shape.twin)
        cuda = torch.cuda.is_available()
        dtype = torch.bfloat16 if self.recipe["bf16"] else torch.float32
        self._model = AutoModelForCausalLM.from_pretrained(
            checkpoint,
            dtype=dtype,
            quantization_config=models.nf4_config(dtype) if four_bit else None,
            device_map={"": 0} if cuda else None,
        )
        self._tokenizer = word_tokenizer(self._model.config.vocab_size)
        rows = random_pairs(lengths, self._model.config.vocab_size, seed)
        self.rows = Dataset.from_list(rows)

    def model_and_tokenizer(self):
        """(model, tokenizer, ids of token rows to train or None)."""
        if self.shape.twin is not None:
            return self._model, self._tokenizer, None
        model, tokenizer = lab.load_base()
        return model, tokenizer, chat.use_llama3_chat(tokenizer)

    def give_back(self, trainer):
        """Take the adapter off again, so that the next arm starts from the base."""
        if self.shape.twin is not None:
            self._model = trainer.model.unload()


class KernelLog(TrainerCallback):
    """What the device did in some optimizer steps after the first `steps` steps.

    PROFILED steps, since what a step leaves to do while the next one is prepared shows
    in between only.
    summary: {"steps", "wall_ms", "busy_ms", "kernels", "by_kind": {kind: ms},
    "longest": {name: [ms, calls]}} of all of them; without a GPU, of operations on the
    CPU.
    """

    PROFILED = 3

    def __init__(self, steps):
        self.steps = steps
        self.summary = None
        self.seconds = 0.0  # from the first profiled step to the summary

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.steps:
            self.seconds = -time.perf_counter()
            activity = torch.profiler.ProfilerActivity
            self._profile = torch.profiler.profile(
                activities=[
                    activity.CUDA if torch.cuda.is_available() else activity.CPU
                ]
            )
            _wait_for_device()
            self._profile.start()
            self._wall = -time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != self.steps + self.PROFILED:
            return
        _wait_for_device()
        self._wall += time.perf_counter()
        self._profile.stop()
        name = "device" if torch.cuda.is_available() else "cpu"
        rows = {}
        for event in self._profile.key_averages():
            milliseconds = getattr(event, f"self_{name}_time_total") / 1000
            # The optimizer's own mark spans its kernels, which are there by name.
            if milliseconds and not event.key.startswith("Optimizer."):
                rows[event.key] = (milliseconds, event.count)
        by_kind = {}
        for key, (milliseconds, _) in rows.items():
            kind = kind_of_kernel(key)
            by_kind[kind] = by_kind.get(kind, 0) + milliseconds
        longest = sorted(rows.items(), key=lambda row: -row[1][0])[:40]
        self.summary = {
            "steps": self.PROFILED,
            "wall_ms": 1000 * self._wall,
            "busy_ms": sum(by_kind.values()),
            "kernels": sum(calls for _, calls in rows.values()),
            "by_kind": by_kind,
            "longest": {key[:100]: row for key, row in longest},
        }
        self.seconds += time.perf_counter()


# What a kernel is for, by what its name has in it; the first that fits.
KERNELS = {
    "decoding 4 bit": ("kdequantize", "decode_4bit"),
    "attention": ("flash", "fmha", "flex_attention"),
    "matrix products": ("nvjet", "gemm", "cutlass", "cublas", "splitk", "xmma"),
    "optimizer": ("koptimizer", "kpreconditionoptimizer", "multi_tensor"),
    "copies": ("memcpy", "memset", "direct_copy"),
}


def kind_of_kernel(name):
    """A key of KERNELS, or "other arithmetic"."""
    name = name.lower()
    for kind, marks in KERNELS.items():
        if any(mark in name for mark in marks):
            return kind
    return "other arithmetic"


def _wait_for_device():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class CountingCollator:
    """Notes what the micro-batches hold: (prompt and chosen, and rejected, prefix)."""

    def __init__(self, collator):
        self.collator = collator
        self.batches = []

    def __call__(self, features):
        pairs = [packing.pair_from_row(row) for row in features]
        self.batches.append(
            [
                (
                    len(pair.chosen_ids),
                    len(pair.rejected_ids),
                    packing.shared_prefix(pair.chosen_ids, pair.rejected_ids),
                )
                for pair in pairs
            ]
        )
        return self.collator(features)


def make_trainer(prepared, fast_config, changes, max_steps, seed, folder, callbacks=()):
    """The fast trainer, TRL's (fast_config None) or ours without packing ("plain").

    changes: to the recipe. seed: of the adapter and the order of pairs.
    """
    model, tokenizer, token_rows = prepared.model_and_tokenizer()
    adapter = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        target_modules=models.LINEAR_LAYERS,
        trainable_token_indices=token_rows
        and {"embed_tokens": token_rows, "lm_head": token_rows},
    )
    set_seed(seed)  # the same adapter for every arm
    kind, config, extra = ORPOTrainer, ORPOConfig, {}
    if fast_config is None:
        from trl.experimental import orpo

        kind, config = orpo.ORPOTrainer, orpo.ORPOConfig
    elif fast_config != "plain":
        kind, extra = PackedORPOTrainer, {"fast_config": fast_config}
    trainer = kind(
        model,
        config(
            output_dir=str(folder),
            seed=seed,
            max_steps=max_steps,
            use_cpu=not torch.cuda.is_available(),
            **prepared.recipe | changes,
        ),
        train_dataset=prepared.rows,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=list(callbacks),
        **extra,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_arm(
    prepared,
    fast_config,
    changes,
    warmup,
    steps,
    seed,
    folder,
    laps=1,
    profile=False,
    then=None,
):
    """Train warmup + laps * steps optimizer steps and time each lap.

    fast_config: None for TRL's own trainer. changes: to the recipe. profile: some steps
    more, with a KernelLog. then: called with the trainer when it has trained.
    Returns: a dict of what was measured for each lap. What all laps have in common
        stands in the first one.
    """
    start = time.perf_counter()
    clock = bench_clock.Clock(warmup, steps, laps)
    kernels = KernelLog(warmup + laps * steps)
    trainer = make_trainer(
        prepared,
        fast_config,
        changes,
        warmup + laps * steps + profile * kernels.PROFILED,
        seed,
        folder,
        [clock, kernels] if profile else [clock],
    )
    trainer.data_collator = counted = CountingCollator(trainer.data_collator)
    if torch.cuda.is_available():
        # Warm-up counts: what graphs replay was allocated when they were recorded.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ready = time.perf_counter()
    trainer.train()
    trained = time.perf_counter()
    timed = clock.results()
    batches = bench_clock.laps_of(
        counted.batches, warmup, steps, laps, trainer.args.gradient_accumulation_steps
    )
    for lap, of_lap in zip(timed, batches, strict=True):
        pairs = [pair for batch in of_lap for pair in batch]
        lap |= {
            "pairs": len(pairs),
            "tokens": sum(chosen + rejected for chosen, rejected, _ in pairs),
            "tokens_once": sum(sum(pair[:2]) - pair[2] for pair in pairs),
            "flops": flops(trainer.model, pairs),
        }
    all_laps = sum(lap["seconds"] for lap in timed)
    result = timed[0]
    result |= {
        "building_seconds": ready - start,
        "warmup_seconds": trained - ready - all_laps - kernels.seconds,
        "mean_loss": trainer.state.log_history[-1]["train_loss"],
        "losses": [r["loss"] for r in trainer.state.log_history if "loss" in r],
        "peak_gib": None,
    }
    if torch.cuda.is_available():
        result["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        result["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
        free, total = torch.cuda.mem_get_info()
        result["device_gib"] = (total - free) / GIB  # at the end, graphs themselves too
    if profile:
        result["profile"] = kernels.summary
    if isinstance(trainer, PackedORPOTrainer):
        result["token_budget"] = f"{trainer.token_budget}: {trainer.budget_reason}"
        result["embeddings"] = (
            f"on the CPU, {trainer.embeddings_on_cpu}: {trainer.embeddings_reason}"
        )
        result["decode"] = f"{trainer.triton_decode}: {trainer.decode_reason}"
        result["graphs"] = f"{trainer.cuda_graphs}: {trainer.graphs_reason}"
        result["attention"] = f"{trainer.attention}: {trainer.attention_reason}"
        result["compiled"] = f"{trainer.compile_layers}: {trainer.compile_reason}"
    if then is not None:
        then(trainer)
    prepared.give_back(trainer)
    del trainer
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return timed


# ---- the floor ----


def flops(model, pairs):
    """Multiplications and additions that a step cannot do without.

    Each token once, prefixes shared: forward and the gradient of the inputs through
    every frozen matrix, and for adapters forward and both gradients. Attention's own
    products, a few per cent at these lengths, are left out: the floor is a low one.
    """
    layers = adapters = 0
    base = model.get_base_model()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            adapters += parameter.numel()
        elif "layers." in name and parameter.ndim == 2:
            state = getattr(parameter, "quant_state", None)
            layers += parameter.numel() if state is None else state.shape.numel()
    head = base.config.vocab_size * base.config.hidden_size
    tokens = sum(chosen + rejected - shared for chosen, rejected, shared in pairs)
    scored = sum(
        chosen - 1 + rejected - max(shared, 1) for chosen, rejected, shared in pairs
    )
    return 4 * layers * tokens + 6 * adapters * tokens + 4 * head * scored


def measured_flops_per_second(seconds=1.0):
    """What this machine's largest matrix products reach, in the precision it uses."""
    cuda = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    a = torch.randn(size, size, dtype=dtype, device="cuda" if cuda else "cpu")
    best = 0.0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        _wait_for_device()
        start = time.perf_counter()
        a @ a
        _wait_for_device()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
