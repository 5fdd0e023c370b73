"""The proof passes for a faithful merge and names each way in which one goes wrong."""

import json
import shutil
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from course_utils import chat, models
from course_utils.proof import compare as proof

QUESTIONS = ["What is 47 + 38?", "Name three rivers.", "What is the capital of France?"]
ANSWERS = ["It is 85.", "Three rivers are the Rhine, the Danube.", "Paris."]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    return tokenizer


def base(tokenizer):
    return tiny_model(len(tokenizer), hidden_size=128, seed=3)


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A tiny base whose adapter has learned three answers and when to stop."""
    control = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>"])
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=models.LINEAR_LAYERS,
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": control, "lm_head": control},
    )
    torch.manual_seed(0)
    model = get_peft_model(base(tokenizer), lora)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    texts = [
        [*prompt, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]
    rows = proof._encode(tokenizer, PROMPTS)
    whole = [
        tokenizer(
            tokenizer.apply_chat_template(text, tokenize=False),
            add_special_tokens=False,
        )["input_ids"]
        for text in texts
    ]
    for _ in range(100):
        loss = 0
        for prompt, ids in zip(rows, whole, strict=True):
            labels = [-100] * len(prompt) + ids[len(prompt) :]
            ids, labels = torch.tensor([ids]), torch.tensor([labels])
            loss = loss + model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@pytest.fixture(scope="module")
def adapter(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    trained.save_pretrained(folder)
    return folder


def merge(tokenizer, adapter):
    merged = PeftModel.from_pretrained(base(tokenizer), adapter).merge_and_unload()
    merged.generation_config.eos_token_id = tokenizer.eos_token_id
    return merged


@pytest.fixture
def merged(tokenizer, adapter):
    return merge(tokenizer, adapter)


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def same_process(monkeypatch):
    """Read the folder here: a new process takes seconds, and one test is enough."""
    monkeypatch.setattr(proof, "_answers_of_new_process", proof.answer_from_folder)


def prove(trained, merged, tokenizer, **more):
    return proof.prove_equal(
        trained, merged, tokenizer, PROMPTS, max_new_tokens=24, **more
    )


# ---- a faithful merge ----


def test_a_faithful_merge_passes_and_a_new_process_agrees(
    trained, merged, tokenizer, tmp_path
):
    found = prove(trained, merged, tokenizer, folder=save(merged, tokenizer, tmp_path))
    assert found.passed and found.failures == ()
    assert found.n == 3 and found.answer_tokens > 8
    assert found.kl < 1e-9 and found.max_logit_difference < 1e-3
    assert found.greedy_agreement == found.reloaded_agreement == 1
    assert found.ended == found.ended_trained == 1
    assert found.vocabulary_unchanged and found.finite and found.no_quantization_config
    assert str(found).endswith("PASSED")
    json.dumps(proof.asdict(found))  # a card can hold it


def test_without_a_folder_the_reload_is_not_claimed(trained, merged, tokenizer):
    assert prove(trained, merged, tokenizer).reloaded_agreement is None


def test_kl_and_logits_are_those_of_the_definition(trained, tokenizer):
    other = base(tokenizer).eval()
    questions = proof._encode(tokenizer, PROMPTS[:1])
    answer = tokenizer("Paris is it.", add_special_tokens=False)["input_ids"]
    kl, largest, count = proof._distance(trained, other, questions, [answer])
    ids = torch.tensor([questions[0] + answer])
    at = slice(len(questions[0]) - 1, -1)
    with torch.no_grad():
        p, q = trained(ids).logits[0, at], other(ids).logits[0, at]
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert count == len(answer) == len(p)
    assert kl == pytest.approx(expected.item(), rel=1e-4)
    assert largest == pytest.approx((p - q).abs().max().item(), rel=1e-4)


# ---- every fault is named ----


def test_an_adapter_saved_without_its_token_rows(trained, adapter, tokenizer, tmp_path):
    broken = shutil.copytree(adapter, tmp_path / "adapter")
    file = broken / "adapter_model.safetensors"
    tensors = load_file(file)
    kept = {k: v for k, v in tensors.items() if "token_adapter" not in k}
    assert len(kept) == len(tensors) - 2
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(KeyError, match="trainable_tokens_delta"):  # PEFT itself sees it
        merge(tokenizer, broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    config["trainable_token_indices"] = None  # and then it cannot
    (broken / "adapter_config.json").write_text(json.dumps(config))
    found = prove(trained, merge(tokenizer, broken), tokenizer)
    assert found.failures[0].startswith("KL is ")
    assert "greedy answers agree" in found.failures[1]


def test_an_nf4_trained_adapter_belongs_on_the_dequantised_base(
    adapter, tokenizer, tmp_path
):
    base(tokenizer).save_pretrained(tmp_path)

    def nf4():
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=models.nf4_config(torch.float32)
        )

    evaluated = PeftModel.from_pretrained(nf4(), adapter).eval()
    found = {
        name: prove(
            evaluated,
            PeftModel.from_pretrained(start, adapter).merge_and_unload(),
            tokenizer,
        )
        for name, start in {
            "dequantised": nf4().dequantize(),
            "full precision": base(tokenizer),
            "nf4": nf4(),
        }.items()
    }
    kl = {name: one.kl for name, one in found.items()}
    assert 10 * kl["dequantised"] < kl["full precision"] < kl["nf4"]
    assert "a quantization config is left" in found["nf4"].failures
    assert found["dequantised"].no_quantization_config


def test_the_base_without_its_adapter(trained, tokenizer):
    found = prove(trained, base(tokenizer), tokenizer)
    words = " ".join(found.failures)
    assert "greedy answers agree" in words and "0% of the answers end" in words


def test_an_end_token_missing_from_the_generation_config(
    trained, merged, tokenizer, tmp_path, same_process
):
    merged.generation_config.eos_token_id = 1  # the base's <|end_of_text|>
    found = prove(trained, merged, tokenizer, folder=save(merged, tokenizer, tmp_path))
    assert found.greedy_agreement == 1  # in memory all is well
    assert len(found.failures) == 1
    assert "in its generation config" in found.failures[0]


def test_a_chat_template_that_was_not_saved(
    trained, merged, tokenizer, tmp_path, same_process
):
    folder = save(merged, tokenizer, tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    found = prove(trained, merged, tokenizer, folder=folder)
    assert "new process" in found.failures[0]


def test_a_weight_that_is_not_finite(trained, merged, tokenizer):
    # The row of a token that is in no prompt and no answer: nothing else shows it.
    unused = tokenizer.convert_tokens_to_ids("<|reserved_special_token_1|>")
    with torch.no_grad():
        merged.model.embed_tokens.weight[unused] = float("inf")
    assert prove(trained, merged, tokenizer).failures == (
        "a weight is NaN or infinite",
    )


def test_nan_logits_do_not_pass_as_small(trained, merged, tokenizer):
    with torch.no_grad():
        merged.lm_head.weight[5] = float("nan")
    assert "KL is nan" in prove(trained, merged, tokenizer).failures[0]


def test_a_vocabulary_that_grew(trained, merged, tokenizer):
    merged.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    found = proof._failures(
        proof.asdict(prove(trained, merge_like(merged, trained), tokenizer)), 1, 0
    )
    assert "the vocabulary has another size" in found


def merge_like(grown, trained):
    """A grown model whose logits are cut to the old size, so that they compare."""
    size = trained.config.vocab_size
    forward = grown.forward

    def cut(*arguments, **keywords):
        out = forward(*arguments, **keywords)
        out.logits = out.logits[..., :size]
        return out

    grown.forward = cut
    return grown


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_a_quantization_config_that_was_left(
    trained, merged, tokenizer, tmp_path, same_process, where
):
    folder = save(merged, tokenizer, tmp_path)
    if where == "memory":
        merged.config.quantization_config = {"load_in_4bit": True}
        folder = None
    else:
        config = json.loads((folder / "config.json").read_text())
        assert proof._is_quantized(merged, folder) is False
        config["quantization_config"] = {"load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config))
        assert proof._is_quantized(merged, folder) is True
        return
    assert "a quantization config is left" in prove(trained, merged, tokenizer).failures


def test_a_trained_model_that_never_ends(tokenizer):
    endless = base(tokenizer)
    found = prove(endless, deepcopy(endless), tokenizer)
    assert found.failures == ("no answer ends, not even the trained model's",)


def test_limits_can_be_set(trained, tokenizer):
    loose = prove(trained, base(tokenizer), tokenizer, max_kl=1e9, min_agreement=0)
    assert loose.passed


def test_no_prompts_prove_nothing(trained, tokenizer):
    with pytest.raises(ValueError, match="needs prompts"):
        proof.prove_equal(trained, trained, tokenizer, [])


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="new process cannot use the folder"):
        proof._answers_of_new_process(tmp_path, PROMPTS, 4)
