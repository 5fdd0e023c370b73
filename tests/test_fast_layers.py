"""Decoder layers of the fast trainer: checkpointing and compiling."""

import types

import pytest
import torch
from fast_fakes import (
    four_layers,
    packed_trainer,
    step_groups,
)
from fast_harness import (
    assert_same_step,
    lora,
    make_both,
    make_trainer,
    nf4_model,
    run_step,
)

from course_utils.models import memory
from course_utils.training import packing
from course_utils.training.fast import (
    FastTrainingConfig,
    PackedORPOTrainer,
    layers,
)

pytest_plugins = ["fast_fakes"]


def recomputed(trainer, groups):
    """How often each decoder layer ran in a step of one row, forward and backward."""
    counts, hooks = [], []
    for number, layer in enumerate(trainer.model.get_base_model().model.layers):
        counts.append(0)

        def count(*_, number=number):
            counts[number] += 1

        hooks.append(layer.mlp.register_forward_pre_hook(count))
    run_step(trainer, groups)
    for hook in hooks:
        hook.remove()
    return counts


def test_checkpointing_follows_the_configuration(tmp_path):
    for wanted in (False, True):
        trainer = packed_trainer(tmp_path, gradient_checkpointing=wanted)
        if wanted:  # as Trainer.train does
            trainer.model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        assert recomputed(trainer, step_groups()) == [1 + wanted] * 2


def test_as_many_layers_keep_their_activations_as_fit(tmp_path):
    groups = step_groups()
    tokens = sum(
        packing.packed_length(packing.pair_from_row(r)) for g in groups for r in g
    )
    trainer = packed_trainer(tmp_path, fast_config=FastTrainingConfig(activation_gib=0))
    assert recomputed(trainer, groups) == [2, 2]
    trainer = packed_trainer(
        tmp_path, fast_config=FastTrainingConfig(activation_gib=1e-9)
    )
    assert recomputed(trainer, groups) == [1, 2]  # the first layer is measured
    assert recomputed(trainer, groups) == [2, 2]
    one_layer = trainer._layers._bytes_per_token * tokens
    for share, expected in ((0.9, [2, 2]), (1.5, [1, 2]), (2.1, [1, 1])):
        gib = share * one_layer / layers.GIB
        trainer = packed_trainer(
            tmp_path, fast_config=FastTrainingConfig(activation_gib=gib)
        )
        run_step(trainer, groups)
        assert recomputed(trainer, groups) == expected


@pytest.mark.parametrize("gib", [0, 1e-6, 1])
def test_checkpointing_changes_no_result(tmp_path, gib):
    made = make_both(
        tmp_path, peft_config=lora(), fast_config=FastTrainingConfig(activation_gib=gib)
    )
    for seed in range(2):
        assert_same_step(*made, step_groups(seed))


def test_saved_bytes_counts_what_backward_needs_but_no_weights():
    layer = torch.nn.Linear(4, 4, bias=False)
    inputs = torch.ones(10, 4, requires_grad=True)
    weights = list(layer.parameters())
    result, size = layers.saved_bytes(lambda: layer(inputs).exp().exp(), weights)
    # the input of the product, and the output of either exponential
    assert size == 3 * 10 * 4 * 4
    result.sum().backward()
    assert layers.saved_bytes(lambda: inputs.detach().exp(), [])[1] == 0


def test_activations_may_fill_what_the_calculator_leaves(tmp_path, monkeypatch):
    auto = FastTrainingConfig(activation_gib="auto")
    trainer = packed_trainer(tmp_path, fast_config=auto, dtype=torch.float32)
    assert (
        trainer.fast_config.activation_gib is None
    )  # no GPU: as the configuration says
    card = types.SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(
        torch.cuda, "get_per_process_memory_fraction", lambda device: 0.5
    )
    spare = memory.spare_gib(trainer)
    # This model is tiny: all of the half card but CUDA's context and work space.
    assert 4 - memory.ALLOWANCE_GIB - 0.1 < spare < 4 - memory.ALLOWANCE_GIB
    card.total_memory = 2**29
    assert memory.spare_gib(trainer) == 0
    plain = make_trainer(PackedORPOTrainer, tmp_path)
    with pytest.raises(ValueError, match="knows LoRA trainings only"):
        memory.spare_gib(plain)


def test_layers_that_fit():
    assert layers.layers_that_fit(100, 30, 32) == 3
    assert layers.layers_that_fit(100, 30, 2) == 2
    assert layers.layers_that_fit(0, 30, 2) == 0
    assert layers.layers_that_fit(0, 0, 2) == 2


@pytest.mark.parametrize(("gib", "graphs"), [(None, 1), (0, 1), (1e-9, 2)])
def test_compiled_layers_share_their_graphs_and_equal_trl(
    tmp_path, flex_on_cpu, gib, graphs
):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "flex", "aot_eager"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert_same_step(theirs, ours, step_groups())
    counters = torch._dynamo.utils.counters
    # One for layers that keep what backward needs, one for those that do not, and the
    # head's.
    assert counters["stats"]["unique_graphs"] == graphs + 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("gib", [None, 0])
def test_compiled_layers_with_sequences_equal_trl(tmp_path, flash_kernel_on_cpu, gib):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for seed in range(2):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[9, 6]))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 + 1  # the layers', the head's
    assert not counters["graph_break"]


@pytest.mark.parametrize("gib", [None, 0])
def test_compiled_layers_on_nf4_weights_equal_trl(tmp_path, flash_kernel_on_cpu, gib):
    theirs, ours = make_both(
        tmp_path,
        make_model=lambda: nf4_model(tmp_path),
        dtype=torch.float32,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=gib),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    for seed in range(2):
        assert_same_step(theirs, ours, step_groups(seed), 1e-5, 1e-4)


@pytest.mark.parametrize("bits", [4, 64])
def test_a_compiled_layer_computes_again_only_what_backward_needs(
    tmp_path, flash_kernel_on_cpu, bits
):
    model = four_layers() if bits == 64 else nf4_model(tmp_path, num_hidden_layers=4)
    ours = make_trainer(
        PackedORPOTrainer,
        tmp_path,
        model=model,
        peft_config=lora(),
        dtype=model.dtype,
        fast_config=FastTrainingConfig(activation_gib=0),
    )
    ours.attention, ours.compile_layers = "varlen", "aot_eager"
    run_step(ours, step_groups())
    with torch.autograd.profiler.profile() as log:
        run_step(ours, step_groups())
    calls = {event.key: event.count for event in log.key_averages()}
    # Seven matrices; but the layer's output is there already, so that nobody needs the
    # last product again.
    assert calls["course_utils::fused_lora"] == 4 * (7 + 6)
    assert calls["course_utils::fused_lora_backward"] == 4 * 7
    assert calls["course_utils::flash"] == 4 * (1 + 1)
