"""The GGUF file holds the model and its tokenizer, and llama.cpp answers alike."""

import json
import shutil

import compare_gguf
import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils import chat, lab
from course_utils.models import random_weights
from course_utils.publishing import export, merging
from course_utils.publishing.export import __main__ as command
from course_utils.publishing.export import gguf_file

PROMPTS = [
    [{"role": "user", "content": text}]
    for text in ("What is 47 + 38?", "Name three rivers.", "Don't!  \n\n1234 é 🙂")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The lab's base in float32, with a chat format, as a merged model is saved."""
    model = AutoModelForCausalLM.from_pretrained(lab.BASE_MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(lab.BASE_MODEL)
    chat.use_llama3_chat(tokenizer)
    target = tmp_path_factory.mktemp("lab") / "model"
    merging.save(model, tokenizer, target)
    return target


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(tensor.data))
        if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
            values = values.view(torch.bfloat16)
        tensors[tensor.name] = values.float()
    return fields, tensors


def rotated_back(weight, heads):
    """llama.cpp's order of rows, by index: row 2 i of a head was row i, 2 i + 1 the
    one half a head further."""
    size = len(weight) // heads
    out = torch.empty_like(weight)
    for head in range(heads):
        for i in range(size // 2):
            for half in (0, 1):
                row = head * size + i + half * (size // 2)
                out[row] = weight[head * size + 2 * i + half]
    return out


# --- what the file holds ------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_tensor_comes_back(folder, tmp_path, dtype):
    path = tmp_path / "model.gguf"
    size = export.to_gguf(folder, path, dtype)
    assert size == path.stat().st_size
    _, tensors = read(path)
    state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert len(tensors) == len(state) == 39
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.3.attn_norm.weight": "model.layers.3.input_layernorm.weight",
        "blk.3.ffn_norm.weight": "model.layers.3.post_attention_layernorm.weight",
        "blk.3.attn_v.weight": "model.layers.3.self_attn.v_proj.weight",
        "blk.3.attn_output.weight": "model.layers.3.self_attn.o_proj.weight",
        "blk.3.ffn_gate.weight": "model.layers.3.mlp.gate_proj.weight",
        "blk.3.ffn_up.weight": "model.layers.3.mlp.up_proj.weight",
        "blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight",
    }
    for theirs, ours in names.items():
        kept = torch.float32 if state[ours].dim() == 1 else getattr(torch, dtype)
        assert torch.equal(tensors[theirs], state[ours].to(kept).float()), theirs
    for theirs, ours, heads in (("attn_q", "q_proj", 4), ("attn_k", "k_proj", 2)):
        want = state[f"model.layers.2.self_attn.{ours}.weight"]
        want = want.to(getattr(torch, dtype)).float()
        found = tensors[f"blk.2.{theirs}.weight"]
        assert not torch.equal(found, want)
        assert torch.equal(rotated_back(found, heads), want)


def test_the_settings_are_the_models(folder, tmp_path):
    export.to_gguf(folder, tmp_path / "model.gguf")
    fields, _ = read(tmp_path / "model.gguf")
    for key, value in {
        "general.architecture": "llama",
        "llama.block_count": 4,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 704,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 64,
        "llama.rope.freq_base": 10000.0,
        "llama.context_length": 512,
        "llama.vocab_size": 1024,
        "general.file_type": gguf.LlamaFileType.MOSTLY_F16.value,
    }.items():
        assert fields[key] == value, key
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)


def test_the_tokenizer_is_in_the_file(folder, tmp_path):
    export.to_gguf(folder, tmp_path / "model.gguf")
    fields, _ = read(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(1024))
    kinds = fields["tokenizer.ggml.token_type"]
    control = {i for i, kind in enumerate(kinds) if kind == gguf.TokenType.CONTROL}
    assert control == set(range(10))
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))[
        "model"
    ]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in merges]
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "smollm"  # digits apart, then GPT-2's way
    for name in ("bos", "eos"):
        id_ = getattr(tokenizer, f"{name}_token_id")
        assert fields[f"tokenizer.ggml.{name}_token_id"] == id_
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.ggml.add_bos_token"] is True


def test_the_template_prints_the_same_without_the_tag(folder, tmp_path):
    export.to_gguf(folder, tmp_path / "model.gguf")
    fields, _ = read(tmp_path / "model.gguf")
    template = fields["tokenizer.chat_template"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert "generation -%}" in tokenizer.chat_template
    assert "generation" not in template.replace("add_generation_prompt", "")
    assert "add_generation_prompt" in template
    talk = [*PROMPTS[0], {"role": "assistant", "content": "85."}, *PROMPTS[1]]
    for more in (True, False):
        want = tokenizer.apply_chat_template(
            talk, tokenize=False, add_generation_prompt=more
        )
        assert want == tokenizer.apply_chat_template(
            talk, chat_template=template, tokenize=False, add_generation_prompt=more
        )


# --- how text is split --------------------------------------------------------------


def tokenizer_json(tokenizer):
    return json.loads(tokenizer.backend_tokenizer.to_str())


@pytest.fixture(scope="module")
def llama3_tokenizer():
    return random_weights.make_tokenizer()


def test_llama_3_and_gpt_2_are_recognised(llama3_tokenizer):
    assert gguf_file.splitting(tokenizer_json(llama3_tokenizer)) == "llama-bpe"
    assert gguf_file.splitting(tokenizer_json(tiny_tokenizer(gpt2_split=True))) == (
        "gpt-2"
    )


def grouped_digits(data):
    data["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False


def leading_space(data):
    data["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def lower_case(data):
    data["normalizer"] = {"type": "Lowercase"}


def whole_words(data):
    data["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    "change", [grouped_digits, leading_space, lower_case, whole_words]
)
def test_nearly_the_same_splitting_is_refused(folder, change):
    data = tokenizer_json(AutoTokenizer.from_pretrained(folder))
    assert gguf_file.splitting(data) == "smollm"
    change(data)
    with pytest.raises(ValueError, match="splits text by .*no known name"):
        gguf_file.splitting(data)


def test_another_regex_is_refused():
    with pytest.raises(ValueError, match="splits text by Split and ByteLevel"):
        gguf_file.splitting(tokenizer_json(tiny_tokenizer()))


# --- what is refused, leaving nothing -----------------------------------------------


def refused(folder, tmp_path, words, error=ValueError, **settings):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=words):
        export.to_gguf(folder, tmp_path / "out.gguf", **settings)
    assert sorted(tmp_path.iterdir()) == before


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes),
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mistral"}, "Only Llama is written here, and this is mistral"),
        ({"attention_bias": True}, "has biases"),
        (
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "factor": 2.0,
                    "rope_theta": 1e4,
                }
            },
            "scales its RoPE .linear.",
        ),
        ({"vocab_size": 1000}, "embed_tokens.weight of shape .1024, 256., and its con"),
        ({"hidden_act": "gelu"}, "llama.cpp computes silu, and this uses gelu"),
        ({"num_hidden_layers": 5}, "lacks the tensor model.layers.4"),
        ({"num_hidden_layers": 3}, "holds model.layers.3.* no place"),
    ],
)
def test_what_llama_cpp_would_read_otherwise(copy, tmp_path, changes, words):
    edit_config(copy, **changes)
    refused(copy, tmp_path, words)


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


UP, NORM = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(NORM), "lacks the tensor model.norm.weight"),
        (lambda t: t.pop("lm_head.weight"), "lacks the tensor lm_head.weight"),
        (lambda t: t.update({UP: t[UP][:-1].clone()}), "up_proj.weight of shape"),
        (lambda t: t.update({UP: t[UP].T.contiguous()}), "up_proj.weight of shape"),
        (lambda t: t.update({"extra": t[NORM].clone()}), "holds extra of shape"),
        (lambda t: t[UP].__setitem__((0, 0), torch.nan), "up_proj.weight holds NaN"),
        (lambda t: t[NORM].__setitem__(0, -torch.inf), "norm.weight holds NaN or inf"),
        (lambda t: t.update({UP: t[UP].to(torch.uint8)}), "as U8, not in 16 or 32"),
    ],
)
@pytest.mark.promise(
    "a model with a tensor missing, extra, of another shape or not finite",
    "no GGUF file is written, and the tensor is named",
)
def test_weights_that_are_not_complete(copy, tmp_path, change, words):
    edit_weights(copy, change)
    refused(copy, tmp_path, words)


def test_an_index_that_names_absent_files(copy, tmp_path):
    index = {"weight_map": {UP: "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(
        json.dumps(index), encoding="utf-8"
    )
    for error in (ValueError, OSError):
        refused(copy, tmp_path, "lacks model-00002-of-00002.safetensors", error)
    (copy / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    refused(copy, tmp_path, "is no index of a checkpoint")
    outside = {"weight_map": {UP: "../../model.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(
        json.dumps(outside), encoding="utf-8"
    )
    refused(copy, tmp_path, "names files outside its own folder")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_file_that_is_missing_or_broken(copy, tmp_path, name):
    (copy / name).write_text('{"cut', encoding="utf-8")
    refused(copy, tmp_path, f"{name} is not valid JSON|tokenizer in .* is broken")
    (copy / name).unlink()
    refused(copy, tmp_path, f"holds no {name}")


def test_a_cut_file(copy, tmp_path):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(copy, tmp_path, "is no complete safetensors file")


@pytest.mark.parametrize("lost", ["pad_token", "bos_token"])
@pytest.mark.promise(
    "a tokenizer without padding or BOS", "the GGUF file is complete without it"
)
def test_a_token_that_the_tokenizer_lacks_is_left_out(copy, tmp_path, lost):
    tokenizer = AutoTokenizer.from_pretrained(copy)
    setattr(tokenizer, lost, None)
    tokenizer.save_pretrained(copy)
    export.to_gguf(copy, tmp_path / "out.gguf")
    fields, tensors = read(tmp_path / "out.gguf")
    key = {"pad_token": "padding", "bos_token": "bos"}[lost]
    assert f"tokenizer.ggml.{key}_token_id" not in fields
    assert fields["tokenizer.ggml.add_bos_token"] is (lost != "bos_token")
    assert len(tensors) == 39


def test_a_tokenizer_that_does_not_say_how_to_talk(copy, tmp_path):
    (copy / "chat_template.jinja").unlink()
    refused(copy, tmp_path, "has no chat template, and llama.cpp would take one")
    tokenizer = AutoTokenizer.from_pretrained(copy)
    chat.use_llama3_chat(tokenizer)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(copy)
    refused(copy, tmp_path, "has no end of turn")


@pytest.mark.promise("a folder with code of its own", "it is refused, and not run")
def test_a_folder_with_code_is_not_run(copy, tmp_path):
    edit_config(copy, auto_map={"AutoConfig": "evil.Config"}, model_type="evil")
    (copy / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8"
    )
    refused(copy, tmp_path, "model asks to run Python of its own: config.json has")


def test_a_file_of_somebody_else_is_not_replaced(folder, copy, tmp_path):
    path = tmp_path / "model.gguf"
    for _ in range(2):
        export.to_gguf(folder, path)
    path.write_text("a thesis", encoding="utf-8")
    with pytest.raises(FileExistsError, match="this command did not write it"):
        export.to_gguf(folder, path)
    assert path.read_text(encoding="utf-8") == "a thesis"
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export.to_gguf(folder, tmp_path / "folder.gguf")
    with pytest.raises(ValueError, match="lie in each other"):
        export.to_gguf(copy, copy / "model.gguf")


def test_a_value_that_float16_cannot_hold(copy, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(copy)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    model.save_pretrained(copy)
    refused(copy, tmp_path, "up_proj.weight has values too large for float16")
    export.to_gguf(copy, tmp_path / "out.gguf", "bfloat16")


def test_names_and_dtypes_are_checked(folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="should end in .gguf"):
        export.to_gguf(folder, tmp_path / "model.bin")
    refused(folder, tmp_path, "no dtype 'int8'", dtype="int8")
    path = str(tmp_path / "model.gguf")
    assert command.main([str(tmp_path), path]) == 1
    assert capsys.readouterr().err
    assert command.main([str(folder), path]) == 0
    assert "wrote 7.0 MB" in capsys.readouterr().out


def test_a_full_disk_is_said_before(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    refused(folder, tmp_path, "nothing was written", OSError)


# --- llama.cpp itself ---------------------------------------------------------------

LLAMA_CPP = "llama-cpp-python is not installed: it compiles, and is no dependency"


def test_llama_cpp_answers_like_transformers(folder):
    pytest.importorskip("llama_cpp", reason=LLAMA_CPP)
    reference, end = compare_gguf.answers_of_transformers(folder, PROMPTS, 24)
    found = compare_gguf.compare(folder, PROMPTS, "float32", reference, end)
    assert found["same_prompt_tokens"] == 1
    assert found["distance"]["kl"]["value"] < 1e-6
    assert found["distance"]["same_next_token"] == 1


def test_llama_cpp_cuts_text_like_llama_3(llama3_tokenizer, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason=LLAMA_CPP)
    chat.use_llama3_chat(llama3_tokenizer)
    model = tiny_model(len(llama3_tokenizer), hidden_size=32)
    merging.save(model, llama3_tokenizer, tmp_path / "model")
    export.to_gguf(tmp_path / "model", tmp_path / "model.gguf")
    reader = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True)
    for text in ("Don't  stop\n\n at 12345!", "été 東京 🙂\t<|eot_id|> x", "a\r\n b"):
        ids = reader.tokenize(text.encode(), add_bos=True, special=True)
        assert ids == llama3_tokenizer(text).input_ids
