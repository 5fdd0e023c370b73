"""Attention over packed rows, for the decoder layers of transformers.

The function that `register` puts under NAME behaves as transformers' "sdpa" for every
call that is not a packed row, so that a model may keep it while it generates or is
measured.
"""

import functools
from typing import Any

import torch
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from course_utils.training.fast import row_masks
from course_utils.training.packing import PackedRow

NAME = "packed_pairs"
# FlexAttention's mask is made of blocks of this many tokens.
FLEX_BLOCK = 128


def register() -> None:
    """Make NAME known to transformers as an attention; again does no harm."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def mask_arguments(
    row: PackedRow, attention: str, longest: int | None = None
) -> dict[str, Any]:
    """Keyword arguments by which a model's forward learns of a row's mask.

    row: packing.PackedRow on the model's device. attention: "varlen", "flex" or "sdpa".
    longest: for "varlen", tokens that no sequence exceeds; the same number for all rows
        lets compiled layers serve them all.
    """
    if attention == "flex":
        return {"attention_mask": block_mask(row.pair_id, row.segment)}
    if attention == "varlen":
        return {
            # Nobody reads this one: of four dimensions, it keeps transformers from
            # making a mask of its own.
            "attention_mask": row.input_ids.new_ones(1, 1, 1, 1),
            "cu_seq_lens_q": row.cu_queries,
            "cu_seq_lens_k": row.cu_keys,
            "max_length_k": longest or row.longest,
            "key_order": (row.key_tokens, row.key_first, row.key_second),
        }
    # A mask of four dimensions passes through transformers as it is.
    masks = row_masks.pair_masks(row.segment, row.lengths)
    return {"attention_mask": masks, "pair_lengths": row.lengths}


def block_mask(pair_id: torch.Tensor, segment: torch.Tensor) -> BlockMask:
    """`row_masks.visible` as FlexAttention's BlockMask, which is never T x T in memory.

    pair_id, segment: (T,) int64, T a multiple of FLEX_BLOCK.
    """

    def visible(_batch, _head, query, key):
        on_the_way = (segment[key] == 0) | (segment[key] == segment[query])
        return (query >= key) & (pair_id[query] == pair_id[key]) & on_the_way

    tokens = len(pair_id)
    return create_block_mask(visible, None, None, tokens, tokens, pair_id.device)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask | torch.Tensor | None,
    scaling: float | None = None,
    pair_lengths: tuple[int, ...] | None = None,
    key_order: tuple | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one layer, in the signature of transformers' AttentionInterface.

    query: (B, heads, T, head_dim); key, value: fewer heads may serve several queries.
    attention_mask: a BlockMask; or with pair_lengths the (P, 1, L, L) masks of
        row_masks.pair_masks; or whatever transformers' own SDPA takes; unused where
        key_order and what goes with it are given (see mask_arguments).
    Returns: ((B, T, heads, head_dim), None).
    """
    if key_order is not None:
        return _sequences(query, key, value, scaling, key_order, **kwargs), None
    if isinstance(attention_mask, BlockMask):
        out = _flex(query)(
            *_in_autocast_precision(query, key, value),
            block_mask=attention_mask,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    elif pair_lengths is not None:
        out = _pair_by_pair(query, key, value, attention_mask, scaling, pair_lengths)
    else:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    return out.transpose(1, 2).contiguous(), None


def _pair_by_pair(query, key, value, masks, scaling, lengths):
    """SDPA within each pair: no T x T mask, and nothing computed across pairs."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    # split, not slices: its backward is one cat instead of a padded copy a pair.
    parts = zip(
        *(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True
    )
    return torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask[0, :length, :length], scale=scaling
            )
            for (q, k, v), mask, length in zip(parts, masks, lengths, strict=True)
        ],
        dim=2,
    )


def _sequences(
    query,
    key,
    value,
    scaling,
    key_order,
    cu_seq_lens_q,
    cu_seq_lens_k,
    max_length_k,
    **_,
):
    """A row as sequences of different lengths; a segment reads its prefix's keys again.

    Flash attention aligns the causal mask with the sequences' ends, so that the queries
    of a segment see the whole prefix, and of the segment what comes before them.
    Returns: (1, T, heads, head_dim).
    """
    query, key, value = (
        tensor[0].transpose(0, 1)
        for tensor in _in_autocast_precision(query, key, value)
    )  # (T, heads, head_dim)
    key, value = (in_key_order(tensor, *key_order) for tensor in (key, value))
    out = flash_attention(
        query, key, value, cu_seq_lens_q, cu_seq_lens_k, max_length_k, scaling
    )
    return out[None]


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    """Causal attention within sequences: PyTorch's own kernel, CUDA and 16 bit only.

    query: (T, heads, head_dim). key, value: (K, fewer heads, head_dim). cu_queries,
    cu_keys: (S + 1,) int32. Returns: as query.
    """
    return flash(query, key, value, cu_queries, cu_keys, longest, scaling)[0]


# Operations of our own around PyTorch's: those count as random, although without
# dropout nothing is drawn, and a compiled layer that runs them again for backward would
# save the generator's state, which a CUDA graph does not allow.
@torch.library.custom_op("course_utils::flash", mutates_args=())
def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention as in flash_attention, its (heads, T) log-sums of exponentials)"""
    out, log_sums, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_queries,
        cu_keys,
        longest,
        longest,
        0.0,
        True,
        False,
        scale=scaling,
    )
    return out, log_sums


@flash.register_fake
def _(query, key, value, cu_queries, cu_keys, longest, scaling):
    tokens, heads, _ = query.shape
    log_sums = query.new_empty((heads, tokens), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), log_sums


@torch.library.custom_op("course_utils::flash_backward", mutates_args=())
def flash_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    log_sums: torch.Tensor,
    cu_queries: torch.Tensor,
    cu_keys: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value."""
    # Where the kernel would look for the state of dropout.
    state = torch.empty(2, dtype=torch.uint64, device=query.device)
    unused = torch.empty((), dtype=torch.uint64, device=query.device)
    return torch.ops.aten._flash_attention_backward(
        grad.contiguous(),
        query,
        key,
        value,
        out,
        log_sums,
        cu_queries,
        cu_keys,
        longest,
        longest,
        0.0,
        True,
        state,
        unused,
        scale=scaling,
    )


@flash_backward.register_fake
def _(grad, query, key, value, *_):
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (query, key, value)
    )


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.longest, ctx.scaling = inputs
    query, key, value, cu_queries, cu_keys = tensors
    ctx.save_for_backward(query, key, value, *output, cu_queries, cu_keys)


@functools.partial(flash.register_autograd, setup_context=_keep_for_backward)
def _(ctx, grad, _):
    gradients = flash_backward(grad, *ctx.saved_tensors, ctx.longest, ctx.scaling)
    return *gradients, None, None, None, None


@torch.library.custom_op("course_utils::in_key_order", mutates_args=())
def in_key_order(
    tensor: torch.Tensor,
    tokens: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> torch.Tensor:
    """Rows of a tensor in the order of the keys; some stand there twice.

    tokens, first, second: as PackedRow's key_tokens, key_first, key_second. Backward
    reads each row's one or two gradients instead of adding at addresses, which on a GPU
    happens in another order each time.
    """
    return tensor.index_select(0, tokens)


@in_key_order.register_fake
def _(tensor, tokens, first, second):
    return tensor.new_empty(tokens.shape[0], *tensor.shape[1:])


def _keep_places(ctx, inputs, output):
    ctx.save_for_backward(*inputs[2:])


@functools.partial(in_key_order.register_autograd, setup_context=_keep_places)
def _(ctx, grad):
    first, second = ctx.saved_tensors
    again = torch.where((second >= 0)[:, None, None], grad[second.clamp(min=0)], 0)
    return grad[first] + again, None, None, None


def _in_autocast_precision(*tensors):
    """What autocast does for SDPA and does not do for FlexAttention."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(tensor.to(dtype) for tensor in tensors)


_compiled_flex = torch.compile(flex_attention)


def _flex(query):
    """FlexAttention; on a GPU compiled, since uncompiled it holds all T x T scores."""
    if query.device.type == "cuda" and not torch.compiler.is_compiling():
        return _compiled_flex
    return flex_attention
