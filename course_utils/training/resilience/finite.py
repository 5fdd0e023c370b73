"""Which tensors hold NaN or infinite values."""

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

_WITH_AMINMAX = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor with a NaN or infinite value, or None.

    named: (name, tensor) of any dtype and device; integers are passed over. Of a tensor
        that FSDP shards this process looks at its own part.
    """
    names, extremes = [], []
    for name, tensor in named:
        tensor = own_part(tensor.detach())
        if tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            if tensor.dtype not in _WITH_AMINMAX:  # 8-bit floats
                tensor = tensor.float()
            names.append(name)
            # NaN comes through minimum and maximum, and nothing of the tensor's size
            # is allocated.
            extremes.append(torch.stack(torch.aminmax(tensor)).float())
    by_device = {}
    for place, values in enumerate(extremes):
        by_device.setdefault(values.device, []).append(place)
    broken = []
    for places in by_device.values():  # one wait for each device
        finite = torch.stack([extremes[i] for i in places]).isfinite().all(dim=1)
        broken += [
            i for i, good in zip(places, finite.tolist(), strict=True) if not good
        ]
    return names[min(broken)] if broken else None


def weights(model: torch.nn.Module, *, trained: bool) -> list:
    """[(name, tensor)] of the weights that are trained, or of those that are frozen.

    bitsandbytes' 4-bit weights are bytes; their scales stand for them.
    """
    named = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad == trained:
            state = getattr(parameter, "quant_state", None)
            if state is None:
                named.append((name, parameter))
            else:  # with double quantisation the offset is the mean of all scales
                scales = state.offset if state.nested else state.absmax
                named.append((name, scales))
    return named


def optimizer_state(optimizer: torch.optim.Optimizer | None) -> list:
    """[(name, tensor)] of what an optimizer remembers, such as Adam's moments."""
    return [
        (f"optimizer state {key}", value)
        for values in getattr(optimizer, "state", {}).values()
        for key, value in values.items()
        if torch.is_tensor(value)
    ]


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, or under FSDP this process's part of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
