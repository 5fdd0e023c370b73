"""Attention over packed rows, for the decoder layers of transformers.

Knows: PyTorch's two attentions, and how transformers hands a mask to a layer. Does not
know: how rows are made (`packing`).

The function that `register` puts under NAME behaves as transformers' "sdpa" for every
call that is not a packed row, so that a model may keep it while it generates or is
measured.
"""

import torch
from torch.nn.attention.flex_attention import (
    BlockMask,
    create_block_mask,
    flex_attention,
)
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from course_utils import packing

NAME = "packed_pairs"
# FlexAttention's mask is made of blocks of this many tokens.
FLEX_BLOCK = 128


def register():
    """Make NAME known to transformers as an attention; again does no harm."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def mask_arguments(row, attention):
    """Keyword arguments by which a model's forward learns of a row's mask.

    row: packing.PackedRow on the model's device. attention: "flex" or "sdpa".
    """
    if attention == "flex":
        return {"attention_mask": block_mask(row.document, row.branch)}
    # A mask of four dimensions passes through transformers as it is.
    masks = packing.pair_masks(row.branch, row.lengths)
    return {"attention_mask": masks, "pair_lengths": row.lengths}


def block_mask(document, branch):
    """`packing.visible` as FlexAttention's BlockMask, which is never T x T in memory.

    document, branch: (T,) int64, T a multiple of FLEX_BLOCK.
    """

    def visible(_batch, _head, query, key):
        on_the_way = (branch[key] == 0) | (branch[key] == branch[query])
        return (query >= key) & (document[query] == document[key]) & on_the_way

    tokens = len(document)
    return create_block_mask(visible, None, None, tokens, tokens, document.device)


def packed_attention(
    module, query, key, value, attention_mask, scaling=None, pair_lengths=None, **kwargs
):
    """Attention of one layer, in the signature of transformers' AttentionInterface.

    query: (B, heads, T, head_dim); key, value: fewer heads may serve several queries.
    attention_mask: a BlockMask; or with pair_lengths the (P, 1, L, L) masks of
        packing.pair_masks; or whatever transformers' own SDPA takes.
    Returns: ((B, T, heads, head_dim), None).
    """
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
