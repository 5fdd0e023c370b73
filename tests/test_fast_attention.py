"""Packed rows' attention: FlexAttention and flash attention."""

import torch
from fast_fakes import four_layers, step_groups
from fast_harness import (
    assert_same_step,
    lora,
    make_both,
)

from course_utils.training.fast import (
    FastTrainingConfig,
    attention,
)

pytest_plugins = ["fast_fakes"]


def test_flex_attention_equals_trl(tmp_path, flex_on_cpu):
    theirs, ours = make_both(tmp_path, make_model=four_layers, peft_config=lora())
    ours.attention = "flex"
    assert_same_step(
        theirs, ours, step_groups(sizes=[9, 6])
    )  # two blocks of 128 tokens


def test_sequences_of_different_lengths_equal_trl(tmp_path, flash_on_cpu):
    theirs, ours = make_both(
        tmp_path,
        make_model=four_layers,
        peft_config=lora(),
        fast_config=FastTrainingConfig(activation_gib=0),
    )
    ours.attention = "varlen"
    for seed in range(4):
        assert_same_step(theirs, ours, step_groups(seed, sizes=[9, 6]))


def test_flash_attention_has_gradients_where_pytorch_defines_it():
    """The derivative of the operation that varlen calls; the kernel is CUDA's."""
    q = torch.empty(5, 4, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    kv = torch.empty(7, 2, 16, dtype=torch.bfloat16, device="meta", requires_grad=True)
    ends = torch.empty(3, dtype=torch.int32, device="meta")
    out = attention.flash_attention(q, kv, kv, ends, ends, 7, None)
    assert out.shape == q.shape and out.requires_grad


def test_flex_attention_computes_in_the_precision_of_autocast():
    tokens = attention.FLEX_BLOCK
    zeros = torch.zeros(tokens, dtype=torch.int64)
    mask = attention.block_mask(zeros, zeros)
    q = torch.randn(1, 4, tokens, 16)
    k, v = torch.randn(2, 1, 2, tokens, 16)
    exact, _ = attention.packed_attention(None, q, k, v, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = attention.packed_attention(None, q, k, v, mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02)
