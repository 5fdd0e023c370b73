"""Fused LoRA layers equal PEFT."""

import bitsandbytes
import pytest
import torch
from fast_fakes import step_groups
from fast_harness import (
    lora,
    make_trainer,
    nf4_model,
    run_step,
    trained,
)
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_model

from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    matmul,
)
from course_utils.training.fast import fused_lora as lora_layers
from course_utils.training.fast import trainer as fast_trainer
from course_utils.training.fast.fused_lora import fused_forward

pytest_plugins = ["fast_fakes"]


def lora_layer(**settings):
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(20), lora(train_rows=False, **settings))
    return model, model.get_base_model().model.layers[0].mlp.up_proj.train()


def uses_peft(layer):
    """Does the fused forward hand this call to PEFT's own?"""
    calls = []

    def original(x):
        calls.append(x)
        return layer.forward(x)

    fused_forward(layer, original)(torch.randn(1, 3, 16))
    return bool(calls)


def test_a_fused_layer_equals_peft():
    _, layer = lora_layer()
    assert not uses_peft(layer)
    results = []
    for forward in (layer.forward, fused_forward(layer, layer.forward)):
        x = torch.linspace(-1, 1, 2 * 3 * 16).reshape(2, 3, 16).requires_grad_()
        out = forward(x)
        out.square().sum().backward()
        results.append((out, x.grad, *(p.grad for p in trained(layer).values())))
        for parameter in layer.parameters():
            parameter.grad = None
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_layers_in_other_states_are_left_to_peft():
    model, layer = lora_layer()
    with model.disable_adapter():
        assert uses_peft(layer)
    layer.merge()
    assert uses_peft(layer)
    layer.unmerge()
    assert not uses_peft(layer)
    model.add_adapter("second", lora(train_rows=False))
    layer.set_adapter(["default", "second"])
    assert uses_peft(layer)

    _, layer = lora_layer(lora_dropout=0.5)
    assert uses_peft(layer)
    assert not uses_peft(layer.eval())
    _, layer = lora_layer()
    layer.lora_A.double()
    assert fused_forward(layer, lambda x: "peft")(torch.ones(1, 3, 16)) == "peft"


@pytest.mark.parametrize("gib", [None, 0])
@pytest.mark.parametrize("compiled", [False, "aot_eager"])
def test_adapters_rounded_once_a_row_change_no_result(
    tmp_path, flash_kernel_on_cpu, compiled, gib, monkeypatch
):
    rounded, refresh = [], lora_layers.RoundedAdapters.refresh

    def counting(self, device):
        refresh(self, device)
        rounded.append(sum(map(len, self._held.values())))

    monkeypatch.setattr(lora_layers.RoundedAdapters, "refresh", counting)
    found = []
    for once in (True, False):
        ours = make_trainer(
            PackedORPOTrainer,
            tmp_path,
            model=nf4_model(tmp_path, torch.bfloat16),
            dtype=None,
            bf16=True,
            peft_config=lora(train_rows=False),
            fast_config=FastTrainingConfig(token_budget=60, activation_gib=gib),
        )
        ours.attention, ours.compile_layers = "varlen", compiled
        ours.patch_model()
        ours._layers._round_once = once
        results = [run_step(ours, step_groups())]
        with torch.no_grad():  # as an optimizer would
            for parameter in trained(ours.model).values():
                parameter.mul_(1.5)
        found.append([*results, run_step(ours, step_groups(1))])
        assert not any(ours._layers._rounded._held.values())
    assert rounded and set(rounded) == {2 * len(lora_modules(ours.model))}
    for with_copies, without in zip(*found, strict=True):
        assert with_copies[0] == without[0]
        for name, gradient in with_copies[2].items():
            assert torch.equal(gradient, without[2][name]), name


def test_a_loss_over_several_rows_keeps_each_row_s_rounded_adapters(tmp_path):
    ours = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path, torch.bfloat16),
        dtype=None,
        bf16=True,
        peft_config=lora(train_rows=False),
        fast_config=FastTrainingConfig(token_budget=60),
    )
    (group,) = step_groups(sizes=[6])
    batch = ours.data_collator(group)
    assert len(ours._pack([fast_trainer._pairs(batch)])) > 1
    found = {}
    for once in (True, False):
        ours._layers._round_once = once
        ours.model.zero_grad()
        ours.compute_loss(ours.model, batch).backward()
        found[once] = {n: p.grad.clone() for n, p in trained(ours.model).items()}
    for name, gradient in found[True].items():
        assert torch.equal(gradient, found[False][name]), name


def lora_modules(model):
    return [m for m in model.modules() if hasattr(m, "lora_A") and len(m.lora_A)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_in_one_step_equal_products_in_several(dtype):
    torch.manual_seed(0)
    small, right, left, matrix, bias = (
        torch.randn(shape, dtype=dtype)
        for shape in ((30, 4), (4, 20), (30, 64), (64, 20), (20,))
    )
    torch.testing.assert_close(
        matmul.scaled(left, matrix, 0.3), left @ matrix * 0.3, rtol=0.02, atol=0.02
    )
    truth = small.double() @ right.double() + left.double() @ matrix.double()
    tolerance = 4 * torch.finfo(dtype).eps
    for found, expected in (
        (matmul.added(small, right, left, matrix), truth),
        (matmul.added(small, right, left, matrix, bias), truth + bias.double()),
    ):
        assert found.dtype == dtype
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert error < tolerance
    assert matmul.in_dtype(left, matrix, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["plain", "bias", "4 bit"])
def test_what_a_small_adapter_changes_survives_rounding(kind):
    """At the start of training an adapter's change is below the output's last bit."""
    torch.manual_seed(0)
    base = torch.nn.Linear(256, 256, bias=kind == "bias")
    if kind == "bias":
        base.bias.data.normal_()
    if kind == "4 bit":
        packed = bitsandbytes.nn.Linear4bit(
            256, 256, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16
        )
        packed.load_state_dict(base.state_dict())
        base = packed.to("cpu")
    model = torch.nn.Sequential(base.to(torch.bfloat16)).requires_grad_(False)
    peft = get_peft_model(
        model, LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    )
    layer = peft.base_model.model[0]
    layer.lora_A.bfloat16(), layer.lora_B.bfloat16()
    layer.lora_B["default"].weight.data *= 3e-4
    x = torch.randn(400, 256).bfloat16()
    with torch.no_grad():
        found = fused_forward(layer, None)(x).double()
        weight = (
            bitsandbytes.functional.dequantize_4bit(
                base.weight, base.weight.quant_state
            )
            if kind == "4 bit"
            else base.weight
        )
        plain = x.double() @ weight.double().t()
        if kind == "bias":
            plain += base.bias.double()
        change = layer.lora_B["default"](layer.lora_A["default"](x)).double()
        change *= layer.scaling["default"]
    last_bit = 2**-8 * plain.abs().mean()
    assert change.abs().mean() < last_bit / 4

    # How much of the change is in the output: the slope of one over the other.
    def arrived(output):
        return ((output - plain) * change).sum() / (change**2).sum()

    assert arrived(found) == pytest.approx(1, abs=0.1)
    too_late = (plain.bfloat16() + change.bfloat16()).double()
    assert arrived(too_late) < 0.7


def test_weights_rearranged_for_inference_are_not_trained(tmp_path):
    trainer = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=nf4_model(tmp_path),
        dtype=torch.float32,
        peft_config=lora(train_rows=False),
    )
    run_step(trainer, step_groups())
    for module in trainer.model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            # What bitsandbytes notes when it does so, on CPUs with avx512bf16.
            module.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="gradients no longer pass .* Load the model"):
        run_step(trainer, step_groups())


def test_other_kinds_of_layers_are_not_fused():
    model, _ = lora_layer()
    assert fused_forward(torch.nn.Linear(2, 2), None) is None
    assert fused_forward(model, None) is None
