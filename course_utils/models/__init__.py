"""Base models: loading them, counting them, predicting the memory they need.

Modules: `loading`, `shards` (checkpoints written tensor by tensor), `memory` (what
training needs), `random_weights` (a checkpoint of random weights in a known shape).
Knows no data and no training loop.
"""

from course_utils.models.loading import (
    LINEAR_LAYERS,
    ParameterCounts,
    attention_implementation,
    compute_dtype,
    keep_trained_in_fp32,
    load_base,
    nf4_config,
    parameter_counts,
    probe_attention,
    resolve_model,
)

__all__ = [
    "LINEAR_LAYERS",
    "ParameterCounts",
    "attention_implementation",
    "compute_dtype",
    "keep_trained_in_fp32",
    "load_base",
    "nf4_config",
    "parameter_counts",
    "probe_attention",
    "resolve_model",
]
