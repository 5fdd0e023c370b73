"""Memory predicted by arithmetic, against what models, autograd and allocator hold."""

from dataclasses import replace

import memory_harness as harness
import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from course_utils import models
from course_utils.models import memory
from course_utils.models.memory import activations, step, weights
from course_utils.models.random_weights.checkpoint import config_of
from course_utils.setup import profiles

LLAMA3 = config_of("llama3-8b")
# On the CPU TRL's Triton kernel does not run, and packed rows take SDPA.
ON_CPU = memory.Settings(
    lora_rank=8,
    length=96,
    accumulation=1,
    checkpointing=False,
    padded=False,
    log_prob_kernel=False,
    attention="sdpa",
    head_tile=64,
    optim="adamw_torch",
)


def stored_bytes(model):
    """{part: bytes} summed over a model's tensors, each storage once."""
    seen, parts = (
        set(),
        dict.fromkeys(("weights", "quant state", "tables", "adapter"), 0),
    )

    def add(part, tensor):
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            parts[part] += tensor.numel() * tensor.element_size()

    for name, parameter in model.named_parameters():
        part = "tables" if "embed_tokens" in name or "lm_head" in name else "weights"
        add("adapter" if parameter.requires_grad else part, parameter.data)
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            # Not by storage: on a GPU each matrix has constants of its own.
            tensors = [state.absmax, state.code, state.offset]
            tensors += [state.state2.absmax, state.state2.code]
            parts["quant state"] += sum(t.nbytes for t in tensors)
    return parts


def frozen(model):
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


# ---- weights: exact ----


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("hidden_size", [64, 128])
def test_plain_weights_equal_the_sum_over_tensors(precision, hidden_size):
    model = frozen(harness.load(precision, hidden_size=hidden_size))
    got = stored_bytes(model)
    settings = memory.Settings(precision=precision, compute=precision)
    expected = memory.static_bytes(model.config, settings)
    assert got["weights"] == expected["weights"]
    assert got["tables"] == expected["embeddings and head"]
    assert got["quant state"] == expected["quant state"] == 0


@pytest.mark.parametrize("compute", ["bfloat16", "float16"])
@pytest.mark.parametrize("token_rows", [0, 3])
def test_nf4_equals_the_sum_over_tensors_once_trl_prepared_it(
    compute, token_rows, tmp_path
):
    settings = replace(ON_CPU, compute=compute, token_rows=token_rows)
    made = harness.trainer(settings, tmp_path)
    models.keep_trained_in_fp32(made.model)
    got = stored_bytes(made.model)
    expected = memory.static_bytes(made.model.config, settings)
    assert got["weights"] == expected["weights"]
    assert got["quant state"] == expected["quant state"] > 0
    assert got["tables"] == expected["embeddings and head"]
    assert got["adapter"] == expected["adapter"]
    assert memory.Settings.of_trainer(made) == replace(
        settings, padded=True, attention="varlen", head_tile=512
    )


def test_llama_3_8b_is_counted_as_it_is_published():
    with torch.device("meta"):
        shape = LlamaForCausalLM(LLAMA3)
    counts = memory.weight_shapes(LLAMA3)
    assert counts["total"] == shape.num_parameters() == 8_030_261_248
    for settings in (
        memory.Settings(),
        memory.Settings(lora_rank=64, targets=("v_proj",)),
    ):
        lora = LoraConfig(r=settings.lora_rank, target_modules=list(settings.targets))
        with torch.device("meta"):
            adapted = get_peft_model(LlamaForCausalLM(LLAMA3), lora)
        expected = models.parameter_counts(adapted).trainable
        assert weights.adapter_weights(LLAMA3, settings) == expected
    static = memory.static_bytes(LLAMA3, memory.Settings())
    linear, norms = 6_979_321_856, 65 * 4096 * 4
    assert static["weights"] == linear // 2 + norms
    state = linear / 64 + 4 * linear / 64 / 256
    assert static["quant state"] == pytest.approx(state, rel=0.01)


def test_embeddings_on_the_cpu_take_nothing_of_the_gpu():
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=2,
        vocab_size=128_256,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    fast = memory.Settings(trainer="fast")
    away = replace(fast, embeddings_on_cpu=True)
    saved = (
        memory.predict(config, fast).peak_gib - memory.predict(config, away).peak_gib
    )
    assert saved == pytest.approx(128_256 * 4096 * 2 / 2**30)
    config.tie_word_embeddings = True  # the head needs them
    assert memory.predict(config, fast) == memory.predict(config, away)


def test_tied_tables_count_once():
    model = harness.tiny_model(400, 32, tie_word_embeddings=True)
    counts = memory.weight_shapes(model.config)
    assert counts["total"] == model.num_parameters()


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw_torch", torch.optim.AdamW), ("adamw_8bit", AdamW8bit)]
)
def test_optimizer_state_is_what_the_optimizer_keeps(name, kind):
    matrix = torch.nn.Parameter(torch.randn(512, 256))
    optimizer = kind([matrix], lr=1e-3)
    matrix.grad = torch.randn_like(matrix)
    optimizer.step()
    shared = ("qmap1", "qmap2", "step")  # two tables for the whole optimizer; a counter
    state = optimizer.state[matrix]
    got = sum(
        v.nbytes for k, v in state.items() if k not in shared and torch.is_tensor(v)
    )
    from course_utils.models.memory.settings import OPTIMIZERS

    assert got == OPTIMIZERS[name] * matrix.numel()


# ---- activations and logits: against autograd and the allocator ----

CASES = {
    "stock": {},
    "small vocabulary": {"vocab_size": 512},
    "checkpointing": {"checkpointing": True},
    "checkpointing, small vocabulary": {"checkpointing": True, "vocab_size": 512},
    "padded, longer": {"padded": True, "batch": 3, "length": 150, "vocab_size": 512},
    "one pair, token rows": {"batch": 1, "length": 200, "token_rows": 3},
    "bf16": {"precision": "bfloat16", "vocab_size": 512, "checkpointing": True},
    "fp32": {"precision": "float32", "compute": "float32"},
    "two targets": {"targets": ("q_proj", "v_proj"), "lora_rank": 32},
    "fast": {"trainer": "fast", "length": 200},
    "fast, checkpointing": {"trainer": "fast", "length": 200, "checkpointing": True},
}


@pytest.mark.parametrize("case", CASES)
def test_prediction_is_within_a_tenth_of_what_a_step_takes(case, tmp_path):
    changes = dict(CASES[case])
    sizes = {"vocab_size": changes.pop("vocab_size", 4096)}
    settings = replace(ON_CPU, **changes)
    config = harness.tiny(**sizes)[1]
    measured = harness.measure(settings, tmp_path, **sizes)
    static = sum(memory.static_bytes(config, settings).values()) + step.CUBLAS_BYTES
    prediction = memory.predict(config, settings)
    peak = max(prediction.phases.values()) - static
    assert peak == pytest.approx(measured["peak"], rel=0.10)
    if settings.trainer == "stock":
        kept = activations.stack_bytes(config, settings)
        kept += activations.head_bytes(config, settings)[0]
        assert kept == pytest.approx(measured["saved"], rel=0.01)


def test_the_comparison_notices_what_it_should(tmp_path):
    """Forgetting a settings' change must lead outside the tolerance."""
    measured = harness.measure(replace(ON_CPU, checkpointing=True), tmp_path)
    config = harness.tiny()[1]
    for wrong in ({}, {"checkpointing": True, "batch": 3}, {"log_prob_kernel": True}):
        settings = replace(ON_CPU, **wrong)
        static = sum(memory.static_bytes(config, settings).values())
        peak = max(memory.predict(config, settings).phases.values()) - static
        assert peak != pytest.approx(measured["peak"] + step.CUBLAS_BYTES, rel=0.10)


# Measured elsewhere: one H200, torch 2.11, TRL 1.16, random weights in Llama 3 8B's
# shape with two more tokens, NF4, rank 16, no token rows, rows cut at 1,024 tokens.
@pytest.mark.parametrize(
    ("batch", "accumulation", "peak_gib"), [(2, 4, 12.65), (8, 1, 33.3)]
)
def test_prediction_agrees_with_peaks_measured_on_a_gpu(batch, accumulation, peak_gib):
    config = config_of("llama3-8b")
    config.vocab_size += 2
    settings = memory.Settings(batch=batch, accumulation=accumulation)
    predicted = memory.predict(config, settings).peak_gib
    assert predicted == pytest.approx(peak_gib, rel=0.05)


# ---- advice ----


def test_parts_sum_to_the_peak_and_five_groups_lose_nothing():
    for trainer in ("stock", "fast"):
        found = memory.predict(LLAMA3, memory.Settings(trainer=trainer, token_rows=3))
        assert found.peak_gib == max(found.phases.values()) / 2**30
        assert sum(found.in_five().values()) == pytest.approx(found.peak_gib)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch": 1}, {"batch": 2}),
        ({"length": 512}, {"length": 1024}),
        ({"checkpointing": True}, {"checkpointing": False}),
        ({"trainer": "fast"}, {"trainer": "stock"}),
        (
            {"trainer": "fast", "head_tile": 128, "checkpointing": False},
            {"trainer": "fast", "head_tile": None, "checkpointing": False},
        ),
        ({"optim": "paged_adamw_8bit"}, {"optim": "adamw_torch"}),
        ({"lora_rank": 8}, {"lora_rank": 64}),
        ({"token_rows": 0}, {"token_rows": 3}),
        ({"precision": "nf4"}, {"precision": "bfloat16"}),
    ],
)
def test_what_should_take_less_takes_less(less, more):
    gib = [memory.predict(LLAMA3, memory.Settings(**s)).peak_gib for s in (less, more)]
    assert gib[0] < gib[1]


def test_fits_answers_for_the_cards_of_the_profiles():
    known = profiles.all_profiles()
    l4, a100 = (
        memory.Settings.of_profile(known[n], token_rows=3) for n in ("l4", "a100")
    )
    assert memory.fits("L4", LLAMA3, l4).fits
    assert memory.fits("A100", LLAMA3, a100).fits
    large = memory.fits("L4", LLAMA3, a100)
    assert not large.fits and "does not fit" in str(large)
    on_t4 = memory.fits("T4", LLAMA3, l4)
    assert not on_t4.fits and "no bf16" in str(on_t4)
    # Twice the tables' bytes: TRL leaves them in float32 beside NF4 without bf16.
    assert on_t4.needs_gib > memory.fits("L4", LLAMA3, l4).needs_gib + 1.9
    assert memory.fits(80, LLAMA3, a100).fits
    with pytest.raises(ValueError, match="T4, L4, A100"):
        memory.fits("H100", LLAMA3, l4)


def test_each_change_saves_what_it_says_most_first():
    settings = memory.Settings(batch=8, accumulation=1, checkpointing=False)
    now = memory.predict(LLAMA3, settings).peak_gib
    changes = memory.what_would_save(LLAMA3, settings, short_by_gib=20)
    savings = [change.saves_gib for change in changes]
    assert savings == sorted(savings, reverse=True) and len(changes) >= 5
    for change in changes:
        after = memory.predict(LLAMA3, replace(settings, **change.values)).peak_gib
        assert change.saves_gib == pytest.approx(now - after)
        assert change.enough == (now - after >= 20)
    assert any(change.values == {"checkpointing": True} for change in changes)


def test_changes_are_combined_where_no_single_one_is_enough():
    settings = memory.Settings(batch=8, accumulation=1, checkpointing=False)
    now = memory.predict(LLAMA3, settings).peak_gib
    short = now - 7.5
    *single, together = memory.what_would_save(LLAMA3, settings, short)
    assert not any(change.enough for change in single) and together.enough
    assert " and " in together.what
    after = memory.predict(LLAMA3, replace(settings, **together.values)).peak_gib
    assert after <= 7.5
    *_, never = memory.what_would_save(LLAMA3, settings, now - 1)
    assert not never.enough  # the weights alone take more


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int8"}, "nf4, bfloat16"),
        ({"precision": "float32"}, "compute is 'bfloat16'"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"targets": ("lm_head",)}, "none of a Llama's"),
        ({"optim": "sgd"}, "optim is 'sgd'"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        memory.Settings(**wrong)
