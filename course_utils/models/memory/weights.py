"""Bytes that lie in memory during the whole training: weights, adapter, optimizer."""

import math

from transformers import PretrainedConfig

from course_utils.models.memory.settings import OPTIMIZERS, Settings

BLOCK, SECOND_BLOCK = 64, 256  # bitsandbytes' blocks of weights, and of their scales


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    given = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


def projections(config: PretrainedConfig) -> dict[str, tuple[int, int]]:
    """{name: (outputs, inputs)} of one decoder layer's seven projections."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * head_size(config)
    key = config.num_key_value_heads * head_size(config)
    return {
        "q_proj": (query, hidden),
        "k_proj": (key, hidden),
        "v_proj": (key, hidden),
        "o_proj": (hidden, query),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def weight_shapes(config: PretrainedConfig) -> dict[str, int]:
    """Numbers of weights of a Llama: {"projections", "tables", "norms", "total"}.

    config: with LlamaConfig's fields, without biases. "tables": embeddings and head,
    once if they are tied.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    tables = 1 if config.tie_word_embeddings else 2
    counts = {
        "projections": layers * sum(a * b for a, b in projections(config).values()),
        "tables": tables * config.vocab_size * hidden,
        "norms": (2 * layers + 1) * hidden,
    }
    return counts | {"total": sum(counts.values())}


def nf4_bytes(weights: int) -> tuple[int, int]:
    """(packed, quant state) bytes of one matrix of so many weights in NF4.

    Two weights per byte. With double quantisation: a byte for the scale of each 64, a
    float32 for each 256 of those, and three constants: the 16 values, the 256 values of
    the second code, the scales' mean.
    """
    blocks = math.ceil(weights / BLOCK)
    constants = 16 * 4 + 256 * 4 + 4
    return math.ceil(weights / 2), (
        blocks + 4 * math.ceil(blocks / SECOND_BLOCK) + constants
    )


def adapter_weights(config: PretrainedConfig, settings: Settings) -> int:
    """Trained weights: LoRA's A and B of each target, and the token rows."""
    sizes = projections(config)
    lora = settings.lora_rank * sum(sum(sizes[name]) for name in settings.targets)
    rows = 2 * settings.token_rows * config.hidden_size
    return config.num_hidden_layers * lora + rows


def static_bytes(config: PretrainedConfig, settings: Settings) -> dict[str, float]:
    """{part: bytes} of what stays from the first step to the last.

    Parts: weights (projections and norms), quant state, embeddings and head, adapter,
    optimizer. The optimizer's paged moments count 0: bitsandbytes takes them from
    managed memory, which PyTorch does not count and which the driver moves to the host
    when the card is full. Token rows in tied tables count twice, as an upper bound. The
    fast trainer, where it computes in 16 bit, makes a copy of A and B for each row.
    """
    counts = weight_shapes(config)
    norms = counts["norms"] * settings.norm_bytes
    state = 0
    if settings.precision == "nf4":
        sizes = [nf4_bytes(a * b) for a, b in projections(config).values()]
        linear, state = (
            config.num_hidden_layers * sum(part) for part in zip(*sizes, strict=True)
        )
    else:
        linear = counts["projections"] * settings.compute_bytes
    trained = adapter_weights(config, settings)
    in_16_bit = 0
    if settings.trainer == "fast" and settings.compute_bytes < 4:
        rows = 2 * settings.token_rows * config.hidden_size
        in_16_bit = (trained - rows) * settings.compute_bytes
    paged = settings.optim.startswith("paged")
    tables = counts["tables"]
    if settings.embeddings_on_cpu and not config.tie_word_embeddings:
        tables //= 2
    return {
        "weights": linear + norms,
        "quant state": state,
        "embeddings and head": tables * settings.table_bytes,
        "adapter": trained * 4 + in_16_bit,
        "optimizer": 0 if paged else round(trained * OPTIMIZERS[settings.optim]),
    }
