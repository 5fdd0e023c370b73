"""One right repair of each hunt's recipe; `checks.solution` shows them."""

import random
import unicodedata
from pathlib import Path

import torch
from peft import PeftModel
from scipy import stats
from transformers import AutoModelForCausalLM


def hold_out(rows, share=0.2):
    # Exact text is no key: "What is it?" and "what is  it?" would be two questions.
    def key(row):
        text = unicodedata.normalize("NFKC", row["question"])
        return " ".join(text.casefold().split())

    questions = sorted({key(row) for row in rows})
    asked = set(random.Random(0).sample(questions, round(share * len(questions))))
    test = [row for row in rows if key(row) in asked]
    train = [row for row in rows if key(row) not in asked]
    return train, test


def judged_pairs(rows):
    pairs = []
    for row in rows:
        first, second = row["answers"]
        if row["source"] == "stars":
            if row["stars"][0] == row["stars"][1]:
                continue
            first_is_better = row["stars"][0] > row["stars"][1]
        elif row["source"] == "duel":
            first_is_better = row["better"] == 1  # counts 1, 2
        else:
            first_is_better = row["better"] == 0  # counts 0, 1
        if not first_is_better:
            first, second = second, first
        pair = {"chosen": first, "rejected": second}
        pairs.append({"source": row["source"], "question": row["question"], **pair})
    return pairs


def to_row(raw):
    # With an explicit prompt TRL reads prompt + chosen, so the dialogue stood there
    # twice, and its second copy was scored as the answer.
    return {
        "prompt": raw["chosen"][:-1],
        "chosen": raw["chosen"][-1:],
        "rejected": raw["rejected"][-1:],
    }


def collate(rows, tokenizer):
    # A padding token of its own: masking the end token's id would mask the answers'
    # last token too, and a model that never sees it never stops.
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    batch = tokenizer.pad(ids, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for label, row in zip(labels, rows, strict=True):
        label[: row["prompt_length"]] = -100
    labels[labels == tokenizer.pad_token_id] = -100
    return {**batch, "labels": labels}


def compare_methods(first, second):
    # A method is all its seeds, not the best one. Each seed gives one difference, and
    # so few of them take Student's t.
    change = (second - first).mean(axis=1)
    half = stats.t.ppf(0.975, len(change) - 1) * stats.sem(change)
    return change.mean(), change.mean() - half, change.mean() + half


def adapted(x, weight, lora_a, lora_b, scale):
    # Rounded, W x lies on a grid, and what is less than half a step of it does not move
    # it. So both products are added first, and the sum is rounded once.
    out = x.float() @ weight.float().T
    out += scale * (x.float() @ lora_a.float().T) @ lora_b.float().T
    return out.to(x.dtype)


def publish(model, tokenizer, base_folder, folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    # Whoever loads the folder stops where the generation config says.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # with the chat format of the training


def merge_each(base_folder, adapter_folders, folder):
    for adapter in adapter_folders:
        # `merge_and_unload` changes the model it is given, so each adapter gets a base
        # of its own; otherwise it is merged into the model before it.
        base = AutoModelForCausalLM.from_pretrained(
            base_folder, use_safetensors=True, trust_remote_code=False
        )
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        merged.save_pretrained(Path(folder) / adapter.name)


def pack(sequences):
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.cat(sequences)[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    blocks = [torch.ones(length, length).tril() for length in lengths]
    mask = torch.block_diag(*blocks).bool()[None, None]
    labels = ids.clone()
    labels[positions == 0] = -100  # no sequence predicts the first token of the next
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "labels": labels,
    }


def seconds_per_step(card, steps=10):
    for _ in range(10):  # the steps that compile
        card.step()
    card.synchronize()  # nothing of them may be left over
    start = card.clock()
    for _ in range(steps):
        card.step()
    card.synchronize()  # and all that was started is done
    return (card.clock() - start) / steps
