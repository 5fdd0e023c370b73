"""A matrix in 4 bit, decoded by one kernel.

bitsandbytes decodes a doubly quantised matrix by three kernels: the scales, their
offset, then the matrix, at about half of what the memory of an H100 can deliver. Here
one kernel reads each byte once and writes its two numbers side by side.
"""

import functools

import torch

BYTES, WARPS = 2048, 4  # that a program decodes, 16 a thread, and that decode them


def decode(packed, scales, blocks, code, shape, dtype):
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
    count = absmax.numel()
    at_once = max(1, BYTES // per_scale)
    _kernel()[(-(-count // at_once),)](
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


@functools.cache
def _kernel():
    """Compiled by Triton, which is not installed everywhere."""
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

    return decode_4bit
