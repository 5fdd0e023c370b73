"""The arithmetic of a fused LoRA layer, as operations that torch.compile may call.

x W' + scaling (x A') B', with gradients for x, A and B.

At the start of training an adapter's change is far below the last bit of the product it
is added to: the sum must be rounded, not the product before it (matmul.added).

lora_A and lora_B are A and B as they are trained; lora_A_cast and lora_B_cast are the
same in x's dtype. The first two get the gradients, the others are multiplied.
"""

import functools

import torch
from bitsandbytes.functional import QuantState

from course_utils.training.fast import matmul, nf4


def packed_arguments(weight: torch.Tensor, state: QuantState | None) -> tuple:
    """A frozen matrix as plain arguments of an operation.

    weight: in 16 or 32 bit with state None, else bitsandbytes' bytes and quant_state.
    Returns: (weight, [absmax] or, where that is quantised as well, [its bytes, their
    absmax, code, offset], block sizes, "nf4", "fp4" or "", what the 16 values mean,
    shape, dtype); empty and None where there is no state.
    """
    if state is None:
        return weight, [], [], "", None, [], None
    scales, blocks = [state.absmax], [state.blocksize]
    if state.nested:
        scales += [state.state2.absmax, state.state2.code, state.offset]
        blocks.append(state.state2.blocksize)
    shape = list(state.shape)
    return weight, scales, blocks, state.quant_type, state.code, shape, state.dtype


def _unpacked(by_triton, weight, scales, blocks, kind, code, shape, dtype):
    """The matrix that `packed_arguments` took apart; its results come last."""
    if not kind:
        return weight
    if by_triton:
        return nf4.decode(weight, scales, blocks, code, shape, dtype)
    absmax = scales[0]
    if len(scales) > 1:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, scales[1], scales[2], blocks[1], torch.float32
        )
        absmax += scales[3]
    return torch.ops.bitsandbytes.dequantize_4bit(
        weight, absmax, blocks[0], kind, shape, dtype
    )


def between_product(
    x: torch.Tensor, lora_A_cast: torch.Tensor, scaling: float
) -> torch.Tensor:
    """scaling x A', (tokens, r), a step of its own, which no gradient passes through.

    Its layer may have to run again for backward just to have it.
    """
    with torch.autocast(x.device.type, enabled=False):
        return matmul.scaled(x.flatten(0, -2), lora_A_cast.t(), scaling)


def _forward(
    x,
    between,
    lora_A,
    lora_B,
    lora_A_cast,
    lora_B_cast,
    scaling,
    bias,
    by_triton,
    *packed,
):
    """The layer's output, (..., out)."""
    with torch.autocast(x.device.type, enabled=False):
        weight = _unpacked(by_triton, *packed).to(x.dtype)
        flat = x.flatten(0, -2)
        out = matmul.added(between, lora_B_cast.t(), flat, weight.t(), bias)
    return out.view(*x.shape[:-1], -1)


def _backward(
    grad,
    x,
    between,
    lora_A,
    lora_B,
    lora_A_cast,
    lora_B_cast,
    scaling,
    by_triton,
    *packed,
):
    """Gradients of x, lora_A and lora_B."""
    flat, grad = x.flatten(0, -2), grad.flatten(0, -2).to(x.dtype)
    grad_between = matmul.scaled(grad, lora_B_cast, scaling)
    weight = _unpacked(by_triton, *packed).to(x.dtype)
    grad_x = matmul.added(grad_between, lora_A_cast, grad, weight)
    del weight
    grad_lora_A = matmul.in_dtype(grad_between.t(), flat, lora_A.dtype)
    grad_lora_B = matmul.in_dtype(grad.t(), between, lora_B.dtype)
    return grad_x.view(x.shape), grad_lora_A, grad_lora_B


class _FusedLora(torch.autograd.Function):
    """_forward and _backward as they are."""

    @staticmethod
    def forward(
        ctx,
        x,
        between,
        lora_A,
        lora_B,
        lora_A_cast,
        lora_B_cast,
        scaling,
        bias,
        by_triton,
        weight,
        *packed,
    ):
        tensors = x, between, lora_A, lora_B, lora_A_cast, lora_B_cast
        ctx.save_for_backward(*tensors, weight)
        ctx.scaling, ctx.by_triton, ctx.packed = scaling, by_triton, packed
        return _forward(*tensors, scaling, bias, by_triton, weight, *packed)

    @staticmethod
    def backward(ctx, grad):
        *tensors, weight = ctx.saved_tensors
        grad_x, grad_lora_A, grad_lora_B = _backward(
            grad, *tensors, ctx.scaling, ctx.by_triton, weight, *ctx.packed
        )
        return grad_x, None, grad_lora_A, grad_lora_B, *[None] * (2 + 3 + 7)


plain_fused_lora = _FusedLora.apply

_TENSORS = (
    "Tensor x, Tensor between, Tensor lora_A, Tensor lora_B, Tensor lora_A_cast, "
    "Tensor lora_B_cast"
)
_PACKED = (
    "Tensor weight, Tensor[] scales, int[] blocks, str kind, Tensor? code, "
    "int[] shape, ScalarType? dtype"
)
lora_between = torch.library.custom_op(
    "course_utils::lora_between",
    between_product,
    mutates_args=(),
    schema="(Tensor x, Tensor lora_A_cast, float scaling) -> Tensor",
)
fused_lora = torch.library.custom_op(
    "course_utils::fused_lora",
    _forward,
    mutates_args=(),
    schema=f"({_TENSORS}, float scaling, Tensor? bias, bool by_triton, {_PACKED}) "
    "-> Tensor",
)
fused_lora_backward = torch.library.custom_op(
    "course_utils::fused_lora_backward",
    _backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, float scaling, bool by_triton, {_PACKED}) "
    "-> (Tensor, Tensor, Tensor)",
)


@lora_between.register_fake
def _(x, lora_A_cast, scaling):
    return x.new_empty(x.flatten(0, -2).shape[0], lora_A_cast.shape[0])


@fused_lora.register_fake
def _(x, between, lora_A, lora_B, *_):
    return x.new_empty(*x.shape[:-1], lora_B.shape[0])


@fused_lora_backward.register_fake
def _(grad, x, between, lora_A, lora_B, *_):
    return tuple(
        torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor in (x, lora_A, lora_B)
    )


def _keep_for_backward(ctx, inputs, output):
    *tensors, ctx.scaling, _, ctx.by_triton, weight, scales = inputs[:11]
    ctx.blocks, ctx.kind, code, ctx.shape, ctx.dtype = inputs[11:]
    ctx.save_for_backward(*tensors, weight, code, *scales)


@functools.partial(fused_lora.register_autograd, setup_context=_keep_for_backward)
def _(ctx, grad):
    *tensors, weight, code = ctx.saved_tensors[:8]
    scales = list(ctx.saved_tensors[8:])
    grad_x, grad_lora_A, grad_lora_B = fused_lora_backward(
        grad,
        *tensors,
        ctx.scaling,
        ctx.by_triton,
        weight,
        scales,
        ctx.blocks,
        ctx.kind,
        code,
        ctx.shape,
        ctx.dtype,
    )
    # For lists PyTorch wants a list of as many as there are tensors in it.
    of_scales = [None] * len(scales)
    of_blocks, of_shape = (None if values else [] for values in (ctx.blocks, ctx.shape))
    return (
        grad_x,
        None,
        grad_lora_A,
        grad_lora_B,
        *[None] * 5,
        None,
        of_scales,
        of_blocks,
        None,
        None,
        of_shape,
        None,
    )
