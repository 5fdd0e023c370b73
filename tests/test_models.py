from dataclasses import replace

import httpx
import pytest
import torch
from datasets import Dataset
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_model, tiny_tokenizer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from course_utils import models, profiles


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer), hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def profile(name, base_model):
    known = profiles.all_profiles()[name]
    return replace(known, base_model=str(base_model), ungated_copy=None)


# ---- attention ----


@pytest.mark.parametrize(
    ("capability", "flash", "name", "reason"),
    [
        (None, True, "sdpa", "no CUDA GPU"),
        ((7, 5), True, "sdpa", "this GPU has 7.5"),
        ((8, 9), False, "sdpa", "not installed"),
        ((8, 0), True, "flash_attention_2", "installed"),
        ((9, 0), True, "flash_attention_2", "installed"),
    ],
)
def test_attention_is_chosen_with_a_reason(capability, flash, name, reason):
    chosen, why = models.attention_implementation(capability, flash)
    assert chosen == name and reason in why


def test_the_probe_names_an_implementation():
    name, reason = models.probe_attention()
    assert name in ("sdpa", "flash_attention_2") and reason


# ---- loading ----


@pytest.mark.parametrize(
    ("name", "dtype"), [("cpu", torch.float32), ("t4", torch.float16)]
)
def test_a_plain_base_loads_in_the_profile_s_dtype(checkpoint, name, dtype):
    model, tokenizer = models.load_base(profile(name, checkpoint))
    assert model.dtype == dtype == models.compute_dtype(profile(name, checkpoint))
    assert tokenizer.chat_template is None


def test_nf4_loads_on_this_machine_and_computes(checkpoint):
    exact, tokenizer = models.load_base(profile("cpu", checkpoint))
    model, _ = models.load_base(profile("l4", checkpoint))
    ids = torch.tensor([tokenizer("The capital of France is Paris.")["input_ids"]])
    logits = model(ids.to(model.device)).logits.float().cpu()
    assert type(model.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    assert model.lm_head.weight.dtype == torch.bfloat16
    expected = exact(ids.to(exact.device)).logits.cpu()
    assert not torch.equal(logits, expected)  # 4 bits are not enough to be exact
    assert (logits - expected).norm() < 0.3 * expected.norm()


def test_nf4_config_is_qlora_s():
    config = models.nf4_config(torch.bfloat16)
    assert config.load_in_4bit and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_missing_folder_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*COURSE_BASE_MODEL"):
        models.load_base(profile("cpu", tmp_path / "gone"))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        models.load_base(profile("cpu", tmp_path))


# ---- the hub ----


@pytest.fixture
def hub(monkeypatch):
    """A hub on which only the ids in the returned set can be read."""
    readable, asked = set(), []

    def from_pretrained(source):
        asked.append(source)
        if source in readable:
            return None
        request = httpx.Request("GET", f"https://hub.invalid/{source}")
        if source.startswith("meta-llama/"):
            cause = GatedRepoError("403", response=httpx.Response(403, request=request))
            raise OSError("You are trying to access a gated repo.") from cause
        raise OSError("We couldn't connect.\nMore.") from LocalEntryNotFoundError("x")

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", from_pretrained)
    return readable, asked


L4 = profiles.all_profiles()["l4"]


def test_the_gated_original_is_taken_where_access_was_granted(hub):
    hub[0].add(L4.base_model)
    assert models.reachable_source(L4) == (L4.base_model, "")
    assert hub[1] == [L4.base_model]


def test_a_gated_original_falls_back_to_the_copy_and_says_so(hub):
    hub[0].add(L4.ungated_copy)
    source, note = models.reachable_source(L4)
    assert source == L4.ungated_copy
    assert "gated" in note and L4.base_model in note and L4.ungated_copy in note


def test_neither_reachable_says_why_and_what_to_do(hub):
    with pytest.raises(
        OSError, match=r"gated.*couldn't connect.*hf auth login"
    ) as error:
        models.reachable_source(L4)
    assert isinstance(error.value.__cause__.__cause__, GatedRepoError)
    assert "COURSE_BASE_MODEL" in str(error.value) and "More" not in str(error.value)


# ---- what is trained ----

TOKENS = [4, 5, 7]


def qlora_trainer(checkpoint, folder, learning_rate=8e-5):
    """TRL's trainer in bf16 on an NF4 base, with trained token rows in both tables."""
    model, tokenizer = models.load_base(profile("l4", checkpoint))
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    row = {"prompt": "What is 47 + 38?", "chosen": " 85", "rejected": " 75"}
    return ORPOTrainer(
        model=model,
        args=ORPOConfig(
            output_dir=str(folder),
            max_steps=2,
            learning_rate=learning_rate,
            per_device_train_batch_size=2,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([row] * 4),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=4,
            target_modules=models.LINEAR_LAYERS,
            trainable_token_indices={"embed_tokens": TOKENS, "lm_head": TOKENS},
        ),
    )


def trained(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def test_trained_token_rows_are_brought_back_to_float32(checkpoint, tmp_path):
    model = qlora_trainer(checkpoint, tmp_path).model
    rows = {n for n, p in trained(model).items() if p.dtype == torch.bfloat16}
    # Should TRL mend this one day, the function and its mention in 03 can go.
    assert rows == {n for n in trained(model) if "trainable_tokens" in n} != set()
    values = {n: p.detach().clone() for n, p in trained(model).items()}
    assert set(models.keep_trained_in_fp32(model)) == rows
    for name, parameter in trained(model).items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, values[name].float())
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert any(p.dtype == torch.bfloat16 for p in frozen)
    assert models.keep_trained_in_fp32(model) == []


def test_small_steps_reach_rows_in_float32_only(checkpoint, tmp_path):
    shares = {}
    for mend in (False, True):
        trainer = qlora_trainer(checkpoint, tmp_path, learning_rate=1e-6)
        # As large as a head row that pretraining pushed down.
        rows = next(p for n, p in trained(trainer.model).items() if "lm_head" in n)
        rows.data.fill_(0.18)
        if mend:
            models.keep_trained_in_fp32(trainer.model)
        start = rows.detach().clone()
        trainer.train()
        shares[mend] = (rows != start).float().mean().item()
    assert shares[False] == 0 and shares[True] > 0.9


@pytest.mark.parametrize(
    ("indices", "matrices"),
    [
        (TOKENS, {"embed_tokens"}),
        ({"embed_tokens": TOKENS, "lm_head": TOKENS}, {"embed_tokens", "lm_head"}),
    ],
    ids=["list", "dict"],
)
def test_a_list_of_tokens_leaves_an_untied_head_untrained(indices, matrices):
    lora = LoraConfig(
        target_modules=models.LINEAR_LAYERS, trainable_token_indices=indices
    )
    names = [n for n in trained(get_peft_model(tiny_model(100), lora)) if "tokens" in n]
    found = {
        m for m in ("embed_tokens", "lm_head") if any(f".{m}." in n for n in names)
    }
    assert found == matrices


# ---- counting ----


def test_counts_of_the_real_shape():
    """Llama 3 8B has 8,030,261,248 weights; rank 16 on all projections 41,943,040."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        assert models.parameter_counts(model) == (8_030_261_248, 8_030_261_248, 0)
        lora = LoraConfig(r=16, target_modules=models.LINEAR_LAYERS)
        adapted = get_peft_model(model, lora)
    assert models.parameter_counts(adapted).trainable == 41_943_040


def test_a_4_bit_weight_counts_as_one(checkpoint):
    plain, _ = models.load_base(profile("cpu", checkpoint))
    packed, _ = models.load_base(profile("l4", checkpoint))
    counts = models.parameter_counts(packed)
    assert (
        counts.total == models.parameter_counts(plain).total == plain.num_parameters()
    )
    layers = sum(p.numel() for n, p in plain.named_parameters() if "_proj" in n)
    assert counts.in_4bit == layers


def test_tied_weights_count_once():
    tied = tiny_model(100, tie_word_embeddings=True)
    untied = tiny_model(100)
    difference = (
        models.parameter_counts(untied).total - models.parameter_counts(tied).total
    )
    assert difference == 100 * 16
