"""What is refused of a dataset, with its rows, and what is counted."""

import re

import pytest
from datasets import Dataset, IterableDataset
from fast_harness import config, make_trainer, text_rows
from orpo_rows_samples import (
    ASKED,
    AWKWARD,
    assistant,
    both_tokenizers,
    messages,
    user,
)

from course_utils.training import ORPOTrainer, PackedORPOTrainer
from course_utils.training.orpo_batches import PairCollator
from course_utils.training.orpo_rows import tokenize_rows

READING = both_tokenizers()[0]
GOOD = [
    {"prompt": f"What is {n} + 38?", "chosen": f" {n + 38}.", "rejected": " No."}
    for n in range(40, 46)
]
LISTED = [messages(row["chosen"], row["rejected"], user(row["prompt"])) for row in GOOD]


def tokenized(rows, **changes):
    args = config("unused", **{"max_length": 300} | changes)
    return tokenize_rows(Dataset.from_list(rows), READING, args)


def templated(row):
    """The recipe that everyone copied: whole conversations as strings."""
    text = {"prompt": row["prompt"][-1]["content"]}
    for side in ("chosen", "rejected"):
        text[side] = READING.apply_chat_template(
            row["prompt"] + row[side], tokenize=False
        )
    return text


# ---- the prompt counted twice ----


def in_other_words(row):
    """A template whose markers are no special tokens of the tokenizer."""
    asked = row["prompt"]
    return {
        "prompt": asked,
        "chosen": f"### User: {asked}\n### Assistant: {row['chosen']}",
        "rejected": f"### User: {asked}\n### Assistant: {row['rejected']}",
    }


def whole_conversations(row):
    prompt = row["prompt"]
    return row | {s: prompt + row[s] for s in ("chosen", "rejected")}


def prompt_templated_too(row):
    text = templated(row)
    prompt = READING.apply_chat_template(
        row["prompt"], tokenize=False, add_generation_prompt=True
    )
    return text | {"prompt": prompt}


TWICE = {
    "templated strings beside a string": [templated(row) for row in LISTED],
    "both templated": [prompt_templated_too(row) for row in LISTED],
    "markers that are words": [in_other_words(row) for row in GOOD],
    "prompt and answer in one string": [
        row | {s: row["prompt"] + row[s] for s in ("chosen", "rejected")}
        for row in GOOD
    ],
    "messages": [whole_conversations(row) for row in LISTED],
    "messages after a system turn": [
        whole_conversations(
            row
            | {"prompt": [{"role": "system", "content": "Be brief."}, *row["prompt"]]}
        )
        for row in LISTED
    ],
}


@pytest.mark.parametrize("kind", TWICE)
def test_a_prompt_counted_twice_is_refused(kind):
    with pytest.raises(ValueError, match=r"in 6 of 6 rows \(row 0, 1, 2, 3, 4, ...\)"):
        tokenized(TWICE[kind])
    rows, _ = tokenized(TWICE[kind], refuse_prompt_twice=False)
    assert len(rows) == 6


@pytest.mark.parametrize("kind", [*TWICE][:2])
def test_one_such_row_is_found_among_good_ones(kind):
    rows = [*GOOD[:3], TWICE[kind][3], *GOOD[4:]]
    with pytest.raises(ValueError, match=r"in 1 of 6 rows \(row 3\) both answers"):
        tokenized(rows)


def test_answers_that_repeat_the_question_now_and_then_are_only_mentioned(caplog):
    rows = [*GOOD[:5], TWICE["prompt and answer in one string"][5]]
    assert len(tokenized(rows)[0]) == 6
    assert "in 1 of 6 rows (row 5) both answers begin with the prompt" in caplog.text


def test_a_string_prompt_beside_whole_conversations_counts_once():
    row = AWKWARD["a prompt as string beside messages"]
    (found,), lengths = (lambda r: (list(r[0]), r[1]))(tokenized([row]))
    ids = [i for i in found["chosen_labels"] if i != -100]
    assert READING.decode(ids) == "The Rhine, the Danube and the Elbe.<|eot_id|>"
    assert lengths.chosen[0] == len(ids)


# ---- other rows that cannot be trained on ----

BAD = {
    "`chosen` is missing or empty": {"prompt": "a", "chosen": "", "rejected": "b"},
    "`rejected` is missing or empty": {"prompt": "a", "chosen": "b", "rejected": None},
    "one of `chosen` and `rejected` is a string": {
        "prompt": None,
        "chosen": "b",
        "rejected": [assistant("c")],
    },
    "neither a string nor a list of messages": {
        "prompt": None,
        "chosen": [{"text": "b"}],
        "rejected": [{"text": "c"}],
    },
    "`prompt` holds messages, the answers are strings": {
        "prompt": [ASKED],
        "chosen": "b",
        "rejected": "c",
    },
    "without a common first turn": {
        "prompt": "Name three rivers.",
        "chosen": [assistant("b")],
        "rejected": [assistant("c")],
    },
    "one answer begins with all of the other": {
        "prompt": None,
        "chosen": "The same.",
        "rejected": "The same.",
    },
}


@pytest.mark.parametrize("problem", BAD)
def test_a_row_that_cannot_be_read_is_named(problem):
    from course_utils.training.orpo_rows import with_prompt

    with pytest.raises(ValueError, match=re.escape(problem)):
        with_prompt(BAD[problem])


def test_all_faulty_rows_are_counted_and_the_first_shown():
    rows = [GOOD[0], GOOD[1] | {"chosen": ""}, GOOD[2], GOOD[3] | {"rejected": ""}]
    with pytest.raises(ValueError, match=r"2 of 4 rows .*\nrow 1: .*chosen.*\nrow 3: "):
        tokenized(rows)


@pytest.mark.parametrize("cls", [ORPOTrainer, PackedORPOTrainer])
def test_a_prompt_that_fills_max_length_is_refused_with_its_row(tmp_path, cls):
    rows = text_rows(6)
    for number in (2, 4):
        rows[number]["prompt"] = "What is 47 + 38? " * 20
    with pytest.raises(ValueError, match=r"train_dataset: 2 of 6 rows .*\(row 2, 4\)"):
        make_trainer(cls, tmp_path, rows=rows)
    with pytest.raises(ValueError, match=r"eval_dataset: 2 of 6 rows .*\(row 2, 4\)"):
        make_trainer(cls, tmp_path, eval_dataset=Dataset.from_list(rows))


def test_a_batch_without_an_answer_is_refused():
    rows = [dict(row) for row in tokenized(GOOD)[0]]
    rows[1]["rejected_labels"] = [-100] * len(rows[1]["rejected_labels"])
    with pytest.raises(ValueError, match="row 1 of a batch: no token of the rejected"):
        PairCollator(0)(rows)


# ---- datasets of other kinds, lengths ----


@pytest.mark.parametrize("cls", [ORPOTrainer, PackedORPOTrainer])
def test_a_dataset_that_can_only_be_iterated(tmp_path, cls):
    stream = Dataset.from_list(GOOD).to_iterable_dataset()
    args = config(tmp_path, max_length=300)
    rows, lengths = tokenize_rows(stream, READING, args)
    assert isinstance(rows, IterableDataset) and lengths is None
    assert list(rows) == list(tokenized(GOOD)[0])
    bad = Dataset.from_list([*GOOD, templated(LISTED[0])]).to_iterable_dataset()
    with pytest.raises(ValueError, match="train_dataset, row 6: both answers repeat"):
        list(tokenize_rows(bad, READING, args)[0])


def test_tools_reach_the_template():
    template = READING.chat_template
    READING.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + template
    tools = '[{"type": "function", "function": {"name": "add"}}]'
    try:
        rows, _ = tokenized([row | {"tools": tools} for row in LISTED])
    finally:
        READING.chat_template = template
    assert '"name": "add"' in READING.decode(rows[0]["prompt_input_ids"])


def test_lengths_are_counted_and_cuts_reported(tmp_path, caplog):
    rows = [GOOD[0], GOOD[1] | {"chosen": " yes" * 200}]
    found, lengths = tokenized(rows, max_length=60)
    for number, row in enumerate(found):
        assert lengths.prompt[number] == len(row["prompt_input_ids"])
        for side in ("chosen", "rejected"):
            scored = sum(label != -100 for label in row[f"{side}_labels"])
            assert getattr(lengths, side)[number] == scored
    assert lengths.chosen_cut.tolist() == [False, True]
    assert lengths.rejected_cut.tolist() == [False, False]
    assert "max_length 60 cuts 1 chosen and 0 rejected answers" in str(lengths)
    make_trainer(ORPOTrainer, tmp_path, rows=rows, max_length=60)
    assert "train_dataset: 2 pairs; tokens, median (longest): prompt" in caplog.text
    caplog.clear()
    make_trainer(ORPOTrainer, tmp_path, rows=GOOD)
    assert "train_dataset" not in caplog.text  # nothing is cut: not worth a warning
