"""The fast trainer's levers: what each one is, and which ones this machine can pull.

Knows: names, defaults, what needs which hardware. Does not know: how a lever works.
"""

import importlib.util
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Levers:
    """What makes PackedORPOTrainer fast, one switch each. None changes the loss.

    shared_prefix: read what chosen and rejected have in common once, not twice.
    packing: put all pairs of an optimizer step into rows of token_budget tokens. Off:
        one pair a row.
    token_budget: tokens of a row; memory grows with it. A longer pair gets a row of its
        own.
    head_tile: rows of logits held at a time, only for scored tokens, their gradient
        computed in the same pass. None: all logits of a row at once, as TRL does.
    fused_lora: a LoRA layer as one step that keeps its input once.
    attention: "flex" (FlexAttention, which skips what the mask forbids), "sdpa" (one
        call a pair), or "auto".
    compile_layers: torch.compile each decoder layer; True, False, the name of a
        backend, or "auto".
    activation_gib: GiB that decoder layers may fill with what backward needs. As many
        layers as fit keep it, the others compute it again. None: follow the
        configuration's gradient_checkpointing, all layers or none.
    deferred_metrics: leave metrics on the device until they are logged. The Trainer
        itself still waits at every step unless logging_nan_inf_filter is off.
    """

    shared_prefix: bool = True
    packing: bool = True
    token_budget: int = 4096
    head_tile: int | None = 512
    fused_lora: bool = True
    attention: str = "auto"
    compile_layers: bool | str = "auto"
    activation_gib: float | None = None
    deferred_metrics: bool = True

    def __post_init__(self):
        for name in ("token_budget", "head_tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if self.attention not in ("auto", "flex", "sdpa"):
            raise ValueError(
                f"attention must be 'auto', 'flex' or 'sdpa', got {self.attention!r}."
            )
        if self.activation_gib is not None and self.activation_gib < 0:
            raise ValueError(
                f"activation_gib must be >= 0, got {self.activation_gib}: it is the "
                "memory for activations, 0 lets every layer compute them again."
            )


def choose_attention(wanted, device):
    """Which attention to use on a device: ("flex" or "sdpa", reason).

    wanted: Levers.attention.
    Raises: ValueError if "flex" is asked for without a CUDA GPU.
    """
    if wanted == "sdpa":
        return wanted, "as asked"
    if device.type != "cuda":
        if wanted == "flex":
            raise ValueError(
                f"attention='flex' needs a CUDA GPU, this device is {device.type}: "
                "FlexAttention has no backward pass elsewhere. Use 'auto'."
            )
        return "sdpa", "FlexAttention trains on CUDA only"
    if wanted == "flex":
        return wanted, "as asked"
    capability = torch.cuda.get_device_capability(device)
    return _flex_or_sdpa(capability, importlib.util.find_spec("triton") is not None)


def _flex_or_sdpa(capability, has_triton):
    if capability < (8, 0):
        shown = ".".join(map(str, capability))
        return "sdpa", f"FlexAttention wants capability 8.0, this GPU has {shown}"
    if not has_triton:
        return "sdpa", "triton is not installed, so FlexAttention has no kernel"
    return "flex", "one call a row, and forbidden blocks are skipped"


def choose_compile(wanted, attention, device):
    """Whether to compile decoder layers: (False, True or a backend's name, reason).

    Raises: ValueError if compiling is asked for together with "sdpa".
    """
    if wanted == "auto":
        if attention == "flex" and device.type == "cuda":
            return True, "fewer and fuller kernels"
        return False, "pays on a GPU with FlexAttention only"
    if wanted and attention != "flex":
        raise ValueError(
            "compile_layers needs attention='flex': with 'sdpa' every row has other "
            "lengths, and each would be compiled anew."
        )
    return wanted, "as asked"
