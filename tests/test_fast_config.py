"""FastTrainingConfig: what is chosen on which machine, and why."""

import pytest
import torch
from fast_fakes import packed_trainer
from fast_harness import (
    lora,
    make_trainer,
)
from peft import get_peft_model
from tiny_llama import tiny_model

from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    config,
    graphs,
)

CPU = torch.device("cpu")


def test_the_attention_fits_the_machine():
    fitting = config._fitting_attention
    assert config.choose_attention("auto", CPU, torch.bfloat16)[0] == "sdpa"
    assert fitting((8, 0), True, torch.bfloat16)[0] == "varlen"
    assert fitting((8, 0), False, torch.float16)[0] == "varlen"
    assert fitting((8, 0), True, torch.float32)[0] == "flex"
    name, reason = fitting((7, 5), True, torch.float16)
    assert (name, "this GPU has 7.5" in reason) == ("sdpa", True)
    name, reason = fitting((9, 0), False, torch.float32)
    assert (name, "triton" in reason) == ("sdpa", True)
    for wanted in ("flex", "varlen"):
        with pytest.raises(ValueError, match="needs a CUDA GPU, this device is cpu"):
            config.choose_attention(wanted, CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="'varlen' computes in 16 bit"):
        config.choose_attention("varlen", torch.device("cuda"), torch.float32)


def test_triton_decodes_where_there_is_a_gpu_and_triton(monkeypatch):
    gpu, has = torch.device("cuda"), [object()]
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda _: has[0])
    assert config.choose_decode("auto", gpu) == (True, "one pass over a matrix")
    assert config.choose_decode(False, gpu) == (False, "as asked")
    assert config.choose_decode("auto", CPU) == (False, "there is no CUDA GPU")
    has[0] = None
    assert config.choose_decode("auto", gpu) == (False, "triton is not installed")
    with pytest.raises(ValueError, match="triton_decode=True cannot be: triton is not"):
        config.choose_decode(True, gpu)


def test_layers_are_compiled_where_it_pays():
    gpu = torch.device("cuda")
    has_triton = config.choose_compile("auto", "flex", gpu)
    assert has_triton[0] is True or "triton is not installed" in has_triton[1]
    assert config.choose_compile(True, "varlen", gpu)[0] is True
    assert config.choose_compile("auto", "sdpa", gpu)[0] is False
    assert config.choose_compile("auto", "sdpa", CPU)[0] is False
    assert config.choose_compile(False, "flex", gpu)[0] is False
    with pytest.raises(ValueError, match="compile_layers needs attention='varlen' or"):
        config.choose_compile(True, "sdpa", CPU)


def test_rows_are_recorded_where_it_can_be(tmp_path):
    assert config.choose_graphs("auto", "varlen", {"a": False})[0] is True
    assert config.choose_graphs(False, "varlen", {}) == (False, "as asked")
    assert config.choose_graphs("auto", "flex", {})[0] is False
    assert config.choose_graphs("auto", "varlen", {"b": True}) == (False, "b")
    with pytest.raises(ValueError, match="cuda_graphs=True cannot be: .*; no CUDA"):
        config.choose_graphs(True, "sdpa", {"no CUDA": True})
    trainer = make_trainer(PackedORPOTrainer, tmp_path, peft_config=lora())
    assert graphs.obstacles(trainer)["dropout draws other numbers each time"] is False
    with_dropout = get_peft_model(tiny_model(20), lora(lora_dropout=0.1))
    assert graphs.draws(with_dropout)
    with pytest.raises(ValueError, match="there is no CUDA GPU"):
        packed_trainer(tmp_path, fast_config=FastTrainingConfig(cuda_graphs=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"token_budget": 0}, "token_budget must be at least 1, got 0"),
        ({"head_tile": -1}, "head_tile must be at least 1, got -1"),
        ({"attention": "flash"}, "attention must be 'auto', 'varlen', 'flex' or"),
        ({"activation_gib": -1.0}, "activation_gib must be >= 0, got -1.0"),
    ],
)
def test_a_wrong_lever_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FastTrainingConfig(**settings)
