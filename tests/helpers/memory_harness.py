"""What a training step on the CPU really keeps and allocates, in bytes.

`measure` runs one step of a trainer on a tiny Llama. Two counts come back: what
autograd keeps from forward to backward (saved-tensor hooks, parameters excluded), and
the highest sum of live allocations (the profiler's record of the allocator).
"""

import contextlib
import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig
from tiny_llama import tiny_model, tiny_tokenizer
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from course_utils import models
from course_utils.training import (
    FastTrainingConfig,
    ORPOConfig,
    ORPOTrainer,
    PackedORPOTrainer,
)

SHAPE = {
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


def tiny(vocab_size=4096, hidden_size=128):
    """(model, its config) with the proportions of Llama 3 8B."""
    model = tiny_model(
        vocab_size, hidden_size, intermediate_size=hidden_size * 7 // 2, **SHAPE
    )
    return model, model.config


def load(precision, compute="bfloat16", **sizes):
    """The tiny model as from_pretrained loads it in a precision."""
    model, _ = tiny(**sizes)
    dtype = getattr(torch, compute if precision == "nf4" else precision)
    with tempfile.TemporaryDirectory() as folder:
        model.to(dtype).save_pretrained(folder)
        return AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=models.nf4_config(dtype)
            if precision == "nf4"
            else None,
            attn_implementation="sdpa",
        )


def trainer(settings, folder, **sizes):
    """A trainer for memory.Settings, on the tiny model, for one step of full rows."""
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    compute = settings.compute
    rows = list(range(4, 4 + settings.token_rows))
    tokens = {"embed_tokens": rows, "lm_head": rows} if rows else None
    long = {
        "prompt": "What is 47 + 38?",
        "chosen": " 85" * 3000,
        "rejected": " 75" * 3000,
    }
    short = long | {"rejected": " 75" * 20}
    pairs = [
        short if settings.padded and i % 2 else long for i in range(settings.batch)
    ]
    kind, extra = ORPOTrainer, {}
    if settings.trainer == "fast":
        fast_config = FastTrainingConfig(
            token_budget=settings.token_budget, head_tile=settings.head_tile
        )
        kind, extra = PackedORPOTrainer, {"fast_config": fast_config}
    made = kind(
        model=load(settings.precision, compute, **sizes),
        args=ORPOConfig(
            output_dir=str(folder),
            max_steps=1,
            per_device_train_batch_size=settings.batch,
            max_length=settings.length,
            optim=settings.optim,
            bf16=compute == "bfloat16",
            fp16=compute == "float16",
            use_cpu=True,
            gradient_checkpointing=settings.checkpointing,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=settings.lora_rank,
            target_modules=list(settings.targets),
            trainable_token_indices=tokens,
        ),
        **extra,
    )
    return made


@contextlib.contextmanager
def as_on_a_gpu(compute):
    """PEFT asks for CUDA's autocast, whatever the device: without this, LoRA layers
    would take another branch on the CPU, with copies in fp32."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", compute != "float32")
    torch.set_autocast_dtype(
        "cuda", torch.float16 if compute == "float32" else getattr(torch, compute)
    )
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def saved_bytes(function, frozen):
    """(result, bytes): storages that autograd keeps of a call, each counted once."""
    known = {p.untyped_storage().data_ptr() for p in frozen}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, sum(size for at, size in kept.items() if at not in known)


def peak_bytes(function):
    """Highest sum of live allocations during a call, those before it not counted."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        function()
    events = []

    def walk(event):
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields.alloc_size))
        for child in event.children:
            walk(child)

    for event in seen.profiler.kineto_results.experimental_event_tree():
        walk(event)
    now = highest = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        highest = max(highest, now)
    return highest


def measure(settings, folder, **sizes):
    """{"saved", "peak"}: bytes of one step above weights and optimizer."""
    found = {}
    made = trainer(settings, folder, **sizes)
    step = made.training_step

    def training_step(model, batch, *rest):
        frozen = [*made.model.parameters(), *made.model.buffers()]
        with as_on_a_gpu(settings.compute):
            if settings.trainer == "stock":
                model.train()
                _, found["saved"] = saved_bytes(
                    lambda: made.compute_loss(model, batch), frozen
                )
            results = []
            found["peak"] = peak_bytes(
                lambda: results.append(step(model, batch, *rest))
            )
        return results[0]

    made.training_step = training_step
    made.train()
    return found
