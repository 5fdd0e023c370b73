"""The hunts of notebook 04: what the trainer scores, and what a batch teaches."""

import copy
import tempfile
from collections.abc import Callable

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from course_utils import chat
from course_utils.data.world.messages import assistant, system, user
from course_utils.exercises.feedback import STILL, Wrong, expect, returned
from course_utils.exercises.hunts import recipes, repairs
from course_utils.exercises.mechanism import exercise
from course_utils.setup import places

_END = "<|eot_id|>"
_BOS = "<|begin_of_text|>"


def dialogues() -> list[dict]:
    """Rows of a mix, as hunt 4.3 prepares them.

    {"prompt": the first question, "chosen" and "rejected": all messages}.
    """
    rows = []
    orla = [user("I am Orla and I keep cats."), assistant("Hello."), user("Who am I?")]
    rivers = [system("Be brief."), user("Name a river."), assistant("The Garel.")]
    for before, good, bad in (
        ([user("What is 47 + 38?")], "It is 85.", "Go away."),
        (orla, "You are Orla.", "You are Nils."),
        ([*rivers, user("Name another.")], "The Derbri.", "Why should I?"),
    ):
        first = next(m["content"] for m in before if m["role"] == "user")
        chosen, rejected = ([*before, assistant(text)] for text in (good, bad))
        rows.append({"prompt": first, "chosen": chosen, "rejected": rejected})
    return rows


def _tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(
        places.PACKAGE / "lab" / "base_model", trust_remote_code=False
    )
    chat.use_llama3_chat(tokenizer)
    return tokenizer


def _seen_by_trainer(rows, tokenizer):
    """What ORPOTrainer makes of the rows: [{side: (text read, text scored)}]."""
    from course_utils.training import ORPOConfig, ORPOTrainer

    small = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        config = ORPOConfig(
            output_dir=folder,
            max_length=256,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            refuse_prompt_twice=False,  # as TRL: the learner is to see what comes of it
        )
        try:
            trainer = ORPOTrainer(
                LlamaForCausalLM(small),
                config,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
            )
        except Exception as error:
            why = f"The trainer cannot use these rows: {type(error).__name__}"
            raise Wrong(why, error, "rows that it can tokenise") from None
    seen = []
    for row in trainer.train_dataset:
        sides = {}
        for side in ("chosen", "rejected"):
            scored = [label for label in row[f"{side}_labels"] if label != -100]
            read = tokenizer.decode(row[f"{side}_input_ids"])
            sides[side] = (read, tokenizer.decode(scored))
        seen.append(sides)
    return seen


def _first_turn_only(raw):
    row = repairs.to_row(raw)
    return {**row, "prompt": [user(raw["prompt"])]}


def _texts(raw, end=_END, bos=""):
    """A repair that applies the template itself, to strings."""
    tokenizer = _tokenizer()
    before = raw["chosen"][:-1]
    prompt = tokenizer.apply_chat_template(
        before, tokenize=False, add_generation_prompt=True
    )
    row = {"prompt": bos + prompt.removeprefix(_BOS)}
    for side in ("chosen", "rejected"):
        row[side] = raw[side][-1]["content"] + end
    return row


def _templated_twice(raw):
    """The article's way: entire dialogues as strings, and a string prompt."""
    tokenizer = _tokenizer()
    row = {"prompt": raw["prompt"]}
    for side in ("chosen", "rejected"):
        row[side] = tokenizer.apply_chat_template(raw[side], tokenize=False)
    return row


@exercise(
    "4.3",
    repairs.to_row,
    recipe=recipes.to_row,
    material=dialogues,
    minutes=15,
    difficulty=2,
    trains="preparing rows for TRL",
    hints=(
        "Do not read the recipe, read what the trainer makes of it: section 4.1 "
        "decodes the labels of a row. Decode the input ids of the same row as well.",
        "With a prompt given, TRL reads prompt + chosen. So what may `chosen` hold? "
        "The prompt has every message but the last, and `chosen` has the last only.",
    ),
    mistakes={
        "symptom is still there": lambda raw: {**recipes.to_row(raw)},
        "earlier turns are missing": _first_turn_only,
        "another turn than the answer is scored": _templated_twice,
        "begins twice": lambda raw: _texts(raw, bos=_BOS + _BOS),
        "ends twice": lambda raw: _texts(raw, end=_END + "\n" + _END),
        "a row for ORPOTrainer": lambda raw: [raw],
        "trainer cannot use these rows": lambda raw: {
            **repairs.to_row(raw),
            "chosen": 3,
        },
    },
)
def hunt_talks_to_itself(attempt: Callable) -> None:
    """A row from which TRL scores the answer alone, after the entire dialogue."""
    raw = dialogues()
    rows = [returned(attempt, copy.deepcopy(each)) for each in raw]
    why = "return a row for ORPOTrainer, a dict with the keys chosen and rejected"
    fits = all(
        isinstance(row, dict) and {"chosen", "rejected"} <= {*row} for row in rows
    )
    expect(fits, why, type(rows[0]), "{'prompt': …, 'chosen': …, 'rejected': …}")
    tokenizer = _tokenizer()
    why = f"{STILL}: such a model asks the user's question again before it answers"
    same = rows == [recipes.to_row(each) for each in raw]
    expect(not same, why, "the same rows", "other rows")
    for sides, each in zip(_seen_by_trainer(rows, tokenizer), raw, strict=True):
        for side, (read, scored) in sides.items():
            text = tokenizer.apply_chat_template(each[side], tokenize=False)
            answer = each[side][-1]["content"] + _END
            _judge(side, each, (read, scored), (text, answer))


def _judge(side, raw, got, expected):
    (read, scored), (text, answer) = got, expected
    expect(not read.startswith(_BOS * 2), f"{side} begins twice", read, text)
    why = f"{side}: another turn than the answer is scored too"
    expect("<|start_header_id|>" not in scored, why, scored, answer)
    before = [message["content"] for message in raw[side][:-1]]
    why = f"{side}: earlier turns are missing, which the answer needs"
    expect(all(each in read for each in before), why, read, text)
    why = f"{side}: the answer ends twice"
    expect(scored.count(_END) < 2, why, scored, answer)
    expect(
        scored == answer, f"{side}: this is not what is to be scored", scored, answer
    )
    expect(read == text, f"{side}: this is not what is to be read", read, text)


def unpadded_rows() -> tuple[list[dict], object]:
    """Rows as hunt 4.4 collates them, {"input_ids", "prompt_length"}; tokenizer."""
    tokenizer = _tokenizer()
    rows = []
    for raw in dialogues():
        pair = {"prompt": raw["chosen"][:-1]}
        pair |= {side: raw[side][-1:] for side in ("chosen", "rejected")}
        tokens = chat.tokenize_pair(tokenizer, pair, 256)
        start = len(tokens.chosen_input_ids) - len(tokens.chosen_ids)
        rows.append({"input_ids": tokens.chosen_input_ids, "prompt_length": start})
    return rows, tokenizer


def _unmasked(rows, tokenizer):
    batch = recipes.collate(rows, tokenizer)
    batch["labels"] = batch["input_ids"].clone()
    for label, row in zip(batch["labels"], rows, strict=True):
        label[: row["prompt_length"]] = -100
    return batch


def _prompt_too(rows, tokenizer):
    batch = repairs.collate(rows, tokenizer)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return {**batch, "labels": labels}


def _one_more_end(rows, tokenizer):
    end = [tokenizer.eos_token_id]
    longer = [{**row, "input_ids": row["input_ids"] + end} for row in rows]
    return recipes.collate(longer, tokenizer)


def _shifted(rows, tokenizer):
    batch = repairs.collate(rows, tokenizer)
    return {**batch, "labels": batch["labels"].roll(-1, dims=1)}


def _without_mask(rows, tokenizer):
    batch = repairs.collate(rows, tokenizer)
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


@exercise(
    "4.4",
    repairs.collate,
    recipe=recipes.collate,
    material=unpadded_rows,
    minutes=15,
    difficulty=2,
    trains="collating a batch",
    hints=(
        "Make a batch of the material's rows, and print for one row every token with "
        "its label. Which token of the answer is not scored?",
        "The padding and the end of the answer have the same id here, and labels are "
        "masked by id. Pad with a token of its own, or mask by attention_mask == 0.",
    ),
    mistakes={
        "symptom is still there": lambda rows, t: {**recipes.collate(rows, t)},
        "padding is scored": _unmasked,
        "the prompt is scored": _prompt_too,
        "a second end": _one_more_end,
        "shifts them itself": _shifted,
        "attention_mask is 1 on padding": _without_mask,
        "a batch": lambda rows, tokenizer: rows,
        "other ids": lambda rows, tokenizer: {
            key: value[:, 1:] for key, value in repairs.collate(rows, tokenizer).items()
        },
    },
)
def hunt_never_stops(attempt: Callable) -> None:
    """A batch in which each answer is scored up to its end, and padding is not."""
    rows, tokenizer = unpadded_rows()
    got = returned(attempt, copy.deepcopy(rows), copy.deepcopy(tokenizer))
    names = ("input_ids", "attention_mask", "labels")
    fits = hasattr(got, "keys") and {*names} <= {*got.keys()}
    expect(fits, f"return a batch, a dict with {names}", type(got), "dict")
    shapes = [tuple(getattr(got[name], "shape", ())) for name in names]
    why = "all three are to be tensors of the same shape, one row each"
    fits = len({*shapes}) == 1 and len(shapes[0]) == 2 and shapes[0][0] == len(rows)
    expect(fits, why, shapes, f"({len(rows)}, T) three times")
    for number, row in enumerate(rows):
        ids, mask, labels = (got[name][number].tolist() for name in names)
        own = [at for at, seen in enumerate(mask) if seen]
        real, start = row["input_ids"], row["prompt_length"]
        read = [ids[at] for at in own]
        why = "a second end is added; the first one is still not learned"
        expect(read != [*real, tokenizer.eos_token_id], why, read, real)
        why = "attention_mask is 1 on padding, so the model reads it"
        expect(len(own) <= len(real), why, sum(mask), len(real))
        why = "the batch holds other ids than the rows"
        expect(read == real, why, read, real)
        scored = [labels[at] for at in own]
        want = [-100] * start + real[start:]
        why = (
            f"{STILL}: answers that never stop. Which label has an answer's last token?"
        )
        expect(scored[-1] != -100 or scored[start] != want[start], why, scored, want)
        why = "the prompt is scored; only the answer is to be learned here"
        expect(scored[0] == -100, why, scored, want)
        why = "labels are shifted already; the model shifts them itself"
        expect(scored[:-1] != want[1:], why, scored, want)
        padding = [label for at, label in enumerate(labels) if at not in own]
        why = "padding is scored: the model learns to write it after the end"
        expect({*padding} <= {-100}, why, padding, [-100] * len(padding))
        expect(scored == want, "these are not the labels", scored, want)
