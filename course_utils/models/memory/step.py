"""The peak of a training step: which phase is the fullest, and what fills it."""

from typing import NamedTuple

from transformers import PretrainedConfig

from course_utils.models.memory import activations, weights
from course_utils.models.memory.settings import Settings

GIB = 2**30
# PyTorch's default for cuBLAS: 32 MiB on Hopper, about 8 on other cards.
CUBLAS_BYTES = 32 * 2**20


class Prediction(NamedTuple):
    """What a step takes when it takes most.

    parts: {part: bytes} at that moment. phase: "loss" (forward done, the loss's
    backward running) or "layer" (backward in a decoder layer). phases: {phase: bytes}.
    """

    parts: dict
    phase: str
    phases: dict

    @property
    def peak_gib(self) -> float:
        return sum(self.parts.values()) / GIB

    def gib(self) -> dict[str, float]:
        """{part: GiB}."""
        return {part: size / GIB for part, size in self.parts.items()}

    def in_five(self) -> dict[str, float]:
        """{part: GiB} for `plots.stacked_gib`, which has colours for five parts."""
        size = self.gib()
        groups = {
            "layers' weights": ("weights", "quant state"),
            "embeddings and head": ("embeddings and head",),
            "adapter, its training": ("adapter", "gradients", "optimizer"),
            "activations": ("activations", "working buffers"),
            "logits": ("logits",),
        }
        return {name: sum(size[p] for p in parts) for name, parts in groups.items()}


def predict(config: PretrainedConfig, settings: Settings) -> Prediction:
    """Prediction of a training step's peak, as torch.cuda.max_memory_allocated counts.

    config: a LlamaConfig, or anything with its fields. settings: memory.Settings.

    In the loss's phase the activations of all layers are there, and the logits; in a
    layer's phase the logits are gone, and backward's own tensors come. Gradients of an
    earlier micro-batch are there in either, if accumulation > 1.
    """
    static = weights.static_bytes(config, settings)
    trained = weights.adapter_weights(config, settings)
    accumulated = settings.accumulation > 1 and settings.trainer == "stock"
    static["gradients"] = 4 * trained if accumulated else 0
    kept = activations.stack_bytes(config, settings)
    head, head_adds = activations.head_bytes(config, settings)
    layer_adds = activations.backward_bytes(config, settings)
    fast = settings.trainer == "fast"
    phases = {
        "loss": {
            "activations": kept,
            "logits": head + head_adds,
            "working buffers": CUBLAS_BYTES,
        },
        # The fast trainer runs a window's rows one after another: gradients of earlier
        # rows are there when the last runs.
        "layer": {
            "activations": kept,
            "logits": head if fast else 0,
            "working buffers": layer_adds + CUBLAS_BYTES,
        },
    }
    if fast:
        static["gradients"] = 4 * trained
    sizes = {
        name: sum(static.values()) + sum(parts.values())
        for name, parts in phases.items()
    }
    phase = max(sizes, key=sizes.get)
    return Prediction(static | phases[phase], phase, sizes)
