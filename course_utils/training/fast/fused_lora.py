"""LoRA layers as one step: frozen product and low-rank branch together.

PEFT computes W x, then B (A x), scales it and adds it: three passes over the output in
each direction, and under autocast in 16 bit two copies of x in fp32. Here the branch is
added inside the second product, x is kept once and in the precision that computes, the
scaling falls on the r numbers per token between A and B, and where A and B are float32
beside 16-bit arithmetic they are rounded for a row at once, not at every product.
"""

import functools
from collections.abc import Callable

import bitsandbytes
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

from course_utils.training.fast import matmul, nf4


class RoundedAdapters:
    """Float32 adapters' matrices in the dtype of autocast, made for one row.

    Autocast rounds a matrix each time it is multiplied, in forward and in backward, by
    two kernels a layer. A copy is right until an optimizer steps, so layers read theirs
    from `refresh` to `forget` only, during forward; autograd keeps them for backward.
    """

    def __init__(self) -> None:
        self._held = {}  # layer: [] or [A, B], what its forward reads

    def of(self, layer: torch.nn.Module) -> list[torch.Tensor]:
        """The list that holds a layer's rounded A and B while they are right."""
        return self._held.setdefault(layer, [])

    def within(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """The copies that the layers of a module read now."""
        return [copy for m in module.modules() for copy in self._held.get(m, [])]

    @torch.no_grad()
    def refresh(self, device: torch.device) -> None:
        """Round all matrices, if autocast is on for the device."""
        if not torch.is_autocast_enabled(device.type):
            return
        dtype, originals, copies = torch.get_autocast_dtype(device.type), [], []
        for layer, held in self._held.items():
            adapter = _only_adapter(layer)
            if adapter is None:
                continue
            pair = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
            if any(matrix.dtype != torch.float32 for matrix in pair):
                continue
            # New ones: the last row's backward may be to come.
            held[:] = [torch.empty_like(matrix, dtype=dtype) for matrix in pair]
            originals += pair
            copies += held
        if copies:
            torch._foreach_copy_(copies, originals)

    def forget(self) -> None:
        """Take the copies away, before anything changes their originals."""
        for held in self._held.values():
            held.clear()


def fused_forward(
    layer: torch.nn.Module,
    original_forward: Callable,
    by_triton: bool = False,
    rounded: RoundedAdapters | None = None,
) -> Callable | None:
    """A forward for a LoRA layer, or None if its kind cannot be fused.

    layer: any module. original_forward: what the new forward calls whenever the layer
        is in a state that needs PEFT's own: switched off, merged, several adapters,
        dropout, mixed precisions. by_triton: decode 4 bit by nf4.decode, not by
        bitsandbytes. rounded: RoundedAdapters, if somebody refreshes them.
    The new forward raises ValueError for 4-bit weights that let no gradient pass.
    """
    if type(layer) is not LoraLinear and type(layer) is not LoraLinear4bit:
        return None
    base = layer.base_layer
    four_bit = type(base) is bitsandbytes.nn.Linear4bit
    if not four_bit and type(base) is not torch.nn.Linear:
        return None
    if any(parameter.requires_grad for parameter in base.parameters()):
        return None
    if getattr(layer, "fan_in_fan_out", False):
        return None
    held = () if rounded is None else rounded.of(layer)

    def forward(x, *args, **kwargs):
        if four_bit and torch.is_grad_enabled():
            _require_gradients_to_pass(base)
        adapter = _only_adapter(layer)
        if args or kwargs or adapter is None:
            return original_forward(x, *args, **kwargs)
        lora_A, lora_B = layer.lora_A[adapter], layer.lora_B[adapter]
        dtype = _computing_dtype(x, base, lora_A, four_bit)
        if dtype is None or lora_A.bias is not None or lora_B.bias is not None:
            return original_forward(x)
        x = x.to(dtype)
        lora_A, lora_B, scaling = lora_A.weight, lora_B.weight, layer.scaling[adapter]
        lora_A_cast, lora_B_cast = held or (
            m.detach().to(dtype) for m in (lora_A, lora_B)
        )
        # A compiler need not look inside; PyTorch 2.11's would keep for backward what
        # it finds there, also in a layer that is to run again.
        if torch.compiler.is_compiling():
            between, fused = lora_between, fused_lora
        else:
            between, fused = _between, _FusedLora.apply
        return fused(
            x,
            between(x.detach(), lora_A_cast, scaling),
            lora_A,
            lora_B,
            lora_A_cast,
            lora_B_cast,
            scaling,
            base.bias,
            by_triton,
            *_packed(base.weight, base.weight.quant_state if four_bit else None),
        )

    return forward


def _require_gradients_to_pass(base):
    """ValueError if bitsandbytes has made a Linear4bit one for inference alone.

    bitsandbytes 0.50 does so on some CPUs (avx512bf16) when a layer first runs in
    evaluation mode. What it computes from then on autograd does not see: layers below
    would get no gradient through this one, and a warning is all that says so.
    """
    if getattr(base.weight.quant_state, "packing_format_for_cpu", False):
        raise ValueError(
            "bitsandbytes has rearranged this model's 4-bit weights for inference, as "
            "it does on this CPU when a model is evaluated, and gradients no longer "
            "pass through them. Load the model again to train it, and evaluate after "
            "training, or train on a GPU or with weights in 16 or 32 bit."
        )


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


def _computing_dtype(x, base, lora_A, four_bit):
    """The one precision in which base and branch compute, or None if they differ."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    else:
        dtype = x.dtype
        if lora_A.weight.dtype != dtype:
            return None
    if not four_bit:
        same = base.weight.dtype == dtype or torch.is_autocast_enabled(kind)
        return dtype if same else None
    state = base.weight.quant_state
    if state is None or getattr(state, "packing_format_for_cpu", False):
        return None
    return dtype if base.compute_dtype == dtype else None


def _packed(weight, state):
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
    """The matrix that `_packed` took apart; the last six arguments are its results."""
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


# x W' + scaling (x A') B', with gradients for x, A and B.
#
# At the start of training an adapter's change is far below the last bit of the product
# it is added to: the sum must be rounded, not the product before it (matmul.added).
#
# lora_A and lora_B are A and B as they are trained; lora_A_cast and lora_B_cast are the
# same in x's dtype. The first two get the gradients, the others are multiplied.


def _between(x, lora_A_cast, scaling):
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
    _between,
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
