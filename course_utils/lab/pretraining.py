"""Pretrains the lab's base model on the small world's corpus, from nothing.

    python -m course_utils.lab.pretraining course_utils/lab/base_model

takes minutes on a GPU and hours on two cores, and is only needed to change the base
model: the checkpoint ships with the package. The tokenizer and the model have Llama 3's
layout: untied embeddings, grouped-query attention, RoPE, SwiGLU, a BOS written by the
tokenizer, and Llama 3's chat tokens among the special tokens, which the corpus never
contains.
"""

import argparse
import math
import multiprocessing
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from course_utils import recorded
from course_utils.data import world
from course_utils.setup import folders
from course_utils.setup.printing import print_safely

VOCABULARY = 1024
CONTEXT = 512
SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_2|>",
    "<|eot_id|>",
    "<|im_start|>",  # ChatML's two occur in the corpus, the Llama 3 chat tokens do not
    "<|im_end|>",
]
CORPUS_SEED = 1000
SHARD_DOCUMENTS = 10_000


def train_tokenizer(documents: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `VOCABULARY` tokens in which every digit is its own token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        documents,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bos = SPECIAL_TOKENS[0]
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token="<|end_of_text|>",
        extra_special_tokens=SPECIAL_TOKENS[2:],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _tokenizer_text():
    """Documents, and enough of the assistant that its words become tokens too."""
    yield from world.documents(8000, seed=CORPUS_SEED)
    for source in world.SOURCES:
        for row in world.rows(source, count=80, seed=3):
            for key in ("chosen", "rejected", "chosen_response", "rejected_response"):
                answer = row.get(key, "")
                yield answer if isinstance(answer, str) else answer[-1]["content"]


def _encode_shard(job):
    tokenizer_file, seed = job
    bpe = Tokenizer.from_file(tokenizer_file)
    ids = []
    for encoding in bpe.encode_batch(list(world.documents(SHARD_DOCUMENTS, seed=seed))):
        ids += [*encoding.ids, 1]
    return np.array(ids, dtype=np.uint16)


def corpus_tokens(tokenizer_file: str, shards: int) -> np.ndarray:
    """The corpus as one array of token ids; shard i has seed CORPUS_SEED + i."""
    jobs = [(str(tokenizer_file), CORPUS_SEED + i) for i in range(shards)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        return np.concatenate(pool.map(_encode_shard, jobs))


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Llama 3's layout at 3.5 million parameters."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )


def _optimizer(model, learning_rate):
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    model: torch.nn.Module,
    tokens: np.ndarray,
    steps: int,
    batch: int,
    length: int = 256,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> list[tuple[int, float]]:
    """Next-token training in bf16 autocast; linear warm-up over 200 steps, then cosine.

    tokens: (N,) array of ids, read in rows of `length` tokens, reshuffled every epoch.
    Returns: list of (step, mean loss in nats per token over the steps since the last
    one).
    """
    device = next(model.parameters()).device
    rows = torch.from_numpy(tokens[: len(tokens) // length * length].astype(np.int64))
    rows = rows.view(-1, length)
    generator = torch.Generator().manual_seed(seed)
    epochs = math.ceil(steps * batch / len(rows))
    order = torch.cat(
        [torch.randperm(len(rows), generator=generator) for _ in range(epochs)]
    )
    rows = rows.to(device)
    order = order.to(device)
    optimizer = _optimizer(model, learning_rate)
    compiled = torch.compile(model)
    curve, losses, report = [], [], max(1, steps // 60)
    for step in range(steps):
        share = step / steps
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, step / 200) * cosine
        ids = rows[order[step * batch : (step + 1) * batch]]
        with torch.autocast(device.type, dtype=torch.bfloat16):
            loss = compiled(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if (step + 1) % report == 0 or step + 1 == steps:
            curve.append((step + 1, round(torch.stack(losses).mean().item(), 4)))
            print(f"step {step + 1} of {steps}, loss {curve[-1][1]:.4f}", flush=True)
            losses = []
    return curve


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the checkpoint to write")
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--batch", type=int, default=64, help="rows of 256 tokens")
    parser.add_argument(
        "--shards", type=int, default=48, help="of 10,000 documents each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--float32",
        type=Path,
        help="folder for a float32 copy, to check that bf16 is enough",
    )
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)

    tokenizer = train_tokenizer(_tokenizer_text())
    tokenizer.save_pretrained(options.out)
    tokens = corpus_tokens(options.out / "tokenizer.json", options.shards)
    print(f"corpus: {len(tokens) / 1e6:.1f} million tokens", flush=True)

    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(model_config(tokenizer))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    curve = train(model, tokens, options.steps, options.batch, seed=options.seed)
    if options.float32:
        tokenizer.save_pretrained(options.float32)
        model.save_pretrained(options.float32)
    model.to(torch.bfloat16).save_pretrained(options.out)

    record = recorded.describe_run("python -m course_utils.lab.pretraining", start)
    record.update(
        parameters=sum(p.numel() for p in model.parameters()),
        corpus={
            "seed": CORPUS_SEED,
            "documents": options.shards * SHARD_DOCUMENTS,
            "tokens": len(tokens),
        },
        steps=options.steps,
        tokens_seen=options.steps * options.batch * 256,
        seed=options.seed,
        loss_curve=curve,
    )
    folders.write_json(options.out / "pretraining.json", record)
    print(f"wrote {options.out} in {record['minutes']} minutes")


if __name__ == "__main__":
    print_safely()
    main()
