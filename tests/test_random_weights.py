"""The random weights have Llama 3 8B's shape and ids, and say that they are random."""

import json
import shutil
from collections import namedtuple
from math import prod

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils import chat
from course_utils.models import random_weights, shards
from course_utils.models.random_weights import __main__ as command
from course_utils.models.random_weights import checkpoint

Usage = namedtuple("Usage", "total used free")
TEXTS = [
    "What is the capital of France? It is Paris, a city on the Seine.",
    "An odds ratio compares the chosen answer with the rejected one.",
    "def area(width, height):\n    return width * height  # in square metres\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("twins") / "tiny"
    random_weights.write(target, "tiny")
    return target


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def no_tokenizer(monkeypatch):
    """Its training takes seconds, and most of these tests are about weights."""
    nothing = namedtuple("Nothing", "save_pretrained")(lambda folder: None)
    monkeypatch.setattr(checkpoint, "make_tokenizer", lambda: nothing)


# --- the shape ----------------------------------------------------------------------


def test_the_default_is_llama_3_8b():
    config = checkpoint.config_of("llama3-8b")
    for name, value in {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    }.items():
        assert getattr(config, name) == value, name
    assert config.rope_parameters["rope_theta"] == 500000.0
    shapes = checkpoint.weight_shapes(config)
    assert sum(map(prod, shapes.values())) == 8_030_261_248
    assert len(shapes) == 291
    split = shards.plan(shapes, torch.bfloat16, checkpoint.SHARD_BYTES)
    files = split.filename_to_tensors
    assert len(files) == 4
    assert next(iter(files)) == "model-00001-of-00004.safetensors"


def test_it_loads_and_its_logits_have_a_sensible_scale(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        logits = model(ids).logits.float()
    assert logits.shape[-1] == 128256 and logits.isfinite().all()
    weight = model.model.layers[1].mlp.up_proj.weight
    assert 0.018 < weight.std() < 0.022 and abs(weight.mean()) < 2e-3
    assert (model.model.norm.weight == 1).all()


def test_untrained_rows_look_untrained(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    control = [128006, 128007, 128009]
    assert chat.untrained_token_ids(model, control)[0] == control
    for table in (model.model.embed_tokens.weight, model.lm_head.weight):
        norms = table.float().norm(dim=1)
        assert norms[128002:].max() < 0.01 * norms[:128002].min()


def test_values_repeat_with_the_seed_only(no_tokenizer, folder, tmp_path):
    random_weights.write(tmp_path / "again", "tiny")
    random_weights.write(tmp_path / "other", "tiny", seed=1)
    first, again, other = (
        load_file(f / "model.safetensors")
        for f in (folder, tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first[name.replace("layers.0", "layers.1")])


def test_parts_and_shards_change_nothing(no_tokenizer, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 5_000_000)
    random_weights.write(tmp_path / "sharded", "tiny")
    names = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert names[0] == "model-00001-of-00003.safetensors" and len(names) == 3
    whole = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    sharded = AutoModelForCausalLM.from_pretrained(tmp_path / "sharded").state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    # Drawn in many parts, a tensor is as full and as scaled as in one.
    monkeypatch.setattr(checkpoint, "_PART", 1_000)
    random_weights.write(tmp_path / "parts", "tiny")
    table = load_file(tmp_path / "parts" / "model-00001-of-00003.safetensors")
    rows = next(t for t in table.values() if len(t) == 128256).float()
    assert 0.019 < rows[:128002].std() < 0.021
    assert rows[128002:].abs().max() < 2e-4 < rows[128001].abs().max()


# --- the tokenizer ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        (128000, "<|begin_of_text|>"),
        (128001, "<|end_of_text|>"),
        (128002, "<|reserved_special_token_0|>"),
        (128005, "<|reserved_special_token_3|>"),
        (128006, "<|start_header_id|>"),
        (128007, "<|end_header_id|>"),
        (128008, "<|reserved_special_token_4|>"),
        (128009, "<|eot_id|>"),
        (128010, "<|reserved_special_token_5|>"),
        (128255, "<|reserved_special_token_250|>"),
    ],
)
def test_special_tokens_have_llama_3s_ids(tokenizer, id_, name):
    assert tokenizer.convert_tokens_to_ids(name) == id_
    assert tokenizer(f"a{name}b", add_special_tokens=False).input_ids[1] == id_


def test_the_id_space_is_llama_3s(tokenizer):
    assert len(tokenizer) == 128256
    assert sorted(tokenizer.get_vocab().values()) == list(range(128256))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (128000, 128001)
    assert tokenizer.pad_token is None and not tokenizer.chat_template


@pytest.mark.parametrize("text", TEXTS)
def test_text_takes_a_plausible_number_of_tokens(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == 128000
    assert 2.5 < len(text) / (len(ids) - 1) < 6
    assert tokenizer.decode(ids[1:]) == text


def test_any_text_comes_back(tokenizer):
    text = "Ω ≠ 東京 <|unused_100000|> \t\r\n\n don't 12345 🙂"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert max(ids) < 128000
    numbers = tokenizer.tokenize("12345")
    assert [len(token) for token in numbers] == [3, 2]  # at most three digits a token


def test_the_chat_format_fits(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert chat.use_llama3_chat(tokenizer) == [128006, 128007, 128009]
    assert len(tokenizer) == 128256


# --- it says what it is, and leaves nothing half-written ----------------------------


def test_card_and_config_say_random(folder):
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "random weights" in card and "no quality can be measured" in card
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "never trained" in config["random_weights"]
    # The mark survives what a training run saves.
    assert "random_weights" in checkpoint.config_of("tiny").to_dict()


def test_too_little_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(20, 10, 10 * 2**30))
    with pytest.raises(OSError, match=r"writes 15\.0 GiB, .* 10\.0 GiB free"):
        random_weights.write(tmp_path / "big")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(no_tokenizer, tmp_path, monkeypatch):
    def broken(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "write", broken)
    with pytest.raises(OSError, match="No space left"):
        random_weights.write(tmp_path / "broken", "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert command.main([str(tmp_path), "--shape", "tiny"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_shape_names_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="'7b'; there are llama3-8b, .*tiny"):
        random_weights.write(tmp_path / "x", "7b")


def test_the_command_says_how_to_use_it(no_tokenizer, tmp_path, capsys):
    assert command.main([str(tmp_path / "twin"), "--shape", "tiny"]) == 0
    said = capsys.readouterr().out
    weights = load_file(next((tmp_path / "twin").glob("*.safetensors")))
    count = sum(tensor.numel() for tensor in weights.values())
    assert f"wrote {count:,} random weights" in said
    assert f"COURSE_BASE_MODEL={tmp_path / 'twin'}" in said
