"""LoRA layers as one step: frozen product and low-rank branch together.

Knows: PEFT's plain LoRA layers over nn.Linear and bitsandbytes' Linear4bit. Does not
know: training, or any other kind of adapter, which keep PEFT's own forward.

PEFT computes W x, then B (A x), scales it and adds it: three passes over the output in
each direction, and under autocast in 16 bit two copies of x in fp32. Here the branch is
added inside the second product, x is kept once and in the precision that computes, and
the scaling falls on the r numbers a token between A and B.
"""

import bitsandbytes
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

from course_utils.fast import nf4


def fused_forward(layer, original_forward, by_triton=False):
    """A forward for a LoRA layer, or None if its kind cannot be fused.

    layer: any module. original_forward: what the new forward calls whenever the layer
        is in a state that needs PEFT's own: switched off, merged, several adapters,
        dropout, mixed precisions. by_triton: decode 4 bit by nf4.decode, not by
        bitsandbytes.
    """
    if type(layer) is not LoraLinear and type(layer) is not LoraLinear4bit:
        return None
    base = layer.base_layer
    four_bit = type(base) is bitsandbytes.nn.Linear4bit
    if not four_bit and type(base) is not torch.nn.Linear:
        return None
    if base.weight.requires_grad or getattr(layer, "fan_in_fan_out", False):
        return None

    def forward(x, *args, **kwargs):
        adapter = _only_adapter(layer)
        if args or kwargs or adapter is None:
            return original_forward(x, *args, **kwargs)
        low, up = layer.lora_A[adapter], layer.lora_B[adapter]
        dtype = _computing_dtype(x, base, low, four_bit)
        if dtype is None or low.bias is not None or up.bias is not None:
            return original_forward(x)
        return _FusedLora.apply(
            x.to(dtype),
            low.weight,
            up.weight,
            layer.scaling[adapter],
            base.weight,
            base.bias,
            base.weight.quant_state if four_bit else None,
            by_triton,
        )

    return forward


def _only_adapter(layer):
    """The one plain adapter that is at work, or None."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return None
    adapter = layer.active_adapters[0]
    if adapter not in layer.lora_A or adapter in layer.lora_variant:
        return None
    dropout = layer.lora_dropout[adapter]
    if isinstance(dropout, torch.nn.Dropout) and dropout.training and dropout.p > 0:
        return None
    return adapter


def _computing_dtype(x, base, low, four_bit):
    """The one precision in which base and branch compute, or None if they differ."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = x.dtype
        if low.weight.dtype != dtype:
            return None
    if not four_bit:
        same = base.weight.dtype == dtype or torch.is_autocast_enabled(kind)
        return dtype if same else None
    state = base.weight.quant_state
    if state is None or getattr(state, "packing_format_for_cpu", False):
        return None
    return dtype if base.compute_dtype == dtype else None


# PyTorch's addmm leaves its operands alone, so a compiler copies the sum's first one.
# An operation that says what it changes needs no copy.
@torch.library.custom_op("course_utils::add_product_", mutates_args=("out",))
def add_product_(out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """out += left @ right, in place. out: (n, m); left: (n, k); right: (k, m)."""
    out.addmm_(left, right)


# One operation, so that a compiler cannot keep the unpacked matrix for backward.
@torch.library.custom_op("course_utils::add_4bit_product_", mutates_args=("out",))
def add_4bit_product_(
    out: torch.Tensor,
    left: torch.Tensor,
    packed: torch.Tensor,
    scales: list[torch.Tensor],
    blocks: list[int],
    kind: str,
    code: torch.Tensor,
    shape: list[int],
    dtype: torch.dtype,
    transposed: bool,
    by_triton: bool,
) -> None:
    """out += left @ W, or left @ W.T, in place, for a W in 4 bit.

    packed, scales, blocks, kind, code, shape, dtype: W as `_packed` takes it apart.
    """
    if by_triton:
        weight = nf4.decode(packed, scales, blocks, code, shape, dtype)
    else:
        weight = _decoded(packed, scales, blocks, kind, shape, dtype)
    weight = weight.to(out.dtype)
    out.addmm_(left, weight.t() if transposed else weight)


def _decoded(packed, scales, blocks, kind, shape, dtype):
    """As nf4.decode, by bitsandbytes."""
    absmax = scales[0]
    if len(scales) > 1:
        absmax = torch.ops.bitsandbytes.dequantize_blockwise(
            absmax, scales[1], scales[2], blocks[1], torch.float32
        )
        absmax += scales[3]
    return torch.ops.bitsandbytes.dequantize_4bit(
        packed, absmax, blocks[0], kind, shape, dtype
    )


def _packed(weight, state):
    """A bitsandbytes weight in 4 bit as plain arguments of an operation.

    Returns: (bytes, [absmax] or, where that is quantised as well, [its bytes, their
    absmax, code, offset], block sizes, "nf4" or "fp4", what its 16 values mean, shape,
    dtype).
    """
    scales, blocks = [state.absmax], [state.blocksize]
    if state.nested:
        scales += [state.state2.absmax, state.state2.code, state.offset]
        blocks.append(state.state2.blocksize)
    shape = list(state.shape)
    return weight, scales, blocks, state.quant_type, state.code, shape, state.dtype


class _FusedLora(torch.autograd.Function):
    """x W' + scaling (x A') B', with gradients for x, A and B.

    The small product comes first and the large one is added to it. The other way round
    the large one would be rounded to 16 bit before an adapter's change, far smaller
    than its last bit at the start of training, were added, and lost.
    """

    @staticmethod
    def forward(ctx, x, low, up, scaling, weight, bias, quant_state, by_triton):
        kind = x.device.type
        with torch.autocast(kind, enabled=False):
            flat = x.flatten(0, -2)  # (tokens, in)
            a, b = low.to(x.dtype), up.to(x.dtype)
            between = (flat @ a.t()).mul_(scaling)  # (tokens, r)
            out = between @ b.t()
            if bias is not None:
                out += bias.to(x.dtype)
            if quant_state is None:
                add_product_(out, flat, weight.to(x.dtype).t())
            else:
                packed = _packed(weight, quant_state)
                add_4bit_product_(out, flat, *packed, True, by_triton)
        ctx.by_triton = by_triton
        ctx.save_for_backward(flat, between, low, up, weight)
        ctx.scaling, ctx.quant_state, ctx.shape = scaling, quant_state, x.shape
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad):
        flat, between, low, up, weight = ctx.saved_tensors
        dtype = flat.dtype
        grad = grad.flatten(0, -2).to(dtype)
        a, b = low.to(dtype), up.to(dtype)
        grad_between = (grad @ b).mul_(ctx.scaling)
        grad_x = grad_low = grad_up = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_between @ a
            if ctx.quant_state is None:
                add_product_(grad_x, grad, weight.to(dtype))
            else:
                packed = _packed(weight, ctx.quant_state)
                add_4bit_product_(grad_x, grad, *packed, False, ctx.by_triton)
            grad_x = grad_x.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_low = (grad_between.t() @ flat).to(low.dtype)
        if ctx.needs_input_grad[2]:
            grad_up = (grad.t() @ between).to(up.dtype)
        return grad_x, grad_low, grad_up, None, None, None, None, None
