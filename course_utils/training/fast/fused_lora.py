"""LoRA layers as one step: frozen product and low-rank branch together.

PEFT computes W x, then B (A x), scales it and adds it: three passes over the output in
each direction, and under autocast in 16 bit two copies of x in fp32. Here the branch is
added inside the second product, x is kept once and in the precision that computes, the
scaling falls on the r numbers per token between A and B, and where A and B are float32
beside 16-bit arithmetic they are rounded for a row at once, not at every product.
"""

from collections.abc import Callable

import bitsandbytes
import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit

from course_utils.training.fast import lora_ops


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
            between, fused = lora_ops.lora_between, lora_ops.fused_lora
        else:
            between, fused = lora_ops.between_product, lora_ops.plain_fused_lora
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
            *lora_ops.packed_arguments(
                base.weight, base.weight.quant_state if four_bit else None
            ),
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
