"""The switches of the fast trainer, and which of them this machine can use."""

import importlib.util
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class FastTrainingConfig:
    """What makes PackedORPOTrainer fast, one switch each. None changes the loss.

    shared_prefix: read what chosen and rejected have in common once, not twice.
    packing: put all pairs of an optimizer step into rows of token_budget tokens. Off:
        one pair a row.
    token_budget: tokens of a row; memory grows with it. A longer pair gets a row of its
        own. "auto": the largest of BUDGETS whose activations the GPU has room for.
    head_tile: rows of logits held at a time, only for scored tokens, their gradient
        computed in the same pass. None: all logits of a row at once, as TRL does.
    embeddings_on_cpu: the input embeddings stay in the CPU's memory, and the rows that
        are needed travel with the token ids. True, False or "auto".
    fused_lora: a LoRA layer as one step that keeps its input once.
    triton_decode: 4-bit weights of fused LoRA layers are decoded by one Triton kernel,
        instead of bitsandbytes' three. True, False or "auto".
    attention: "varlen" (flash attention over sequences of different lengths), "flex"
        (FlexAttention, which skips what the mask forbids), "sdpa" (one call per pair),
        or "auto".
    compile_layers: torch.compile each decoder layer, and what the head does with a tile
        of logits; True, False, the name of a backend, or "auto".
    cuda_graphs: record forward and backward of a row once for each length, and replay
        them: thousands of kernels with one launch. Rows are padded to a multiple of
        graphs.TOKENS. True, False or "auto".
    activation_gib: GiB that decoder layers may fill with what backward needs. As many
        layers as fit keep it, the others compute it again. "auto": what the calculator
        of notebook 03 leaves of the GPU. None: follow the configuration's
        gradient_checkpointing, all layers or none; "auto" does so without a GPU.
    deferred_metrics: leave metrics on the device until they are logged. The Trainer
        itself still waits at every step unless logging_nan_inf_filter is off.
    run_ahead: let the CPU prepare a step while the GPU works on the one before: batches
        are copied without waiting, and bitsandbytes' optimizers, which wait for the GPU
        after each of the adapter's tensors, and where they fetch paged state, do not
        wait.
    """

    shared_prefix: bool = True
    packing: bool = True
    token_budget: int | str = 4096
    head_tile: int | None = 512
    embeddings_on_cpu: bool | str = "auto"
    fused_lora: bool = True
    triton_decode: bool | str = "auto"
    attention: str = "auto"
    compile_layers: bool | str = "auto"
    cuda_graphs: bool | str = "auto"
    activation_gib: float | str | None = None
    deferred_metrics: bool = True
    run_ahead: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(field, getattr(self, field.name))
        for name in ("token_budget", "head_tile"):
            value = getattr(self, name)
            if value is None or (name == "token_budget" and value == "auto"):
                continue
            if isinstance(value, str) or value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}.")
        if self.attention not in ("auto", "varlen", "flex", "sdpa"):
            raise ValueError(
                "attention must be 'auto', 'varlen', 'flex' or 'sdpa', got "
                f"{self.attention!r}."
            )
        if self.activation_gib in (None, "auto"):
            return
        if not 0 <= self.activation_gib < math.inf:
            raise ValueError(
                f"activation_gib must be >= 0, got {self.activation_gib}: it is the "
                "memory for activations, 0 lets every layer compute them again."
            )


def _require_type(field, value):
    """Raise ValueError unless a value is of the types that a field's annotation names.

    Of strings only "auto" counts, but for attention and the names of compilers.
    """
    allowed = typing.get_args(field.type) or (field.type,)
    if float in allowed:
        allowed = (*allowed, int)
    named = field.name in ("attention", "compile_layers")
    # A bool is an int to Python, and not to a reader.
    fits = type(value) in allowed and (
        not isinstance(value, str) or value == "auto" or named
    )
    if not fits:
        words = {bool: "true or false", int: "a whole number", float: "a number"}
        words |= {str: "a name" if named else "'auto'", type(None): "null"}
        wanted = " or ".join(dict.fromkeys(words[kind] for kind in allowed))
        raise ValueError(f"{field.name} must be {wanted}, got {value!r}.")


BUDGETS = (8192, 6144, 4096)  # what token_budget="auto" chooses from


def choose_token_budget(
    wanted: int | str, spare_gib: Callable[[int], float], device: torch.device
) -> tuple[int, str]:
    """(tokens of a row, reason).

    wanted: FastTrainingConfig.token_budget. spare_gib: from tokens to the GiB that the
        GPU has left if every layer keeps the activations of such a row; 0 if it has too
        little. Fewer rows per step decode the weights fewer times.
    """
    if wanted != "auto":
        return wanted, "as asked"
    if device.type != "cuda":
        return BUDGETS[-1], "there is no CUDA GPU whose memory could be filled"
    for tokens in BUDGETS:
        spare = spare_gib(tokens)
        if spare > 0:
            return tokens, f"leaves {spare:.1f} GiB with all activations kept"
    return BUDGETS[-1], "the smallest: no budget leaves room for all activations"


def choose_attention(
    wanted: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, str]:
    """Which attention to use on a device: ("varlen", "flex" or "sdpa", reason).

    wanted: FastTrainingConfig.attention. dtype: in which attention computes.
    Raises: ValueError if this device or dtype cannot do what is asked for.
    """
    if wanted == "sdpa":
        return wanted, "as asked"
    if device.type != "cuda":
        if wanted != "auto":
            raise ValueError(
                f"attention={wanted!r} needs a CUDA GPU, this device is {device.type}: "
                "it has no backward pass elsewhere. Use 'auto'."
            )
        return "sdpa", "one call per pair; the others train on CUDA only"
    if wanted == "varlen" and dtype not in SIXTEEN_BIT:
        raise ValueError(
            f"attention='varlen' computes in 16 bit, this training in {dtype}: set "
            "bf16 or fp16 in the configuration, or use 'flex'."
        )
    if wanted != "auto":
        return wanted, "as asked"
    capability = torch.cuda.get_device_capability(device)
    has_triton = importlib.util.find_spec("triton") is not None
    return _fitting_attention(capability, has_triton, dtype)


SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def _fitting_attention(capability, has_triton, dtype):
    if capability < (8, 0):
        shown = ".".join(map(str, capability))
        return "sdpa", f"the others want capability 8.0, this GPU has {shown}"
    if dtype in SIXTEEN_BIT:
        return "varlen", "flash attention, one call per row"
    if not has_triton:
        return "sdpa", "triton is not installed, so FlexAttention has no kernel"
    return "flex", f"flash attention has no kernel for {dtype}"


def choose_compile(
    wanted: str | bool, attention: str, device: torch.device
) -> tuple[str | bool, str]:
    """Whether to compile decoder layers: (False, True or a backend's name, reason).

    Raises: ValueError if compiling is asked for together with "sdpa".
    """
    if wanted == "auto":
        if attention == "sdpa" or device.type != "cuda":
            return False, "pays on a GPU with one attention call per row only"
        if importlib.util.find_spec("triton") is None:
            return False, "triton is not installed, so there is no compiler"
        return True, "fewer and fuller kernels"
    if wanted and attention == "sdpa":
        raise ValueError(
            "compile_layers needs attention='varlen' or 'flex': with 'sdpa' every row "
            "has other lengths, and each would be compiled anew."
        )
    return wanted, "as asked"


def choose_decode(wanted: str | bool, device: torch.device) -> tuple[bool, str]:
    """Whether Triton decodes 4-bit weights: (bool, reason); see _unless."""
    obstacles = {
        "there is no CUDA GPU": device.type != "cuda",
        "triton is not installed": importlib.util.find_spec("triton") is None,
    }
    return _unless(obstacles, wanted, "triton_decode", "one pass over a matrix")


def compile_backend(chosen: str | bool) -> str | None:
    """The name of torch.compile's backend for what choose_compile returned, or None."""
    return "inductor" if chosen is True else chosen or None


def choose_graphs(
    wanted: str | bool, attention: str, obstacles: dict[str, bool]
) -> tuple[bool, str]:
    """Whether to replay rows as CUDA graphs: (bool, reason); see _unless."""
    obstacles = {
        f"attention={attention!r} makes its masks anew for every row": (
            attention != "varlen"
        ),
        **obstacles,
    }
    return _unless(obstacles, wanted, "cuda_graphs", "one launch a row")


def choose_cpu_embedding(
    wanted: str | bool, obstacles: dict[str, bool]
) -> tuple[bool, str]:
    """Whether the input embeddings stay on the CPU: (bool, reason); see _unless."""
    return _unless(
        obstacles, wanted, "embeddings_on_cpu", "training only looks rows of them up"
    )


def _unless(obstacles, wanted, name, gain):
    """(bool, reason) for a lever that obstacles keep from being pulled.

    obstacles: {reason: does it apply?} wanted: the lever's value. gain: the reason if
    it is pulled. Raises: ValueError if it is asked for and an obstacle applies.
    """
    reasons = "; ".join(reason for reason, applies in obstacles.items() if applies)
    if not wanted:
        return False, "as asked"
    if reasons and wanted is True:
        raise ValueError(f"{name}=True cannot be: {reasons}.")
    if reasons:
        return False, reasons
    return True, "as asked" if wanted is True else gain
