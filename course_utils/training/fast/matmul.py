"""Matrix products of 16-bit tensors that are rounded once."""

import torch


def scaled(left: torch.Tensor, right: torch.Tensor, scaling: float) -> torch.Tensor:
    """scaling left @ right, (n, m), in one kernel."""
    # With beta=0 nobody reads the first.
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scaling)


def added(
    small_left: torch.Tensor,
    small_right: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """small_left @ small_right + left @ right, (n, m), rounded as a sum; then + bias.

    The small product is rounded before that as well.

    A GPU's addmm_ would add one product to the other, but cuBLAS rounds a 16-bit
    product before it adds to what is there: a change below its last bit is lost (on an
    H200; notebook 07 shows it). With a factor on what is there it adds in float32. So
    the small product is made twice as large and halved again, which is exact.
    """
    out = scaled(small_left, small_right, 2.0)
    out.addmm_(left, right, beta=0.5)
    # Not before: on a bias's coarse grid the small product would be lost again.
    return out if bias is None else out.add_(bias)


def in_dtype(
    left: torch.Tensor, right: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """left @ right in dtype; where that is float32 a GPU does not round in between."""
    if left.is_cuda and dtype == torch.float32 and left.dtype != dtype:
        return torch.mm(left, right, out_dtype=dtype)
    return (left @ right).to(dtype)
