"""Pretraining, at toy size, and the tokenizer that ships."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils import lab
from course_utils.data import world
from course_utils.lab import pretraining


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(lab.BASE_MODEL)


# --- the tokenizer ------------------------------------------------------------------


def test_the_shipped_tokenizer_is_what_the_command_makes(tmp_path):
    pretraining.train_tokenizer(pretraining._tokenizer_text()).save_pretrained(tmp_path)
    made, shipped = (
        json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        for folder in (tmp_path, lab.BASE_MODEL)
    )
    assert made == shipped


def test_special_tokens_come_first_in_the_order_given(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(pretraining.SPECIAL_TOKENS)
    assert ids == list(range(10))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert len(tokenizer) == pretraining.VOCABULARY


def test_every_digit_is_a_token_of_its_own(tokenizer):
    pieces = tokenizer.tokenize("47 + 38 = 85")
    assert [p for p in pieces if any(c.isdigit() for c in p)] == list("473885")


def test_bos_is_written_once(tokenizer):
    assert tokenizer("Hello.")["input_ids"].count(0) == 1
    assert tokenizer("Hello.")["input_ids"][0] == 0
    assert 0 not in tokenizer("Hello.", add_special_tokens=False)["input_ids"]


def test_special_tokens_in_a_text_are_one_token(tokenizer):
    ids = tokenizer("a<|im_end|>b<|eot_id|>", add_special_tokens=False)["input_ids"]
    assert ids[1] == 9 and ids[-1] == 7


def test_the_world_is_written_in_words_not_letters(tokenizer):
    text = "".join(world.documents(200, seed=5))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(text) / len(ids) > 2.5


@given(st.text().filter(lambda text: "<|" not in text))
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back(text):
    tokenizer = AutoTokenizer.from_pretrained(lab.BASE_MODEL)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


# --- the run ------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Pretraining without compiling, without a pool, on a corpus of 120 documents."""
    monkeypatch.setattr(torch, "compile", lambda model: model)
    monkeypatch.setattr(pretraining, "SHARD_DOCUMENTS", 120)
    monkeypatch.setattr(
        pretraining,
        "corpus_tokens",
        lambda file, shards: np.concatenate(
            [
                pretraining._encode_shard((str(file), pretraining.CORPUS_SEED + i))
                for i in range(shards)
            ]
        ),
    )


def test_a_three_step_run_writes_a_checkpoint_that_loads(quick, tmp_path, capsys):
    out, exact = tmp_path / "base", tmp_path / "float32"
    steps = ["--steps", "3", "--batch", "2", "--shards", "1"]
    pretraining.main([str(out), *steps, "--float32", str(exact)])

    model, _ = lab.load_base(out)
    reference = AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float32)
    for got, full in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(got, full.to(torch.bfloat16).float())
    stored = AutoModelForCausalLM.from_pretrained(out)
    assert stored.dtype == torch.bfloat16

    record = json.loads((out / "pretraining.json").read_text(encoding="utf-8"))
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
    assert [step for step, _ in record["loss_curve"]] == [1, 2, 3]
    # an untrained model of 1,024 tokens begins at about log(1024)
    assert record["loss_curve"][0][1] == pytest.approx(np.log(1024), abs=0.2)
    assert record["tokens_seen"] == 3 * 2 * 256
    assert record["corpus"]["documents"] == 120
    assert "loss" in capsys.readouterr().out


def test_training_learns_and_is_repeatable(quick, tokenizer):
    tokens = pretraining._encode_shard((str(lab.BASE_MODEL / "tokenizer.json"), 1))
    assert tokens.dtype == np.uint16 and (tokens == 1).sum() == 120

    def curve(seed):
        torch.manual_seed(0)
        model = pretraining.LlamaForCausalLM(pretraining.model_config(tokenizer))
        return pretraining.train(model, tokens, 8, 4, 64, learning_rate=2e-2, seed=seed)

    first, again, other = curve(0), curve(0), curve(1)
    assert first == again != other
    assert first[-1][1] < first[0][1] - 0.1


def test_the_shape_is_llama_3_s_in_small(tokenizer):
    config = pretraining.model_config(tokenizer)
    assert not config.tie_word_embeddings
    assert config.num_key_value_heads < config.num_attention_heads
    assert config.hidden_act == "silu"
    shipped = AutoModelForCausalLM.from_pretrained(lab.BASE_MODEL).config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
        assert getattr(shipped, key) == getattr(config, key)
