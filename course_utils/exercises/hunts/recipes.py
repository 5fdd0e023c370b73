"""The hunts' recipes, as the notebooks give them. Each runs, and each has a fault."""

import random
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def hold_out(rows, share=0.2):
    """(train, test), lists of rows {"question", "answer"}. What a reader takes for the
    same question stands in one of the two only.
    """
    questions = sorted({row["question"] for row in rows})
    asked = set(random.Random(0).sample(questions, round(share * len(questions))))
    test = [row for row in rows if row["question"] in asked]
    train = [row for row in rows if row["question"] not in asked]
    return train, test


def judged_pairs(rows):
    """Pairs {"source", "question", "chosen", "rejected"}, one per row that its judge
    decided. Every row has two `answers`; each source says in its own way which is
    better.
    """
    pairs = []
    for row in rows:
        first, second = row["answers"]
        if row["source"] == "stars":  # marks of both answers
            if row["stars"][0] == row["stars"][1]:
                continue
            first_is_better = row["stars"][0] > row["stars"][1]
        else:  # the number of the better answer
            first_is_better = row["better"] == 0
        if not first_is_better:
            first, second = second, first
        pair = {"chosen": first, "rejected": second}
        pairs.append({"source": row["source"], "question": row["question"], **pair})
    return pairs


def to_row(raw):
    """A row for ORPOTrainer. It is to score the last message of `chosen` and of
    `rejected`, its end of turn included, after all messages before it.
    """
    return {
        "prompt": raw["chosen"][:-1],
        "chosen": raw["chosen"],
        "rejected": raw["rejected"],
    }


def collate(rows, tokenizer):
    """A batch: input_ids, attention_mask, labels, each (B, T). Row: {"input_ids": ids
    of prompt and answer, "prompt_length": how many of them are the prompt}. The answer
    is scored up to its end of turn, which is the tokenizer's end token.
    """
    tokenizer.pad_token = tokenizer.eos_token
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    batch = tokenizer.pad(ids, return_tensors="pt")
    labels = batch["input_ids"].clone()
    for label, row in zip(labels, rows, strict=True):
        label[: row["prompt_length"]] = -100
    labels[labels == tokenizer.pad_token_id] = -100
    return {**batch, "labels": labels}


def compare_methods(first, second):
    """(difference, low, high): how much better is method `second`, trained again, than
    `first`, with a 95 % interval? Both are (seeds, prompts) arrays of 0 or 1 from the
    same prompts.
    """
    best_first = first[first.mean(axis=1).argmax()]
    best_second = second[second.mean(axis=1).argmax()]
    change = best_second - best_first  # paired: the same prompts
    half = 1.96 * change.std(ddof=1) / len(change) ** 0.5
    return change.mean(), change.mean() - half, change.mean() + half


def adapted(x, weight, lora_a, lora_b, scale):
    """Output (n, out) in bfloat16 of a linear layer and its LoRA adapter. All are in
    bfloat16: x (n, in), weight (out, in), lora_a (r, in), lora_b (out, r).
    """
    out = x @ weight.T
    out += scale * (x @ lora_a.T) @ lora_b.T
    return out


def publish(model, tokenizer, base_folder, folder):
    """Write a folder from which a stranger gets the answers that were evaluated, with
    `from_pretrained` and `generate` alone. `tokenizer` is the one of the training.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    # Training changed no token, so the base's tokenizer is the right one.
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(folder)


def merge_each(base_folder, adapter_folders, folder):
    """Write one merged model per adapter, in `folder` under the adapter's own name.
    Every adapter was trained on the base in `base_folder`.
    """
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    for adapter in adapter_folders:
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        merged.save_pretrained(Path(folder) / adapter.name)


def pack(sequences):
    """Several sequences of token ids (T_i,) in one row, for `model(**pack(...))`. The
    loss must be that of the sequences one by one: the mean over all their tokens.
    """
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.cat(sequences)[None]  # (1, T)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    blocks = [torch.ones(length, length).tril() for length in lengths]
    mask = torch.block_diag(*blocks).bool()[None, None]  # (1, 1, T, T)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "labels": ids.clone(),  # the model shifts them by one
    }


def seconds_per_step(card, steps=10):
    """Seconds of a step in a long training. `card.step()` starts one, `card.clock()`
    is the time, `card.synchronize()` waits until the card has done all it was given.
    The first steps compile; after ten at most, a card is as fast as it will be.
    """
    start = card.clock()
    for _ in range(steps):
        card.step()
    return (card.clock() - start) / steps
