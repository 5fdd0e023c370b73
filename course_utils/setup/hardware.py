"""This machine: its GPU, cores and memory, and whether the hub answers it."""

import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from course_utils.setup import threads

BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Hardware:
    """What a machine has. GPU fields are of the first CUDA device, or None."""

    cuda: bool
    gpu_name: str | None
    capability: tuple | None
    gpu_memory_gib: float | None
    cores: int
    ram_gib: float

    def __str__(self) -> str:
        machine = f"{self.cores} CPU cores, {self.ram_gib:.0f} GiB RAM"
        if not self.cuda:
            return f"{machine}, no CUDA GPU"
        capability = ".".join(map(str, self.capability))
        return (
            f"{self.gpu_name} ({self.gpu_memory_gib:.1f} GiB, compute capability "
            f"{capability}), {machine}"
        )


def probe() -> Hardware:
    """The Hardware of this machine. Imports torch."""
    import psutil
    import torch

    cores = threads.usable_cores()
    gpu = {"cuda": False, "gpu_name": None, "capability": None, "gpu_memory_gib": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "cuda": True,
            "gpu_name": properties.name,
            "capability": (properties.major, properties.minor),
            "gpu_memory_gib": properties.total_memory / 2**30,
        }
    return Hardware(cores=cores, ram_gib=psutil.virtual_memory().total / 2**30, **gpu)


def has_bf16(hardware: Hardware) -> bool:
    """Does the GPU compute in bf16?

    torch.cuda.is_bf16_supported() also says yes where bf16 is emulated, as on a T4.
    """
    return bool(hardware.cuda) and tuple(hardware.capability) >= BF16_CAPABILITY


def attention_implementation(
    capability: tuple[int, int] | None, flash_available: bool
) -> tuple[str, str]:
    """Which attention to ask transformers for, and why.

    capability: the GPU's compute capability, such as (8, 9), or None without one.
    flash_available: is flash-attn 2 installed?
    Returns: (name for attn_implementation, reason).
    """
    if capability is None:
        return "sdpa", "no CUDA GPU: PyTorch's own attention"
    if tuple(capability) < (8, 0):
        shown = ".".join(map(str, capability))
        return "sdpa", f"FlashAttention 2 needs capability 8.0, this GPU has {shown}"
    if not flash_available:
        return "sdpa", "flash-attn is not installed; PyTorch's SDPA is fused as well"
    return "flash_attention_2", "flash-attn is installed and the GPU can run it"


def is_offline(environ: Mapping[str, str] | None = None, timeout: float = 2.0) -> bool:
    """Is the hub out of reach: told so by HF_HUB_OFFLINE, or no answer to one request?

    environ: where HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE and HF_ENDPOINT are looked up.
    timeout: seconds to wait in all, name look-up included.
    """
    environ = os.environ if environ is None else environ
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE"):
            return True
    endpoint = environ.get("HF_ENDPOINT", "").strip() or "https://huggingface.co"
    answered = []

    def ask():
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                answered.append(True)
        except urllib.error.HTTPError as error:
            # A hub answers even an unwanted HEAD; a proxy that bars it says 403 or 407.
            answered.append(error.code not in (403, 407) and error.code < 500)
        except (OSError, ValueError):
            answered.append(False)

    # urlopen's timeout does not cover a slow name look-up: hence a thread, left to die.
    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(timeout)
    return answered != [True]


def stay_offline(environ: MutableMapping[str, str] | None = None) -> None:
    """Tell the Hugging Face libraries to leave the network alone.

    environ: gets HF_HUB_OFFLINE and HF_HUB_DISABLE_TELEMETRY. Without them, TRL reports
        each trainer it builds to the hub, even where model and data are local files.
    Where huggingface_hub was imported before, and has read both, they are set there.
    """
    environ = os.environ if environ is None else environ
    environ.update(dict.fromkeys(("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"), "1"))
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:
            sys.modules[module].HF_HUB_OFFLINE = True
            sys.modules[module].HF_HUB_DISABLE_TELEMETRY = True
