"""Base models: loading them, counting them, predicting the memory they need.

Modules: `loading`, `shards` (checkpoints written tensor by tensor), `fingerprint`
(which base an adapter belongs to), `memory` (what training needs), `random_weights` (a
checkpoint of random weights in a known shape). Knows no data and no training loop.
"""

from course_utils.models.fingerprint import base_fingerprint, record_base
from course_utils.models.loading import (
    LINEAR_LAYERS,
    ParameterCounts,
    attention_implementation,
    compute_dtype,
    keep_trained_in_fp32,
    load_base,
    load_config,
    load_model,
    load_tokenizer,
    nf4_config,
    parameter_counts,
    probe_attention,
    require_adapter,
    require_no_code,
    resolve_model,
)

__all__ = [
    "LINEAR_LAYERS",
    "ParameterCounts",
    "attention_implementation",
    "base_fingerprint",
    "compute_dtype",
    "keep_trained_in_fp32",
    "load_base",
    "load_config",
    "load_model",
    "load_tokenizer",
    "nf4_config",
    "parameter_counts",
    "probe_attention",
    "record_base",
    "require_adapter",
    "require_no_code",
    "resolve_model",
]
