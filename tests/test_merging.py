"""The streamed merge is PEFT's own, and what it does not know it refuses."""

import json
import shutil
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_llama import base_model, chat_tokenizer, trained_model

from course_utils import chat, lab, recorded
from course_utils.models import nf4_config, shards
from course_utils.publishing import merging
from course_utils.publishing.merging import __main__ as command
from course_utils.publishing.merging import rehearsal, streamed


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A base in two shards."""
    folder = tmp_path_factory.mktemp("base")
    base_model(tokenizer).save_pretrained(folder, max_shard_size="400KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def adapter(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained_model(tokenizer, steps=5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_peft(base, adapter, nf4, dtype):
    settings = {"quantization_config": nf4_config(dtype)} if nf4 else {}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **settings)
    model = model.dequantize() if nf4 else model
    return PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()


@pytest.mark.parametrize("nf4", [True, False])
def test_it_is_pefts_merge(base, adapter, tokenizer, tmp_path, nf4):
    merging.merge(base, adapter, tmp_path / "out", tokenizer, nf4, torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    theirs = by_peft(base, adapter, nf4, torch.float32)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=1e-6)
    untouched = load_base(base)
    assert not torch.equal(ours["lm_head.weight"], untouched["lm_head.weight"])
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(ours[name], untouched[name])


def load_base(base):
    return AutoModelForCausalLM.from_pretrained(base).state_dict()


def test_in_16_bit_it_rounds_once(base, adapter, tokenizer, tmp_path):
    merging.merge(base, adapter, tmp_path / "out", tokenizer)
    name = "model.layers.1.self_attn.v_proj.weight"
    read = merging.read_adapter(adapter)
    low, high = read.updates[name]
    dequantised = by_peft(base, adapter, True, torch.bfloat16)  # rounds twice
    exact = merging.merged_tensor(
        name, load_base(base)[name].bfloat16(), streamed.Adapter({}, {}, 1), True
    ).double() + read.scale * (high.double() @ low.double())
    ours = shards.Reader(tmp_path / "out").read(name)
    assert ours.dtype == torch.bfloat16
    once = (ours.double() - exact).abs().max()
    twice = (dequantised[name].double() - exact).abs().max()
    assert once <= twice
    assert once <= exact.abs().max() * 2**-8  # half a step of bfloat16


def test_tied_tables_stay_one(tokenizer, tmp_path):
    tied = tiny_model(len(tokenizer), hidden_size=64, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path / "base")
    ids = chat.use_llama3_chat(tokenizer)
    lora = LoraConfig(
        r=4,
        target_modules=["q_proj"],
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    )
    model = get_peft_model(tied, lora)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    merging.merge(
        tmp_path / "base",
        tmp_path / "adapter",
        tmp_path / "out",
        tokenizer,
        nf4=False,
        dtype=torch.float32,
    )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    row = torch.tensor([[1, ids[0], 5, ids[2]]])
    with torch.no_grad():
        wanted, found = model.eval()(row).logits, merged(row).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert "lm_head.weight" not in shards.Reader(tmp_path / "out").shapes()


def test_the_result_is_ready_to_be_used(base, adapter, tokenizer, tmp_path):
    merging.merge(base, adapter, tmp_path / "out", tokenizer)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == saved.eos_token_id == 7
    assert model.config.eos_token_id == 7
    assert saved.chat_template == tokenizer.chat_template
    assert not hasattr(model.config, "quantization_config")


# --- what it refuses, leaving nothing behind ------------------------------------------


def refused(base, adapter, tokenizer, tmp_path, error, words):
    with pytest.raises(error, match=words):
        merging.merge(base, adapter, tmp_path / "out", tokenizer)
    assert not [p for p in tmp_path.iterdir() if p.name not in ("adapter", "base")]


@pytest.fixture
def spoiled(adapter, tmp_path):
    return shutil.copytree(adapter, tmp_path / "adapter")


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "uses use_dora, which this merge does not know"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"alpha_pattern": {"q_proj": 4}}, "uses alpha_pattern"),
        ({"bias": "all"}, "LORA, bias 'all'"),
    ],
)
def test_another_kind_of_adapter(base, spoiled, tokenizer, tmp_path, changes, words):
    edit_config(spoiled, **changes)
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


def edit_weights(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_tensor_that_nobody_knows(base, spoiled, tokenizer, tmp_path):
    edit_weights(spoiled, lambda t: t.update({"base_model.extra": torch.zeros(1)}))
    refused(base, spoiled, tokenizer, tmp_path, ValueError, "holds base_model.extra")


def test_an_adapter_of_another_base(base, spoiled, tokenizer, tmp_path):
    def wider(tensors):
        name = next(n for n in tensors if "q_proj.lora_A" in n)
        tensors[name] = torch.zeros(8, 256)

    edit_weights(spoiled, wider)
    words = r"\(128, 256\), and .* has \(128, 128\): it was trained on another base"
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


def test_an_adapter_that_is_nan(base, spoiled, tokenizer, tmp_path):
    def poison(tensors):
        next(t for n, t in tensors.items() if "up_proj.lora_B" in n)[0, 0] = torch.nan

    edit_weights(spoiled, poison)
    words = "up_proj.weight is not finite once merged"
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


def test_a_failed_merge_keeps_the_earlier_one(base, spoiled, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("earlier", encoding="utf-8")
    edit_config(spoiled, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        merging.merge(base, spoiled, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == "earlier"


def test_rank_stabilised_lora_has_its_own_scale(spoiled):
    assert merging.read_adapter(spoiled).scale == 16 / 8
    edit_config(spoiled, use_rslora=True)
    assert merging.read_adapter(spoiled).scale == pytest.approx(16 / 8**0.5)


def test_the_command(base, adapter, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert command.main([str(base), str(adapter), out]) == 0
    assert "prove it before you publish it" in capsys.readouterr().out
    assert command.main([str(tmp_path / "none"), str(adapter), out]) == 1
    assert "holds neither model.safetensors" in capsys.readouterr().err


# --- the rehearsal: memory and exactness, measured ------------------------------------


@pytest.fixture(scope="module")
def random_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "adapter"
    rehearsal.write_random_adapter(lab.BASE_MODEL, folder, rank=4, alpha=8)
    return folder


def test_a_random_adapter_is_one_that_peft_loads(random_adapter):
    model = AutoModelForCausalLM.from_pretrained(lab.BASE_MODEL)
    loaded = PeftModel.from_pretrained(model, random_adapter)
    weights = load_file(random_adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_B"
    found = dict(loaded.named_parameters())[f"{name}.default.weight"]
    assert torch.equal(found, weights[f"{name}.weight"]) and found.abs().sum() > 0
    assert len(weights) == 4 * 7 * 2 + 2


@pytest.mark.parametrize(("nf4", "right"), [(True, True), (False, False)])
def test_the_check_tells_a_right_merge_from_a_wrong_one(
    random_adapter, tmp_path, nf4, right
):
    tokenizer = AutoTokenizer.from_pretrained(random_adapter)
    out = tmp_path / "out"
    merging.merge(lab.BASE_MODEL, random_adapter, out, tokenizer, nf4)
    errors = rehearsal.largest_errors(lab.BASE_MODEL, random_adapter, out, [1, 3])
    assert len(errors) == 2 * 9 + 3
    assert (max(errors.values()) <= 0.5) is right
    assert errors["model.norm.weight"] == 0


def test_a_processs_memory_is_measured():
    take = "import sys; kept = b'x' * (int(sys.argv[1]) * 2**20)"
    small, large = (
        rehearsal.measured([sys.executable, "-c", take, mib]) for mib in ("1", "257")
    )
    assert large["peak_gib"] - small["peak_gib"] == pytest.approx(0.25, abs=0.01)
    assert 0 < small["cpu_minutes"] < small["minutes"] + 0.01
    with pytest.raises(RuntimeError, match=r"failed: [\s\S]*ValueError: no"):
        rehearsal.measured([sys.executable, "-c", "raise ValueError('no')"])


def test_8b_was_merged_within_16_gib():
    merge = recorded.load("merge_at_8b")["merges"]["llama3-8b"]
    assert merge["parameters"] == 8_030_261_248
    assert merge["streamed"]["peak_gib"] < 16 and merge["weights_gib"] > 14.9
    assert merge["tensors_compared"] >= 30 and merge["largest_error_in_steps"] <= 0.5
