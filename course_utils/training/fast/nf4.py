"""A matrix in 4 bit (NF4 or FP4, doubly quantised or not), decoded by one kernel.

bitsandbytes decodes a doubly quantised matrix by three kernels: the scales, their
offset, then the matrix, at about half of what the memory of an H100 can deliver. Here
one kernel reads each byte once. Where sizes allow, a thread reads words of four bytes,
several at a time, and writes the eight numbers of each by one store.
"""

import functools

import torch

BYTES, WARPS = 2048, 4  # that a program decodes, 16 per thread, and that decode them
WORDS, AT_ONCE = 128, 4  # words per tile, one per thread; tiles that a program reads


def decode(
    packed: torch.Tensor,
    scales: list[torch.Tensor],
    blocks: list[int],
    code: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    """The matrix, (shape), as bitsandbytes' own kernels decode it, bit for bit.

    packed: uint8 on a CUDA GPU, two numbers per byte, the first in its upper half.
    scales: [absmax], or [its bytes, their absmax, their code of 256, offset].
    blocks: [numbers per scale], and with double quantisation [..., scales a scale].
    code: (16,) fp32, what the 16 values mean. dtype: of the result.
    """
    out = torch.empty(shape, dtype=dtype, device=packed.device)
    doubly = len(scales) > 1
    absmax, outer, outer_code, offset = scales if doubly else [*scales, *[code] * 3]
    per_outer = blocks[1] if doubly else 1
    per_scale = blocks[0] // 2
    if doubly and _in_words(packed, out, blocks):
        tiles = out.numel() // (8 * WORDS)
        _kernels()[1][(-(-tiles // AT_ONCE),)](
            packed.view(-1).view(torch.int32),
            absmax,
            outer,
            outer_code,
            offset,
            code,
            out,
            tiles,
            PER_SCALE=per_scale // 4,
            PER_OUTER=per_outer,
            WORDS=WORDS,
            AT_ONCE=AT_ONCE,
            num_warps=WARPS,
            enable_fp_fusion=False,
        )
        return out
    count = absmax.numel()
    at_once = max(1, BYTES // per_scale)
    _kernels()[0][(-(-count // at_once),)](
        packed,
        absmax,
        outer,
        outer_code,
        offset,
        code,
        out,
        out.numel(),
        count,
        DOUBLY=doubly,
        BYTES=per_scale,
        PER_OUTER=per_outer,
        SCALES=at_once,
        num_warps=WARPS,
        # A product and a sum in one instruction would be rounded once, not twice.
        enable_fp_fusion=False,
    )
    return out


def _in_words(packed, out, blocks):
    """Do tiles of WORDS words fill the matrix, each within one scale of the scales?"""
    numbers, fitting = out.numel(), 8 * WORDS
    return (
        numbers % fitting == 0
        and numbers == 2 * packed.numel()
        and blocks[0] % 8 == 0
        and (blocks[0] * blocks[1]) % fitting == 0
        and packed.is_contiguous()
        and packed.data_ptr() % 4 == 0
    )


@functools.cache
def _kernels():
    """(by bytes, by words): compiled by Triton, which is not installed everywhere."""
    import triton
    from triton import language as tl

    @triton.jit
    def decode_4bit(
        packed,
        absmax,
        outer,
        outer_code,
        offset,
        code,
        out,
        numbers,
        n_scales,
        DOUBLY: tl.constexpr,
        BYTES: tl.constexpr,
        PER_OUTER: tl.constexpr,
        SCALES: tl.constexpr,
    ):
        scale_at = tl.program_id(0) * SCALES + tl.arange(0, SCALES)
        inside = scale_at < n_scales
        scale = tl.load(absmax + scale_at, mask=inside, other=0)
        if DOUBLY:
            scale = tl.load(outer_code + scale.to(tl.int32))
            scale = scale * tl.load(outer + scale_at // PER_OUTER, mask=inside, other=0)
            scale = scale + tl.load(offset)
        at = scale_at[:, None].to(tl.int64) * BYTES + tl.arange(0, BYTES)[None, :]
        byte = tl.load(packed + at, mask=2 * at < numbers, other=0).to(tl.int32)
        high = tl.load(code + (byte >> 4)) * scale[:, None]
        low = tl.load(code + (byte & 15)) * scale[:, None]
        both = tl.interleave(high, low).to(out.dtype.element_ty)
        at = 2 * BYTES * scale_at[:, None].to(tl.int64)
        at += tl.arange(0, 2 * BYTES)[None, :]
        tl.store(out + at, both, mask=at < numbers)

    @triton.jit
    def decode_4bit_words(
        packed,
        absmax,
        outer,
        outer_code,
        offset,
        code,
        out,
        tiles,
        PER_SCALE: tl.constexpr,
        PER_OUTER: tl.constexpr,
        WORDS: tl.constexpr,
        AT_ONCE: tl.constexpr,
    ):
        first = tl.program_id(0) * AT_ONCE
        words = ()
        scales = ()
        for step in tl.static_range(AT_ONCE):
            tile = tl.minimum(first + step, tiles - 1).to(tl.int64)  # the last again
            at = tile * WORDS + tl.arange(0, WORDS)
            words = words + (tl.load(packed + at),)  # noqa: RUF005, Triton has no stars
            scale = tl.load(outer_code + tl.load(absmax + at // PER_SCALE).to(tl.int32))
            scale = scale * tl.load(outer + tile * WORDS // (PER_SCALE * PER_OUTER))
            scales = scales + (scale + tl.load(offset),)  # noqa: RUF005
        for step in tl.static_range(AT_ONCE):
            word = words[step]
            scale = scales[step]
            # Of each byte the upper half comes first.
            n0 = tl.load(code + ((word >> 4) & 15)) * scale
            n1 = tl.load(code + (word & 15)) * scale
            n2 = tl.load(code + ((word >> 12) & 15)) * scale
            n3 = tl.load(code + ((word >> 8) & 15)) * scale
            n4 = tl.load(code + ((word >> 20) & 15)) * scale
            n5 = tl.load(code + ((word >> 16) & 15)) * scale
            n6 = tl.load(code + ((word >> 28) & 15)) * scale
            n7 = tl.load(code + ((word >> 24) & 15)) * scale
            even = tl.join(tl.join(n0, n4), tl.join(n2, n6))
            odd = tl.join(tl.join(n1, n5), tl.join(n3, n7))
            numbers = tl.join(even, odd).to(out.dtype.element_ty)
            tile = tl.minimum(first + step, tiles - 1).to(tl.int64)
            to = tl.multiple_of(tile * (8 * WORDS), 64)
            numbers = tl.reshape(numbers, (WORDS * 8,))
            tl.store(out + (to + tl.arange(0, WORDS * 8)), numbers)

    return decode_4bit, decode_4bit_words
