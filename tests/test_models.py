import ast
import json
import shutil
from dataclasses import replace

import compare_gguf
import httpx
import measure_merge
import pytest
import torch
import tuned_llama
from datasets import Dataset
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_llama import tiny_model, tiny_tokenizer
from trl_orpo import trl_orpo

from course_utils import lab, models
from course_utils.evaluation.benchmarks import __main__ as benchmarks_command
from course_utils.models import loading
from course_utils.publishing import export
from course_utils.publishing.gate import release
from course_utils.setup import places, profiles


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


@pytest.mark.parametrize(
    ("cuda", "capability", "flash", "name", "reason"),
    [
        (False, None, True, "sdpa", "no CUDA GPU"),
        (True, (7, 5), True, "sdpa", "this GPU has 7.5"),
        (True, (8, 9), False, "sdpa", "not installed"),
        (True, (8, 9), True, "flash_attention_2", "can run it"),
    ],
)
def test_the_probe_asks_this_machine(
    cuda, capability, flash, name, reason, monkeypatch
):
    def asked():
        assert cuda, "a machine without CUDA has no capability to ask for"
        return capability

    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(loading.torch.cuda, "get_device_capability", asked)
    monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda: flash)
    chosen, why = models.probe_attention()
    assert chosen == name and reason in why


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), torch.float16), ((8, 9), torch.bfloat16)]
)
def test_nf4_computes_in_what_the_card_has(capability, dtype):
    """torch.cuda.is_bf16_supported() says yes on a T4, where bf16 is emulated."""
    card = profiles.Hardware(True, "a card", capability, 24, 8, 50)
    chosen = profiles.choose({"COURSE_PROFILE": "l4"}, card, lambda: False).profile
    assert models.compute_dtype(chosen) == dtype
    config = models.nf4_config(models.compute_dtype(chosen))
    assert config.bnb_4bit_compute_dtype == dtype


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
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        models.load_base(profile("cpu", tmp_path))


# ---- code in a checkpoint ----


def own_config(folder, name, **changes):
    path = folder / name
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
        encoding="utf-8",
    )


def in_config(folder):
    own_config(folder, "config.json", auto_map={"AutoConfig": "evil.Evil"})


def of_an_unknown_kind(folder):
    auto_map = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    own_config(folder, "config.json", model_type="evil", auto_map=auto_map)


def in_the_tokenizer(folder):
    own_config(
        folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}
    )


def in_a_processor(folder):
    text = json.dumps({"auto_map": {"AutoProcessor": "evil.Evil"}})
    (folder / "processor_config.json").write_text(text, encoding="utf-8")


LOADS = {
    "load_base": lambda folder: models.load_base(profile("cpu", folder)),
    "resolve_model": lambda folder: models.resolve_model(profile("cpu", folder)),
    "load_config": models.load_config,
    "load_tokenizer": models.load_tokenizer,
    "load_model": models.load_model,
    "lab": lab.load_base,
    "benchmarks": lambda folder: benchmarks_command.load(str(folder), "float32"),
    "GGUF": lambda folder: export.to_gguf(folder, folder.parent / "x.gguf"),
    "compare": lambda folder: compare_gguf.answers_of_transformers(folder, []),
    "random adapter": lambda folder: measure_merge.write_random_adapter(
        folder, folder.parent / "adapter"
    ),
    "gate": lambda folder: release.behave_from_folder(folder, "", [], [], 1),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize(
    "spoil", [in_config, of_an_unknown_kind, in_the_tokenizer, in_a_processor]
)
@pytest.mark.promise(
    "a checkpoint that brings code of its own",
    "it is refused by its folder's name; nothing runs and nobody is asked",
)
def test_no_load_runs_a_checkpoints_code(
    checkpoint, tmp_path, monkeypatch, load, spoil
):
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    (folder / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8"
    )
    spoil(folder)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    with pytest.raises(ValueError, match="base asks to run Python of its own"):
        load(folder)
    assert asked == [] and not (tmp_path / "ran").exists()


def test_a_broken_configuration_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer_config.json is not valid JSON"):
        models.load_tokenizer(folder)


def calls_of_from_pretrained():
    """(file, class, keywords) of every call in the package, also in code as text."""
    for path in sorted(places.PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        code = [t for t in texts if isinstance(t, str) and "from_pretrained(" in t]
        for part in (tree, *map(ast.parse, code)):
            for node in ast.walk(part):
                name = getattr(node, "func", None)
                if isinstance(name, ast.Attribute) and name.attr == "from_pretrained":
                    words = {
                        k.arg: getattr(k.value, "value", "") for k in node.keywords
                    }
                    yield path.name, ast.unparse(name.value), words


def test_every_automatic_class_of_the_package_is_given_no_trust():
    found = [call for call in calls_of_from_pretrained() if call[1].startswith("Auto")]
    found = [call for call in found if call[0] != "recipes.py"]  # learners edit these
    assert {"app.py", "loading.py"} <= {file for file, _, _ in found}
    for file, name, words in found:
        assert words.get("trust_remote_code") is False, (file, name)
        if name.startswith("AutoModel"):
            assert words.get("use_safetensors") is True, (file, name)


@pytest.mark.parametrize(
    "load", [models.load_model, lambda f: models.load_base(profile("cpu", f))]
)
def test_pickles_are_never_opened(checkpoint, tmp_path, load):
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="can run code"):
        load(folder)


def test_an_adapter_needs_its_settings_and_safetensors(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no adapter_config.json"):
        models.require_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="bin is a pickle, which can run code"):
        models.require_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    models.require_adapter(tmp_path)


# ---- the hub ----


@pytest.fixture
def hub(monkeypatch):
    """A hub on which only the ids in the returned set can be read."""
    readable, asked = set(), []

    def from_pretrained(source, trust_remote_code):
        assert trust_remote_code is False
        asked.append(source)
        if source in readable:
            return None
        request = httpx.Request("GET", f"https://hub.invalid/{source}")
        if source.startswith("meta-llama/"):
            cause = GatedRepoError("403", response=httpx.Response(403, request=request))
            raise OSError("You are trying to access a gated repo.") from cause
        raise OSError("We couldn't connect.\nMore.") from LocalEntryNotFoundError("x")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", from_pretrained)
    return readable, asked


L4 = profiles.all_profiles()["l4"]


def test_the_gated_original_is_taken_where_access_was_granted(hub):
    hub[0].add(L4.base_model)
    assert models.resolve_model(L4) == (L4.base_model, "")
    assert hub[1] == [L4.base_model]


def test_a_gated_original_falls_back_to_the_copy_and_says_so(hub):
    hub[0].add(L4.ungated_copy)
    source, note = models.resolve_model(L4)
    assert source == L4.ungated_copy
    assert "gated" in note and L4.base_model in note and L4.ungated_copy in note


def test_neither_reachable_says_why_and_what_to_do(hub):
    with pytest.raises(
        OSError, match=r"gated.*couldn't connect.*hf auth login"
    ) as error:
        models.resolve_model(L4)
    assert isinstance(error.value.__cause__.__cause__, GatedRepoError)
    assert "COURSE_BASE_MODEL" in str(error.value) and "More" not in str(error.value)


# ---- what is trained ----

TOKENS = [4, 5, 7]


def qlora_trainer(checkpoint, folder, learning_rate=8e-5):
    """TRL's trainer in bf16 on an NF4 base, with trained token rows in both tables."""
    model, tokenizer = models.load_base(profile("l4", checkpoint))
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    row = {"prompt": "What is 47 + 38?", "chosen": " 85", "rejected": " 75"}
    return trl_orpo().ORPOTrainer(
        model=model,
        args=trl_orpo().ORPOConfig(
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
    # Should TRL fix this one day, the function and its mention in 03 can go.
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
    for fix in (False, True):
        trainer = qlora_trainer(checkpoint, tmp_path, learning_rate=1e-6)
        # As large as a head row that pretraining pushed down.
        rows = next(p for n, p in trained(trainer.model).items() if "lm_head" in n)
        rows.data.fill_(0.18)
        if fix:
            models.keep_trained_in_fp32(trainer.model)
        start = rows.detach().clone()
        trainer.train()
        shares[fix] = (rows != start).float().mean().item()
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


# ---- chat tokens that are really trained ----

ROWS = {
    "LoRA alone": lambda ids: None,
    "list": lambda ids: ids,
    "both matrices": lambda ids: {"embed_tokens": ids, "lm_head": ids},
}


def answers_learned(rows, tokenizer, steps=60):
    """A tiny Llama with untrained, equal rows for its control tokens, after LoRA.

    Returns: (model, prompts with their answers up to the end token, ids of all rows
    that were equal in the base).
    """
    model = tuned_llama.base_model(tokenizer)
    twins = tokenizer.convert_tokens_to_ids(
        [f"<|reserved_special_token_{i}|>" for i in range(3)]
        + ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    )
    with torch.no_grad():  # what pretraining leaves of tokens that never came
        for matrix in (model.model.embed_tokens.weight, model.lm_head.weight):
            matrix[twins] = matrix[twins[0]].clone()
    control = twins[3:]
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=models.LINEAR_LAYERS,
        task_type="CAUSAL_LM",
        trainable_token_indices=ROWS[rows](control),
    )
    torch.manual_seed(0)
    model = get_peft_model(model, lora)
    prompts = []
    for prompt, answer in zip(tuned_llama.PROMPTS, tuned_llama.ANSWERS, strict=True):
        said = [*prompt, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(said, return_dict=True)["input_ids"]
        assert ids[-1] == tokenizer.eos_token_id
        prompts.append(torch.tensor([ids]))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    for _ in range(steps):
        loss = sum(model(input_ids=ids, labels=ids).loss for ids in prompts)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), prompts, twins


@torch.no_grad()
def after_the_answers(model, prompts):
    """(3, V): probabilities of the token that follows each answer."""
    logits = [model(input_ids=ids[:, :-1]).logits[0, -1] for ids in prompts]
    return torch.stack(logits).softmax(-1)


def test_trained_in_both_matrices_the_end_token_is_the_likeliest(tmp_path):
    tokenizer = tuned_llama.chat_tokenizer()
    model, prompts, _ = answers_learned("both matrices", tokenizer)
    p = after_the_answers(model, prompts)
    assert (p.argmax(-1) == tokenizer.eos_token_id).all()
    assert p[:, tokenizer.eos_token_id].min() > 0.5

    # Nothing was resized, and the rows travel with the adapter.
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    model.save_pretrained(tmp_path)
    fresh = answers_learned("both matrices", tokenizer, steps=0)[0].unload()
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(after_the_answers(loaded, prompts), p)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    rows = {n: t.shape for n, t in saved.items() if "token_adapter" in n}
    assert len(rows) == 2 and {shape[0] for shape in rows.values()} == {3}
    assert not any(t.shape[0] == len(tokenizer) for t in saved.values())


@pytest.mark.parametrize("rows", ["LoRA alone", "list"])
def test_without_a_row_of_its_own_in_the_head_the_end_token_cannot_win(rows):
    tokenizer = tuned_llama.chat_tokenizer()
    model, prompts, twins = answers_learned(rows, tokenizer)
    p = after_the_answers(model, prompts)
    # The model has learned when to end, and says so with all twins at once.
    before = after_the_answers(answers_learned(rows, tokenizer, steps=0)[0], prompts)
    assert (p[:, twins].sum(-1) > 5 * before[:, twins].sum(-1)).all()
    torch.testing.assert_close(p[:, twins], p[:, twins[:1]].expand(-1, len(twins)))
    assert p[:, tokenizer.eos_token_id].max() <= 1 / len(twins) + 1e-6


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
