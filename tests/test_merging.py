"""The streamed merge is PEFT's own, and what it does not know it refuses."""

import json
import shutil
import sys

import measure_merge
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuned_llama import base_model, chat_tokenizer, trained_model

from course_utils import chat, lab, models, recorded
from course_utils.models import nf4_config, shards
from course_utils.publishing import merging
from course_utils.publishing.merging import __main__ as command
from course_utils.publishing.merging.adapter import Adapter


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
        name, load_base(base)[name].bfloat16(), Adapter({}, {}, {}, {}), True
    ).double() + read.scales[name] * (high.double() @ low.double())
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


def edit_json(path, **changes):
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
        encoding="utf-8",
    )


def edit_config(folder, **changes):
    edit_json(folder / "adapter_config.json", **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_dora": True}, "uses use_dora = True: this merge would be wrong"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "uses bias = 'all'"),
        ({"bias": "lora_only"}, "uses bias = 'lora_only'"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"use_qalora": True}, "uses use_qalora"),
        ({"target_parameters": ["experts.up"]}, "uses target_parameters"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "uses layer_replication"),
        ({"alora_invocation_tokens": [1]}, "uses alora_invocation_tokens"),
        ({"a_setting_of_next_year": 2}, "uses a_setting_of_next_year = 2"),
        ({"peft_type": "IA3"}, "uses peft_type = 'IA3'"),
        ({"init_lora_weights": "pissa"}, "'pissa', which changes the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes"),
        ({"init_lora_weights": "OLoRA"}, "'olora', which changes the base"),
        ({"init_lora_weights": "loftq"}, "'loftq', which changes the base"),
        ({"init_lora_weights": "corda"}, "'corda', which changes the base"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga', which changes the base"),
        ({"init_lora_weights": "mica"}, "'mica', which changes the base"),
        ({"r": 0}, "says r = 0"),
        ({"lora_alpha": None}, "lora_alpha = None"),
    ],
)
@pytest.mark.promise(
    "an adapter that is more than LoRA, or whose start changed the base",
    "the merge is refused, naming the setting",
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
    words = "up_proj.lora_B.weight in .* is not finite"
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


def test_a_failed_merge_keeps_the_earlier_one(base, spoiled, tokenizer, tmp_path):
    merging.merge(base, spoiled, tmp_path / "out", tokenizer)
    before = (tmp_path / "out" / "config.json").read_text(encoding="utf-8")
    edit_config(spoiled, use_dora=True)
    with pytest.raises(ValueError, match="use_dora"):
        merging.merge(base, spoiled, tmp_path / "out", tokenizer)
    assert (tmp_path / "out" / "config.json").read_text(encoding="utf-8") == before


def without(*words):
    def remove(tensors):
        for name in [n for n in tensors if all(word in n for word in words)]:
            del tensors[name]

    return remove


def thinner(tensors):
    for half, rows in (("A", slice(4)), ("B", (slice(None), slice(4)))):
        name = next(n for n in tensors if f"layers.0.mlp.up_proj.lora_{half}" in n)
        tensors[name] = tensors[name][rows].contiguous()


def stranger(tensors):
    name = next(n for n in tensors if "layers.0.mlp.up_proj.lora_A" in n)
    for half in "AB":
        old = name.replace("lora_A", f"lora_{half}")
        tensors[old.replace("layers.0", "layers.99")] = tensors[old].clone()


def infinite_row(tensors):
    next(t for n, t in tensors.items() if "token_adapter" in n)[0, 0] = torch.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("layers.1.mlp.up_proj.lora_A"), "up_proj has a lora_B and not its"),
        (without("q_proj.lora_B"), "q_proj has a lora_A and not its other half"),
        (without("layers.1.mlp.up_proj"), "holds no update for it .1 such"),
        (without("token_adapter"), "train token rows, and its file holds none"),
        (thinner, r"lora_A \(4, 128\) .* the adapter's settings say r = 8"),
        (stranger, "layers.99.mlp.up_proj.weight .* no such tensor"),
        (infinite_row, "token.* is not finite"),
        (without(""), "changes nothing|holds none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.promise(
    "an adapter's file that is not complete, not finite, or not what its settings say",
    "the merge is refused, naming the tensor, and nothing is written",
)
def test_a_file_that_is_not_what_its_settings_say(
    base, spoiled, tokenizer, tmp_path, change, words
):
    edit_weights(spoiled, change)
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


def test_another_rank_in_the_settings(base, spoiled, tokenizer, tmp_path):
    edit_config(spoiled, r=16)
    refused(base, spoiled, tokenizer, tmp_path, ValueError, "settings say r = 16")


@pytest.mark.promise("an adapter that is a pickle", "it is refused and never loaded")
def test_a_pickled_adapter(base, spoiled, tokenizer, tmp_path):
    weights = load_file(spoiled / "adapter_model.safetensors")
    torch.save(weights, spoiled / "adapter_model.bin")
    (spoiled / "adapter_model.safetensors").unlink()
    words = "no adapter_model.safetensors .adapter_model.bin is a pickle"
    refused(base, spoiled, tokenizer, tmp_path, FileNotFoundError, words)


def test_a_cut_adapter(base, spoiled, tokenizer, tmp_path):
    path = spoiled / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    words = "adapter_model.safetensors is no complete safetensors file"
    refused(base, spoiled, tokenizer, tmp_path, ValueError, words)


@pytest.fixture
def other_base(base, tmp_path):
    """The same shapes, and one value of one tensor is another."""
    folder = shutil.copytree(base, tmp_path / "base")
    file = sorted(folder.glob("*.safetensors"))[-1]
    tensors = load_file(file)
    next(iter(tensors.values())).flatten()[-1] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.promise(
    "an adapter of another base of the same shape", "the merge is refused"
)
def test_another_base_of_the_same_shape(
    base, other_base, spoiled, tokenizer, tmp_path, capsys
):
    models.record_base(spoiled, base)
    words = "trained on another base than .* shapes agree, and the weights do not"
    refused(other_base, spoiled, tokenizer, tmp_path, ValueError, words)
    merging.merge(base, spoiled, tmp_path / "out", tokenizer)
    assert capsys.readouterr().out == ""
    (spoiled / "base_fingerprint.json").unlink()
    merging.merge(other_base, spoiled, tmp_path / "out", tokenizer)
    assert capsys.readouterr().out.startswith("adapter holds no base_fingerprint.json")
    (spoiled / "base_fingerprint.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="base_fingerprint.json cannot be read"):
        merging.merge(base, spoiled, tmp_path / "out", tokenizer)


def test_the_base_that_peft_noted_counts_as_well(
    base, other_base, tokenizer, tmp_path, capsys
):
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    words = "trained on another base"
    refused(other_base, tmp_path / "adapter", tokenizer, tmp_path, ValueError, words)
    merging.merge(base, tmp_path / "adapter", tmp_path / "out", tokenizer)
    assert capsys.readouterr().out == ""


def test_a_fingerprint_is_of_the_weights_and_not_of_the_files(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base)
    whole = tmp_path / "one file"
    model.save_pretrained(whole)
    assert len(list(whole.glob("*.safetensors"))) == 1
    marks = {models.base_fingerprint(each) for each in (base, whole, model)}
    assert len(marks) == 1
    lora = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert models.base_fingerprint(lora) in marks


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
        {"init_lora_weights": False},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"target_modules": r".*layers\.1\..*_proj"},
        {"layers_to_transform": [0]},
    ],
    ids=str,
)
def test_what_is_merged_is_pefts_merge(base, tokenizer, tmp_path, settings):
    wanted = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(**wanted | settings))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    merging.merge(base, tmp_path / "adapter", out, tokenizer, False, torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(out).state_dict()
    theirs = model.merge_and_unload().state_dict()
    changed = [n for n, t in load_base(base).items() if not torch.equal(t, ours[n])]
    assert changed
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-5, rtol=1e-5)


# --- where it writes ------------------------------------------------------------------


def as_link(path, folder):
    link = folder / "link"
    link.symlink_to(path, target_is_directory=True)
    return link


@pytest.mark.parametrize(
    "place",
    [
        lambda work: work,
        lambda work: work / "base",
        lambda work: work / "adapter",
        lambda work: work / "base" / "merged",
        lambda work: work / "adapter" / ".." / "base",
        lambda work: as_link(work / "adapter", work.parent),
        lambda work: work / "notes",
        lambda work: work / "notes" / "thesis.txt",
    ],
    ids=["both in it", "base", "adapter", "in it", "dots", "link", "notes", "file"],
)
@pytest.mark.promise(
    "an output that is, contains or lies in an input, or that holds other files",
    "it is refused, and every file stays as it was",
)
def test_nobodys_files_are_replaced(base, adapter, tokenizer, tmp_path, place):
    work = tmp_path / "work"
    shutil.copytree(base, work / "base")
    shutil.copytree(adapter, work / "adapter")
    (work / "notes").mkdir()
    (work / "notes" / "thesis.txt").write_text("years", encoding="utf-8")
    before = {p: p.read_bytes() for p in work.rglob("*") if p.is_file()}
    out = place(work)
    with pytest.raises((FileExistsError, ValueError), match="Name another"):
        merging.merge(work / "base", work / "adapter", out, tokenizer)
    assert {p: p.read_bytes() for p in work.rglob("*") if p.is_file()} == before


def test_an_earlier_merge_is_replaced_and_others_are_not(
    base, adapter, tokenizer, tmp_path
):
    out = tmp_path / "out"
    for _ in range(2):
        merging.merge(base, adapter, out, tokenizer)
    merging.save(AutoModelForCausalLM.from_pretrained(base), tokenizer, out)
    (out / "thesis.txt").write_text("years", encoding="utf-8")
    with pytest.raises(FileExistsError, match="thesis.txt is not part of a merged"):
        merging.merge(base, adapter, out, tokenizer)
    assert (out / "thesis.txt").read_text(encoding="utf-8") == "years"


def test_a_base_that_is_quantised_or_runs_code(base, adapter, tokenizer, tmp_path):
    copy = shutil.copytree(base, tmp_path / "base")
    edit_json(copy / "config.json", auto_map={"AutoConfig": "evil.Config"})
    refused(copy, adapter, tokenizer, tmp_path, ValueError, "asks to run Python of its")
    edit_json(copy / "config.json", auto_map=None)
    file = sorted(copy.glob("*.safetensors"))[0]
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file)
    refused(copy, adapter, tokenizer, tmp_path, ValueError, "as I8. An adapter is")


def test_the_command(base, adapter, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert command.main([str(base), str(adapter), out]) == 0
    assert "prove it before you publish it" in capsys.readouterr().out
    assert command.main([str(tmp_path / "none"), str(adapter), out]) == 1
    assert "no folder of a base model at" in capsys.readouterr().err
    assert command.main([str(base), str(adapter), str(base)]) == 1
    assert "lie in each other" in capsys.readouterr().err


# --- the rehearsal: memory and exactness, measured ------------------------------------


@pytest.fixture(scope="module")
def random_adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random") / "adapter"
    measure_merge.write_random_adapter(lab.BASE_MODEL, folder, rank=4, alpha=8)
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
    errors = measure_merge.largest_errors(lab.BASE_MODEL, random_adapter, out, [1, 3])
    assert len(errors) == 2 * 9 + 3
    assert (max(errors.values()) <= 0.5) is right
    assert errors["model.norm.weight"] == 0


def test_a_processs_memory_is_measured():
    take = "import sys; kept = b'x' * (int(sys.argv[1]) * 2**20)"
    small, large = (
        measure_merge.measured([sys.executable, "-c", take, mib])
        for mib in ("1", "257")
    )
    assert large["peak_gib"] - small["peak_gib"] == pytest.approx(0.25, abs=0.01)
    assert 0 < small["cpu_minutes"] < small["minutes"] + 0.01
    with pytest.raises(RuntimeError, match=r"failed: [\s\S]*ValueError: no"):
        measure_merge.measured([sys.executable, "-c", "raise ValueError('no')"])


def test_8b_was_merged_within_16_gib():
    merge = recorded.load("merge_at_8b")["merges"]["llama3-8b"]
    assert merge["parameters"] == 8_030_261_248
    assert merge["streamed"]["peak_gib"] < 16 and merge["weights_gib"] > 14.9
    assert merge["tensors_compared"] >= 30 and merge["largest_error_in_steps"] <= 0.5
